"""`scaling`: the strength of a merged update, and what it may be: a number, or a rule."""

from __future__ import annotations

import math
from typing import Any

from samerge.errors import OptionError
from samerge.options.kinds import POSITIVE, Kind, check_number, check_strength


def scaling() -> Kind:
    """A number, "auto" or "auto:<c>"."""

    def read(name: str, value: Any) -> float | str:
        if not isinstance(value, str):
            return check_strength(name, value)
        if auto_factor(value) is not None:
            return value
        try:
            number = check_number(name, value)
        except OptionError:
            raise OptionError(f"{name}={value!r} is not known; give a number, 'auto', 'auto:<c>'") from None
        return check_strength(name, number)

    pattern = f"^auto(:{POSITIVE})?$"
    schema = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": pattern}]}
    return Kind(read, "float | str", "FLOAT|auto[:C]", schema=schema)


def auto_only() -> Kind:
    """A number, or "auto"."""

    def read(name: str, value: Any) -> float | str:
        return "auto" if value == "auto" else check_strength(name, value)

    schema = {"anyOf": [{"type": "number"}, {"const": "auto"}]}
    return Kind(read, "float | Literal['auto']", "FLOAT|auto", schema=schema)


def auto_factor(value: float | str) -> float | None:
    """c of "auto:<c>", 0.0 for "auto" (which leaves it to the rule), None for every other scaling.

    Raises:
        OptionError: c is not a positive number.

    Example:
        >>> auto_factor("auto:1.5"), auto_factor("auto"), auto_factor(0.5)
        (1.5, 0.0, None)
    """
    kind, colon, factor = str(value).partition(":")
    if kind != "auto":
        return None
    try:
        found = float(factor) if colon else 0.0
    except ValueError:
        found = -1.0
    if colon and not 0 < found < math.inf:
        raise OptionError(f"scaling={value!r} must be 'auto:<c>' with a positive number, as in auto:1.3")
    return found
