"""Checks that teach: `lNN.py` holds one `check_<name>(fn)` for every exercise of a lesson.

A check is a function of plain asserts. The message of each names the likely misconception.
`@Check` puts a runner around it. In a notebook `check_softmax(softmax)` prints one verdict and
never raises; pytest takes the same verdict from `check_softmax.grade(softmax)`.

The runner expects everything: answers that raise, loop for ever, print, return nothing or change
what they were given. Each ends in a message about this one exercise.
"""

import contextlib
import ctypes
import functools
import inspect
import io
import linecache
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

SECONDS = 10.0  # a check takes well under two; the rest is for slow machines
SOLVED, WRONG, NOT_ATTEMPTED = STATUSES = ("solved", "wrong", "not attempted")
SIGNS = {SOLVED: "✓", WRONG: "✗", NOT_ATTEMPTED: "–"}
PRINT_LIMIT = 2_000  # characters of an answer's own output that are kept


@dataclass(frozen=True)
class Verdict:
    """What a check found.

    Attributes:
        status: one of `STATUSES`.
        message: why it is wrong; empty otherwise.
        printed: what the answer printed meanwhile, cut at `PRINT_LIMIT` characters.
    """

    status: str
    message: str = ""
    printed: str = ""


class Check:
    """The check of one exercise; use it as a decorator.

    Attributes:
        name: the exercise, such as `softmax`.
        lesson: such as `L03`, from the name of the module.
        seconds: after these an answer is stopped, and wrong; a capstone, which trains, gets more.
    """

    seconds = SECONDS

    def __init__(self, test: Callable):
        self.test = test
        self.name = test.__name__.removeprefix("check_")
        self.lesson = test.__module__.rsplit(".", 1)[-1].upper()
        functools.update_wrapper(self, test)

    def __call__(self, *answer) -> None:
        """Print the verdict on an answer. Never raises."""
        verdict = self.grade(*answer)
        reason = f": {verdict.message}" if verdict.message else ""
        print(f"{SIGNS[verdict.status]} {self.name}: {verdict.status}{reason}")
        if verdict.printed.strip():
            print("  Your code printed:", *verdict.printed.strip().splitlines()[:10], sep="\n  | ")

    def grade(self, *answer, seconds: float | None = None) -> Verdict:
        """The verdict on an answer.

        Args:
            answer: what the check takes, nearly always one function.
            seconds: another time limit than the check's own.
        """
        seconds = self.seconds if seconds is None else seconds
        watched = [_Watched(part) if callable(part) else part for part in answer]
        printed = _Printed()
        with contextlib.redirect_stdout(printed), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a check may make modules; the caller's generator stays
            status, message = _verdict(lambda: self.test(*watched), watched, seconds)
        return Verdict(status, message, printed.getvalue())


def _verdict(job: Callable, watched: list, seconds: float) -> tuple[str, str]:
    """Run the asserts; what they raise becomes status and message."""
    try:
        run_limited(job, seconds)
    except _NotAttempted:
        return NOT_ATTEMPTED, ""
    except TimeoutError:
        return WRONG, f"not finished after {seconds:g} seconds: is there a loop that never ends?"
    except (AssertionError, _Stopped) as error:
        return WRONG, str(error)
    except BaseException as error:  # the asserts could not use what they got
        last = watched[0].last if isinstance(watched[0], _Watched) else watched[0]
        return WRONG, f"what it returned cannot be used ({type(error).__name__}: {error}). " + (
            f"It was {describe(last)}"
        )
    return SOLVED, ""


# -- an answer under watch ------------------------------------------------------------------------


class _NotAttempted(Exception):
    """The stub still raises its bare NotImplementedError."""


class _Stopped(Exception):
    """The answer raised, or changed its arguments; the text is for the learner."""


class _Watched:
    """An answer whose errors get a message and whose arguments must come back unchanged."""

    def __init__(self, fn: Callable):
        self.fn = fn
        self.last = None

    def __call__(self, *args, **kwargs):
        before = _copy((args, kwargs))
        try:
            self.last = self.fn(*args, **kwargs)
        except NotImplementedError as error:
            if error.args:  # PyTorch also raises it, with a text, for a missing kernel
                raise _Stopped(_where(error, self.fn)) from error
            raise _NotAttempted from error
        except (Exception, SystemExit) as error:
            raise _Stopped(_where(error, self.fn)) from error
        if not _same(before, (args, kwargs)):
            raise _Stopped(
                f"it changes its argument {self._changed(before, args, kwargs)} in place. "
                f"Make a new one: the caller still needs the old"
            )
        return self.last

    def _changed(self, before: tuple, args: tuple, kwargs: dict) -> str:
        try:
            names = list(inspect.signature(self.fn).parameters)
        except ValueError:
            names = []
        for i, (old, new) in enumerate(zip(before[0], args, strict=True)):
            if not _same(old, new):
                return f"`{names[i]}`" if i < len(names) else f"number {i + 1}"
        return ", ".join(f"`{k}`" for k in kwargs if not _same(before[1][k], kwargs[k]))


def _where(error: BaseException, fn: Callable) -> str:
    """`TypeError: ...`, and the last line of the learner's own file that was running."""
    text = f"it stops with {type(error).__name__}: {str(error).strip() or 'no text'}"
    code = getattr(inspect.unwrap(fn), "__code__", None)
    own = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if code and f.filename == code.co_filename
    ]
    if not own:
        return text
    line = linecache.getline(own[-1].filename, own[-1].lineno).strip()
    return f"{text} (line {own[-1].lineno}" + (f": `{line}`)" if line else ")")


def _copy(value):
    """A copy of tensors and containers; anything else is taken as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_copy(item) for item in value)
    return value


def _same(old, new) -> bool:
    """Is `new` still what `_copy` saw?"""
    if isinstance(old, torch.Tensor):
        both_nan = (old != old) & (new != new)
        return old.shape == new.shape and bool(((old == new) | both_nan).all())
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    if isinstance(old, tuple):
        return len(old) == len(new) and all(map(_same, old, new))
    return old is new or (isinstance(old, int | float | str | bytes) and old == new)


def describe(value) -> str:
    """What a value is, in a few words: `a tensor of shape (2, 3), float32`."""
    if value is None:
        return "None (an answer must `return`, not print)"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"


# -- limits ---------------------------------------------------------------------------------------


class _Printed(io.StringIO):
    """Keeps the first characters only: an endless loop of prints must not fill the memory."""

    def write(self, text: str) -> int:
        """Take a text; nothing is kept beyond the limit."""
        super().write(text[: max(0, PRINT_LIMIT - self.tell())])
        return len(text)


class _TimeUp(BaseException):
    """Raised inside a worker thread; a BaseException, so that `except Exception` lets it pass."""


def run_limited(job: Callable, seconds: float):
    """The result of `job()`, run in a thread that is stopped after `seconds`.

    A thread, not a signal: signals work neither on Windows nor outside the main thread.

    Raises:
        TimeoutError: the time was up; and whatever `job` raises.
    """
    outcome: list = []

    def work():
        try:
            outcome.append((job(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(seconds)
        late = thread.is_alive()
    finally:
        _stop(thread)  # also when the learner interrupts the notebook
    if late or not outcome:
        raise TimeoutError
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _stop(thread: threading.Thread) -> None:
    """Ask a thread to end, a few times: a bare `except:` in an answer may swallow the first."""
    for _ in range(20):
        if not thread.is_alive():
            return
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(_TimeUp)
        )
        thread.join(0.1)
