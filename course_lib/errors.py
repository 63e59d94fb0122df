"""The one exception the library raises for bad input.

The command line turns it into a message of one or two lines and exit code 2. Everything else that
escapes is a bug and keeps its traceback.
"""

import importlib


class CourseError(ValueError):
    """Bad input: the message says what is wrong, why, and what to do."""


def optional(package: str, pip: str = ""):
    """Import a package that only some parts need.

    Args:
        pip: what to tell pip, where it is not the package's name.

    Raises:
        CourseError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise CourseError(
            f"this needs the package {package}: pip install {pip or package.replace('_', '-')}"
        ) from None
