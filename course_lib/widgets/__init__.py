"""The course's widgets: an anywidget class and one ES module each.

``base.py`` says how to write one, ``live.py`` how to write one with live models. Import a widget
from its own module, for example ``probability_shift.ProbabilityShift``.
"""

from .base import CourseWidget, is_book_build

__all__ = ["CourseWidget", "is_book_build"]
