"""Options and the summary of `pytest tests/exercises`."""

import json
from collections import Counter
from pathlib import Path

from course_lib.checks import STATUSES
from exercises.bank import STUBS

LEARNER, MUTANTS = "test_exercises.py", "test_kill_table.py"


def pytest_addoption(parser):
    """Options for a teacher, and `--kill-table` for those who write checks."""
    parser.addoption("--answers", type=Path, default=STUBS, help="folder with lNN.py to grade")
    parser.addoption("--results", type=Path, help="write lesson, exercise, status as a JSON file")
    parser.addoption("--required", action="store_true", help="not attempted counts as a failure")
    parser.addoption(
        "--kill-table",
        action="store_true",
        help="grade the checks instead: wrong answers and mutants that they catch",
    )


def pytest_ignore_collect(collection_path, config):
    """The learner sees the exercises alone; the kill table is asked for."""
    asked = config.getoption("kill_table", default=False)
    return True if collection_path.name == (LEARNER if asked else MUTANTS) else None


def _properties(terminalreporter):
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call" or getattr(report, "skipped", False):
                yield dict(getattr(report, "user_properties", ()))


def pytest_terminal_summary(terminalreporter, config):
    """Solved, wrong, not attempted, by lesson; or the kill table."""
    rows = list(_properties(terminalreporter))
    answers = [row for row in rows if "status" in row]
    if answers:
        _write_summary(terminalreporter, answers)
    if answers and config.getoption("results", default=None):
        text = json.dumps(answers, indent=1, ensure_ascii=False)
        config.getoption("results").write_text(text + "\n", encoding="utf-8")
    killed = [row for row in rows if "mutants" in row]
    if killed:
        _write_kill_table(terminalreporter, killed)


def _write_summary(terminalreporter, rows):
    counts = Counter((row["lesson"], row["status"]) for row in rows)
    terminalreporter.section("exercises")
    terminalreporter.write_line("".join(f"{title:>15}" for title in ("", *STATUSES)))
    for lesson in sorted({lesson for lesson, _ in counts}):
        cells = "".join(f"{counts[lesson, status]:>15}" for status in STATUSES)
        terminalreporter.write_line(f"{lesson:>15}{cells}")
    total = (sum(n for (_, s), n in counts.items() if s == status) for status in STATUSES)
    terminalreporter.write_line(f"{'all':>15}" + "".join(f"{n:>15}" for n in total))


def _write_kill_table(terminalreporter, rows):
    terminalreporter.section("kill table")
    line = "{:<34} {:>14} {:>14} {:>12}".format
    terminalreporter.write_line(line("", "wrong answers", "mutants", "equivalent"))
    sums = Counter()
    for row in rows:
        sums.update(
            {key: row[key] for key in ("wrong", "wrong_killed", "mutants", "killed", "equivalent")}
        )
        terminalreporter.write_line(_kill_row(line, row["exercise"], row))
    terminalreporter.write_line(_kill_row(line, "all", sums))
    different = sums["mutants"] - sums["equivalent"]
    terminalreporter.write_line(
        f"killed of the mutants that behave differently: {100 * sums['killed'] / different:.1f} %"
    )


def _kill_row(line, name, row):
    return line(
        name,
        f"{row['wrong_killed']}/{row['wrong']}",
        f"{row['killed']}/{row['mutants']}",
        row["equivalent"],
    )
