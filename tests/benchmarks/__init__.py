"""Speed against the libraries everyone uses: `make bench`. Measured, never asserted in a test.

Each `bench_<name>.py` has a function `bench()` that returns rows: what was done (`work`), our speed
and theirs (`ours`, `theirs`, None without the other library) in `unit` a second, and the `ratio`.
"""
