"""The course's widgets: an anywidget class and one ES module each.

``base.py`` says how to write one. Import a widget from its own module:

* ``probability_shift.ProbabilityShift`` (L11): next-token bars of base, SFT and RLHF along an
  answer.
"""

from .base import CourseWidget, is_book_build

__all__ = ["CourseWidget", "is_book_build"]
