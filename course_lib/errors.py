"""The one exception the library raises for bad input.

The command line turns it into a message of one or two lines and exit code 2. Everything else that
escapes is a bug and keeps its traceback.
"""


class CourseError(ValueError):
    """Bad input: the message says what is wrong, why, and what to do."""
