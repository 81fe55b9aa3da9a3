"""What a command's exceptions become: a clean line on stderr and an exit code."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from samerge.cli.console import stderr
from samerge.errors import SamergeError

UNEXPECTED = 1
BAD_INPUT = 2
INTERRUPTED = 130

#: Set to anything to see the traceback of bad input, too.
TRACEBACK_VARIABLE = "SAMERGE_TRACEBACK"

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose exceptions become exit codes: 2 for bad input, 130 when interrupted, 1 for everything else.

    Bad input (`SamergeError`) is told in one paragraph. Everything else shows its traceback and where to report it,
    but for what the machine refuses (a full disk, a missing permission), which is told in one line.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SamergeError as error:
            _show_traceback(error, wanted=False)
            _say("error", str(error))
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt:
            _say("interrupted", "nothing was written unless said above")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise  # the reader of our output has gone; click ends quietly
        except OSError as error:
            _show_traceback(error, wanted=False)
            _say("error", f"{error} (set {TRACEBACK_VARIABLE}=1 to see where)")
            raise typer.Exit(UNEXPECTED) from None
        except Exception as error:
            if _is_click(error):
                raise
            _show_traceback(error, wanted=True)
            _say(
                "error",
                f"unexpected {type(error).__name__}: {error}. This is a bug in samerge, or in what it was given; "
                "please report it with the traceback above",
            )
            raise typer.Exit(UNEXPECTED) from None

    return run


def _is_click(error: Exception) -> bool:
    """Whether it is one of click's own ways to leave, which some versions of typer vendor."""
    return any(kind.__name__ in ("ClickException", "Exit", "Abort") for kind in type(error).__mro__)


def _show_traceback(error: BaseException, wanted: bool) -> None:
    if wanted or os.environ.get(TRACEBACK_VARIABLE):
        stderr().print("".join(traceback.format_exception(error)), markup=False, highlight=False)


def _say(word: str, message: str) -> None:
    from rich.text import Text

    stderr().print(Text.assemble((f"{word}: ", "bold red"), message))
