"""The score of a candidate, from the caller's own function: a finite number, or what was wrong with it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from samerge.errors import SamergeError, TuningError


def scored(candidate: Any, score: Callable[[Any], Any]) -> float:
    """What the function returns for a candidate.

    Raises:
        TuningError: the function raised something, or returned what is no finite number.
    """
    try:
        found = score(candidate)
    except SamergeError:
        raise
    except (Exception, SystemExit) as error:  # a function that ends the program shall not end the search
        raise TuningError(f"the score function raised {raised(error)}") from error
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise TuningError(f"the score returned {found!r}, which is no number") from error
    if not math.isfinite(value):
        raise TuningError(f"the score is {value}, which is not finite")
    return value


def raised(error: BaseException) -> str:
    """An exception in one line, with its place."""
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {text}"  # says its place itself
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({PurePath(last.filename).name}, line {last.lineno})"
