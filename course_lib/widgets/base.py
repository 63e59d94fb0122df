"""CourseWidget: one widget class for the live notebook and for the static book.

How to write a widget
---------------------
1. Put one self-contained ES module at ``course_lib/widgets/<name>.mjs``::

       export default {
         render({ model, el }) {
           el.classList.add("cw");                   // shared look: widgets.css
           const draw = () => { el.querySelector("output").textContent = model.get("step"); };
           ...
           model.on("change:step", draw);            // also fires for the other views
           button.onclick = () => { model.set("step", 3); model.save_changes(); };
           draw();
           return () => model.off("change:step", draw);   // optional clean-up
         },
       };

   The one import that works is that of the shared helpers, which ``module_source`` then puts in
   front of the module (in the book it is loaded from a Blob, which has no address to resolve an
   import against)::

       import { h, percent } from "./static/kit.mjs";

   Write text with ``textContent`` (``h`` does), never with ``innerHTML``. Rules of style that
   only this widget needs go into ``static/<name>.css``.

2. Put the Python class at ``course_lib/widgets/<name>.py``::

       class StepCounter(CourseWidget):
           widget_name = "step_counter"              # the module's file name without .mjs
           title = "Step counter"                    # what a screen reader announces
           step = traitlets.Int(0).tag(sync=True)    # everything tagged sync is the state

           def fallback_html(self) -> str:           # readable without JavaScript
               return f"<p>Step {self.step}</p>"

   ``widget_name`` alone wires up ``_esm`` and ``_css``. The state must be plain JSON: no bytes,
   no NaN. Escape text in ``fallback_html`` with ``html.escape``.

What happens to it
------------------
* With a live kernel (JupyterLab, VS Code, Colab) it is an ordinary anywidget.
* While the book is built (``COURSE_BOOK_BUILD=1``, set by the
  book's Sphinx extension) it opens no comm and shows itself as one ``text/html`` div: the state
  as JSON, and the fallback. The page's loader (``static/loader.js``) then mounts the same ES
  module on that state. The bytes depend only on the class, the state and ``key``, so that two
  builds give the same page.

One object shown twice stays linked in both worlds. In the book, two *different* objects with
an equal state would be linked as well: give them different ``key`` arguments.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar

import anywidget

WIDGET_DIR = Path(__file__).parent
BOOK_BUILD_VARIABLE = "COURSE_BOOK_BUILD"

# Traits of every ipywidget that say nothing about a course widget's own state.
_FRAMEWORK_TRAITS = {"layout", "tabbable", "tooltip"}


IMPORT = re.compile(r'^import \{[^}]*\} from "\./static/kit\.mjs";\n', re.MULTILINE)


def is_book_build() -> bool:
    """True while the static book is being built."""
    return os.environ.get(BOOK_BUILD_VARIABLE) == "1"


def json_for_html(value: Any) -> str:
    r"""Return ``value`` as compact JSON that is safe inside a ``<script>`` element.

    ``<`` becomes ``\u003c`` (the same character to a JSON parser), so that neither ``</script>``
    nor ``<!--`` in the data can end or change the element. Keys are sorted: equal values give
    equal bytes. Raises ValueError for NaN and infinity, TypeError for what JSON cannot hold.

    >>> json_for_html({"b": 1, "a": "</script>"})
    '{"a":"\\u003c/script>","b":1}'
    """
    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )
    return text.replace("<", "\\u003c")


def module_source(name: str) -> str:
    """A widget's ES module as one self-contained file: its own code and the helpers it imports."""
    text = script(WIDGET_DIR / f"{name}.mjs")
    if not IMPORT.search(text):
        return text
    kit = script(WIDGET_DIR / "static" / "kit.mjs")
    return re.sub(r"^export ", "", kit, flags=re.MULTILINE) + IMPORT.sub("", text)


def script(path: Path) -> str:
    """A JavaScript file without the lines that are only comment: a page carries what runs."""
    return re.sub(r"^[ \t]*//.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def style_sheet() -> str:
    """The shared style sheet and every widget's own."""
    own = sorted((WIDGET_DIR / "static").glob("*.css"))
    return "\n".join(p.read_text(encoding="utf-8") for p in (WIDGET_DIR / "widgets.css", *own))


class CourseWidget(anywidget.AnyWidget):
    """Base class of the course's widgets. The module's docstring shows how to use it.

    Subclasses set ``widget_name`` (and ``title``), declare their state as traits tagged
    ``sync=True``, and implement :meth:`fallback_html`.

    Args:
        key: tells apart two objects of one class whose states are equal (static book only).
        **state: initial values of the traits.
    """

    widget_name: ClassVar[str] = ""
    title: ClassVar[str] = "Interactive figure"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # anywidget makes a further subclass of every instance's class; only a class that
        # names its module itself may set the source, or that copy would overwrite a trait.
        name = cls.__dict__.get("widget_name")
        if name:
            cls._esm, cls._css = module_source(name), style_sheet()
        super().__init_subclass__(**kwargs)

    def __init__(self, *, key: str = "", **state: Any) -> None:
        self._book_key = key
        self._book_id: str | None = None
        super().__init__(**state)

    def fallback_html(self) -> str:
        """HTML of the default state: what a reader without JavaScript, or a printer, sees."""
        raise NotImplementedError(f"{type(self).__name__} must implement fallback_html()")

    def book_state(self) -> dict[str, Any]:
        """The synchronised traits of the subclass, as plain JSON values."""
        names = [n for n in self.keys if not n.startswith("_") and n not in _FRAMEWORK_TRAITS]
        return {name: value for name, value in self.get_state(names).items() if name in names}

    def book_html(self) -> str:
        """The div that stands for this widget in the static book."""
        state = json_for_html(self.book_state())
        if self._book_id is None:  # kept: a later display of this object stays linked to it
            source = f"{self.widget_name}\n{self._book_key}\n{state}"
            self._book_id = hashlib.sha256(source.encode()).hexdigest()[:16]
        return (
            f'<div class="course-widget" data-widget="{html.escape(self.widget_name)}"'
            f' data-model="{self._book_id}" role="group"'
            f' aria-label="{html.escape(self.title)}">'
            f'<script type="application/json">{state}</script>'
            f'<div class="course-widget-fallback cw">{self.fallback_html()}</div></div>'
        )

    def open(self) -> None:
        """Open the comm to the front end; there is none while the book is built."""
        if not is_book_build():
            super().open()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        if is_book_build():
            return {"text/html": self.book_html()}
        return super()._repr_mimebundle_(**kwargs)
