"""LiveWidget: a widget whose models run in the page.

In the static book the page brings the runtime, the tokenizer and the weights (`book_files`, which
the book's Sphinx extension writes). With a kernel the widget itself brings them: the small parts
as a trait, the weights over the comm when a reader first asks. The ES module sees no difference:
`live(model)` of `static/kit.mjs` gives it the models in both worlds.
"""

import base64
import functools
import json
from collections.abc import Iterator
from typing import Any

import torch
import traitlets

from course_lib.files import read_json
from course_lib.runs import MODELS, Run

from .base import WIDGET_DIR, CourseWidget, is_book_build, json_for_html, script
from .weights import pack, read_header

NAMES = (*MODELS, "reward")


class LiveWidget(CourseWidget):
    """Base class of the widgets with live models.

    Args:
        run: a trained run, which gives the models; None for a widget that does without them.
        key, **state: as in `CourseWidget`.
    """

    live = traitlets.Dict().tag(sync=True)

    def __init__(self, run: Run | None, *, key: str = "", **state: Any) -> None:
        self._run = run
        parts = {} if run is None or is_book_build() else site(run)
        super().__init__(key=key, live=parts, **state)
        self.on_msg(self._send_weights)

    def book_state(self) -> dict[str, Any]:
        """The state; `live` only says whether there are models: the page itself brings them."""
        return {**super().book_state(), "live": self._run is not None}

    def _send_weights(self, _widget, content: dict, _buffers) -> None:
        name = content.get("want")
        if self._run is not None and name in NAMES:
            self.send({"weights": name}, [packed(self._run, name)])


def packed(run: Run, name: str) -> bytes:
    """The weights file of one model of a run: "base", "sft", "rlhf" or "reward"."""
    return _packed(run.path, name, run.stage(name)["key"])


@functools.cache
def _packed(path, name: str, _key: str) -> bytes:
    run = Run(path, torch.device("cpu"))
    return pack(run.reward_model() if name == "reward" else run.model(name))


def site(run: Run) -> dict[str, Any]:
    """What a page needs before any weights: runtime, tokenizer, sizes; `key` names the run."""
    files = {name: packed(run, name) for name in NAMES}
    return {
        "source": script(WIDGET_DIR / "static" / "gpt.js"),
        "tokenizer": read_json(run.path / "tokenizer" / "tokenizer.json"),
        "models": {
            name: {"bytes": len(data), "config": read_header(data)["config"]}
            for name, data in files.items()
        },
        "key": run.stage("rlhf")["key"],
    }


def book_files(run: Run) -> Iterator[tuple[str, bytes]]:
    """The files of the static book's live models, by name.

    `live.js` is loaded with the page. A model is there twice: as `.bin`, which is fetched, and as
    a script, for a book opened from disk, where nothing can be fetched.
    """
    place = "COURSE_LIVE.base = new URL('.', document.currentScript.src).href;\n"
    text = f"window.COURSE_LIVE = {json_for_html(site(run))};\n{place}COURSE_LIVE.parts = {{}};\n"
    yield "live.js", text.encode()
    for name in NAMES:
        data = packed(run, name)
        yield f"{name}.bin", data
        code = base64.b64encode(data).decode()
        yield f"{name}.js", f"COURSE_LIVE.parts[{json.dumps(name)}] = '{code}';\n".encode()
