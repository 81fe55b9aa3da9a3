"""Options that only one method has: a frozen dataclass for each, filled from `method_options` and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from samerge.errors import OptionError
from samerge.options.merge_options import MergeOptions

T = TypeVar("T")


def parameters_of(told: str, kind: type[Any] | None, given: Mapping[str, Any] | None) -> Any:
    """A method's own options, filled in and checked.

    Args:
        told: how the method was named, for messages: "method='wudi'".
        kind: the method's frozen dataclass, every field with a default; None for a method without any.
        given: what the user gave, by name; text is read as what the default is.

    Returns:
        An instance of `kind`, or None without one.

    Raises:
        OptionError: a name is not known, or a value is of the wrong kind or out of its range.
    """
    if given is not None and not isinstance(given, Mapping):
        raise OptionError(f"method_options={given!r} must be a mapping of names to values")
    known = {} if kind is None else defaults(kind)
    for name in given or {}:
        if name not in known:
            what = f"it has {', '.join(known)}" if known else "it has none"
            raise OptionError(f"method_options: {told} has no option {name!r} of its own; {what}")
    if kind is None:
        return None
    return kind(**{name: _read(name, value, known[name]) for name, value in (given or {}).items()})


def own(options: MergeOptions, kind: type[T]) -> T:
    """The method's own options as the merge has them; the defaults where it has none."""
    return options.method_options if isinstance(options.method_options, kind) else kind()


def defaults(kind: type[Any]) -> dict[str, Any]:
    """The names and defaults of a method's own options."""
    return {item.name: item.default for item in fields(kind) if item.default is not MISSING}


def _read(name: str, value: Any, default: Any) -> Any:
    """Text from the command line as the default's kind; whole numbers as floats where floats are meant."""
    wanted = type(default)
    if wanted is str:
        return value
    try:
        if isinstance(value, str):
            return wanted(value)
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        what = "a whole number" if wanted is int else "a number"
        raise OptionError(f"method_options: {name}={value!r} must be {what}") from None
    return value
