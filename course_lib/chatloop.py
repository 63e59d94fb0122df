"""Talking to a trained model in the terminal, one reply a line."""

import sys

import torch

from course_lib.chat import IM_END, render
from course_lib.data import END_OF_TEXT, end_of_text
from course_lib.errors import CourseError
from course_lib.evaluate import REPLY_TOKENS
from course_lib.generate import stream
from course_lib.runs import Run
from course_lib.sampling import Sampling


def chat_loop(run: Run, model_name: str, temperature: float, seed: int) -> None:
    """Read lines from standard input and answer until it ends; `/reset` forgets the talk.

    The base model knows no turns: it gets the bare text and continues it. When a talk outgrows the
    context, its oldest turns are dropped.
    """
    tokenizer, model = run.tokenizer(), run.model(model_name)
    stop = {tokenizer.special_ids[IM_END], tokenizer.special_ids[END_OF_TEXT]}
    sampling, generator = Sampling(temperature), torch.Generator().manual_seed(seed)
    turns: list[tuple[str, str]] = []
    print(f"{model_name} model of {run.path}. /reset starts anew, Ctrl-D leaves.")
    while True:
        try:
            text = input("you> ").strip()
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            print("error: that was not UTF-8 text; nothing was sent", file=sys.stderr)
            continue
        if text == "/reset":
            turns = []
        if text in ("", "/reset"):
            continue
        turns.append(("user", text))
        try:
            ids = _context(turns, tokenizer, model, base=model_name == "base")
        except CourseError as error:
            print(f"error: {error}", file=sys.stderr)
            turns.pop()
            continue
        print(f"{model_name}> ", end="")
        reply = ""
        for piece in stream(model, tokenizer, ids, REPLY_TOKENS, stop, sampling, generator):
            print(piece, end="", flush=True)
            reply += piece
        print()
        turns.append(("assistant", reply))


def _context(turns, tokenizer, model, base: bool) -> list[int]:
    """Ids of the talk so far, without the oldest turns that do not fit; `turns` stays as it is."""
    limit = model.config.context_length - REPLY_TOKENS
    if base:
        ids = [end_of_text(tokenizer), *tokenizer.encode(turns[-1][1])]
        if len(ids) > limit:
            raise CourseError(f"that is {len(ids)} tokens; at most {limit} fit: make it shorter")
        return ids
    for first in range(0, len(turns), 2):
        ids = render(turns[first:], tokenizer, reply=True).ids
        if len(ids) <= limit:
            return ids
    raise CourseError(f"that is {len(ids)} tokens; at most {limit} fit: make it shorter")
