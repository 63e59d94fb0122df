"""Is this tag ready to be released? Then print what the changelog says about it.

    python .ci/release_notes.py v0.1.0 > notes.md

A tag is ready when the library, pyproject.toml, CITATION.cff and the newest entry of CHANGELOG.md
name its version, and that entry has a date. Only the standard library is needed.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENTRY = re.compile(
    r"^## \[(?P<version>[^\]]+)\] - (?P<date>.+)\n(?P<notes>(?:(?!## ).*\n?)*)", re.M
)


def entry(root: Path = ROOT) -> re.Match:
    """The newest entry of the changelog: version, date, notes."""
    return ENTRY.search((root / "CHANGELOG.md").read_text(encoding="utf-8"))


def versions(root: Path = ROOT) -> dict[str, str]:
    """The version that each file names."""
    library = (root / "course_lib" / "__init__.py").read_text(encoding="utf-8")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return {
        "course_lib/__init__.py": re.search(r'^__version__ = "(.+)"', library, re.M)[1],
        "pyproject.toml": project["project"]["version"],
        "CITATION.cff": re.search(r"^version: (.+)", citation, re.M)[1],
        "CHANGELOG.md": entry(root)["version"],
    }


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """What keeps the tag from being released."""
    found = [
        f"The tag is {tag}, but {name} says {version}."
        for name, version in versions(root).items()
        if tag != f"v{version}"
    ]
    date = entry(root)["date"]
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", date):
        found.append(f"CHANGELOG.md has no date for its newest version, but: {date}.")
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: release_notes.py TAG", file=sys.stderr)
        return 2
    found = problems(arguments[0])
    print("\n".join(found) or entry()["notes"].strip(), file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
