"""Checks of single values that a caller gives: numbers, shares, words, and what density and scaling may be."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from samerge.errors import OptionError
from samerge.options.lines import alpha_beta, is_lines

#: The scalings that are found from what the experts lose (`samerge.report.interference`).
INTERFERENCE = ("interference", "interference:layer")

#: The scaling that brings the weights to one (`samerge.methods.scaling`).
UNIT = "unit"

#: The mean of density="adaptive".
ADAPTIVE_MEAN = 0.1


def check_scaling(scaling: float | str) -> None:
    """Refuse a scaling that is not known.

    Raises:
        OptionError: it is no finite number, and no rule.
    """
    if not isinstance(scaling, str):
        number("scaling", scaling)
    elif is_lines(scaling):
        alpha_beta(scaling)
    elif auto_factor(scaling) is None and scaling not in (UNIT, *INTERFERENCE):
        known = ("auto", "a number", "auto:<c>", UNIT, "lines:<alpha>:<beta>", *INTERFERENCE)
        choice("scaling", scaling, known)


def auto_factor(scaling: float | str) -> float | None:
    """c of "auto:<c>", 0.0 for "auto" (which leaves it to the spectrum), None for every other scaling.

    Raises:
        OptionError: c is not a positive number.

    Example:
        >>> auto_factor("auto:1.5"), auto_factor("auto"), auto_factor(0.5)
        (1.5, 0.0, None)
    """
    kind, colon, factor = str(scaling).partition(":")
    if kind != "auto":
        return None
    try:
        value = float(factor) if colon else 0.0
    except ValueError:
        value = -1.0
    if colon and not 0 < value < math.inf:
        raise OptionError(f"scaling={scaling!r} must be 'auto:<c>' with a positive number, as in auto:1.3")
    return value


def number(name: str, value: Any) -> float:
    """A finite number.

    Raises:
        OptionError: it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):  # NumPy's too
        raise OptionError(f"{name}={value!r} must be a finite number")
    return float(value)


def whole(name: str, value: Any, least: int = 1) -> None:
    """A whole number of at least 1 (or `least`), or None.

    Raises:
        OptionError: it is neither.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < least):
        raise OptionError(f"{name}={value!r} must be a whole number of at least {least}")


def fraction(name: str, value: Any) -> None:
    """A share in (0, 1], or None.

    Raises:
        OptionError: it is neither.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 1):
        raise OptionError(f"{name}={value!r} must lie in (0, 1]: the share of components that is kept")


def density_mean(density: float | str | None) -> float | None:
    """The density as a number: itself, or the mean of an adaptive one, 0.1 unless it says another.

    Raises:
        OptionError: it is not a share in (0, 1], "adaptive" or "adaptive:<mean>".

    Example:
        >>> density_mean(0.5), density_mean("adaptive"), density_mean("adaptive:0.2")
        (0.5, 0.1, 0.2)
    """
    if not isinstance(density, str):
        fraction("density", density)
        return None if density is None else float(density)
    kind, colon, mean = density.partition(":")
    try:
        value = float(mean) if colon else ADAPTIVE_MEAN
    except ValueError:
        value = 0.0
    if kind != "adaptive" or not 0 < value <= 1:
        raise OptionError(
            f"density={density!r} must lie in (0, 1]: the share of components that is kept; or be 'adaptive', or "
            f"'adaptive:<mean>' for another mean than {ADAPTIVE_MEAN}"
        )
    return value


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """One of a few words.

    Raises:
        OptionError: it is not.
    """
    if value not in allowed:
        raise OptionError(f"{name}={value!r} is not known; choose one of {', '.join(allowed)}")
