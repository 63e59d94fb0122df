"""The course's widgets: an anywidget class and one ES module each.

``base.py`` says how to write one. Import a widget from its own module, for instance
``from course_lib.widgets.probability_shift import ProbabilityShift``.
"""

from .base import CourseWidget, is_book_build

__all__ = ["CourseWidget", "is_book_build"]
