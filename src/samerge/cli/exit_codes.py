"""What a command's exceptions and signals become: a clean line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import functools
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, ParamSpec

import typer

from samerge.cli.console import stderr
from samerge.cli.shell_words import said, speaking
from samerge.errors import SamergeError

UNEXPECTED = 1
BAD_INPUT = 2
INTERRUPTED = 130

#: Set to anything to see the traceback of bad input, too.
TRACEBACK_VARIABLE = "SAMERGE_TRACEBACK"

#: What to do about what the machine refuses.
_WAYS_OUT = {
    errno.ENOSPC: "the disk is full; free some of it, or write to another one",
    errno.EDQUOT: "the quota of this disk is used up; free some of it, or write to another one",
    errno.EROFS: "the disk cannot be written to; choose another place",
    errno.EACCES: "you may not read or write there; choose another place, or ask for the permission",
    errno.EPERM: "you may not read or write there; choose another place, or ask for the permission",
    errno.ENOENT: "it is not there, or no longer; its folder may have been removed or renamed meanwhile",
    errno.EIO: "the disk has an error; check it, or use another one",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.ENOMEM: "there is not enough memory",
}

P = ParamSpec("P")


class Terminated(KeyboardInterrupt):
    """The process was asked to end by a signal other than that of Control-C; everything is cleaned up as for that.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose exceptions become exit codes: 2 for bad input, 130 when interrupted, 1 for everything else.

    A process that is asked to end (SIGTERM, SIGHUP) cleans up as for Control-C, and ends with 128 plus the signal's
    number. Bad input (`SamergeError`) is told in one paragraph. What the machine refuses (a full disk, a missing
    permission, no memory) is told in one line, with the way out. Everything else shows its traceback and where to
    report it.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with speaking(kwargs):
            attempt(*args, **kwargs)

    def attempt(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _signals(), _warnings():
                command(*args, **kwargs)
        except SamergeError as error:
            _show_traceback(error, wanted=False)
            _say("error", said(str(error)))
            raise typer.Exit(BAD_INPUT) from None
        except Terminated as ended:
            _say("ended", f"by {ended}; nothing was left half-written")
            raise typer.Exit(128 + ended.number) from None
        except KeyboardInterrupt:
            _say("interrupted", "nothing was left half-written")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # the reader of our output has gone; click ends quietly
        except Exception as error:
            if _is_click(error):
                raise
            refused = _of_the_machine(error)
            _show_traceback(error, wanted=refused is None)
            _say("error", refused or _bug(error))
            raise typer.Exit(UNEXPECTED) from None

    return run


def _of_the_machine(error: Exception) -> str | None:
    """What to say when the machine refuses; None for what is nobody's fault but ours."""
    told = " ".join(str(error).split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in told:
        return (
            f"there is not enough memory ({told or 'a request of Python failed'}); merge fewer adapters at a time, or "
            f"use a machine with more. Nothing was left half-written"
        )
    if isinstance(error, OSError):
        if error.strerror:
            told = error.strerror + (f": {error.filename}" if error.filename else "")
        way = _WAYS_OUT.get(error.errno or 0, f"set {TRACEBACK_VARIABLE}=1 to see where")
        return f"{told}: {way}. Nothing was left half-written"
    return None


def _bug(error: Exception) -> str:
    return (
        f"unexpected {type(error).__name__}: {error}. This is a bug in samerge, or in what it was given; please report "
        f"it with the traceback above"
    )


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let signals that ask the process to end raise `Terminated`; only the main thread can have such handlers."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    before: dict[int, Any] = {}
    try:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
                with contextlib.suppress(ValueError):
                    before[number] = signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Warnings through our own console, which escapes what they quote."""
    before = warnings.showwarning
    here = contextvars.copy_context()  # of the command; a thread that warns has one of its own

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say("warning", here.copy().run(said, str(message)))

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _is_click(error: Exception) -> bool:
    """Whether it is one of click's own ways to leave, which some versions of typer vendor."""
    return any(kind.__name__ in ("ClickException", "Exit", "Abort") for kind in type(error).__mro__)


def _show_traceback(error: BaseException, wanted: bool) -> None:
    if wanted or os.environ.get(TRACEBACK_VARIABLE):
        stderr().print("".join(traceback.format_exception(error)), markup=False, highlight=False)


def _say(word: str, message: str) -> None:
    from rich.text import Text

    stderr().print(Text.assemble((f"{word}: ", "bold red"), message))
