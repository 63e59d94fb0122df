"""Run every benchmark and print one table: `python -m tests.benchmarks [NAME ...]`.

Names are the files without `bench_`, for example `tokenizer`; without any, all run. One that lacks
something, such as a download, says so in its row; the exit status is then 1.
"""

import importlib
import os
import platform
import sys
from pathlib import Path

import torch

from course_lib.errors import CourseError

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
FOLDER = Path(__file__).parent
NAMES = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def machine():
    """One line about where the numbers come from."""
    model = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.exists():
        names = [x for x in cpus.read_text().splitlines() if x.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return (
        f"{model}, {os.cpu_count()} CPUs, load {load}, {platform.system()}, "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def line(row):
    """One row of the table as text."""
    theirs, ratio = row["theirs"], row["ratio"]
    share = f"  {row['share']:.0%} of matmul peak" if "share" in row else ""
    return (
        f"{row['work']:62s} {row['ours']:>12,.1f} "
        + (f"{theirs:>12,.1f} {ratio:>8.2f}x" if theirs else f"{'-':>12s} {'-':>9s}")
        + f"  {row.get('unit', '')}{share}"
    )


def main(names):
    """Run the named benchmarks, one row after the other; returns the exit status."""
    unknown = set(names) - set(NAMES)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    print(machine())
    print(f"{'work':62s} {'ours':>12s} {'theirs':>12s} {'ratio':>9s}  per second", flush=True)
    status = 0
    for name in names or NAMES:
        try:
            for row in importlib.import_module(f"tests.benchmarks.bench_{name}").bench():
                print(line(row), flush=True)
        except CourseError as error:
            reason, status = str(error).splitlines()[0], 1
            print(f"{name + ': not measured':62s} {reason}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
