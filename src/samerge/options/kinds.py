"""Kinds of option values: what a caller may give, from Python or as text, and what it is turned into."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from samerge.errors import OptionError

#: A positive number in the regular expressions of JSON Schema.
POSITIVE = r"(0*[1-9][0-9]*(\.[0-9]*)?|0*\.0*[1-9][0-9]*|0+\.0*[1-9][0-9]*)([eE][-+]?[0-9]+)?"

#: The size of a weight or a scaling, where it is not 0. float32 ends at 1e-38 and 3e38, a weight and a scaling come
#: together, and an update has a size of its own.
WEAKEST, STRONGEST = 1e-30, 1e15

#: Of scoring and pruning; SA-Merging takes 10.
MOST_ROUNDS = 1000

_SHARE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


@dataclass(frozen=True)
class Kind:
    """What the value of an option may be.

    Args:
        read: from an option's name and what the caller gave (a value, or text that stands for one) the value.
        annotation: its type in Python, as text.
        metavar: what `--help` shows in its place.
        choices: words that it may be, for completion in a shell.
        flag: what the option is called in a shell where that is not its name.
        many: whether it may be given several times in a shell; its value is then a list of text.
        schema: what it may be in a recipe file, as JSON Schema; anything where it is empty.
    """

    read: Callable[[str, Any], Any]
    annotation: str
    metavar: str
    choices: tuple[str, ...] = ()
    flag: str = ""
    many: bool = False
    schema: Mapping[str, Any] = field(default_factory=dict)


def whole(least: int = 1, most: int | None = None) -> Kind:
    """A whole number; 16.0 and "16" are 16."""
    schema = {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})
    return Kind(lambda name, value: check_whole(name, value, least, most), "int", "N", schema=schema)


def rounds() -> Kind:
    """How many rounds of scoring and pruning.

    A round that removes nothing is for nothing, and each reads the base: more of them than this are a slip.
    """
    return whole(1, MOST_ROUNDS)


def real(low: float = -math.inf, high: float = math.inf, *, below: bool = False) -> Kind:
    """A finite number between two bounds; `below`: less than `high`."""

    def read(name: str, value: Any) -> float:
        found = check_number(name, value)
        if not (low <= found <= high) or (below and found == high):
            reach = f"in [{low:g}, {high:g}{')' if below else ']'}" if math.isfinite(high) else f"{low:g} or more"
            raise OptionError(f"{name}={value!r} must be {reach}")
        return found

    bounds = {"minimum": low, "exclusiveMaximum" if below else "maximum": high}
    schema = {"type": "number"} | {name: bound for name, bound in bounds.items() if math.isfinite(bound)}
    return Kind(read, "float", "FLOAT", schema=schema)


def share() -> Kind:
    """A share in (0, 1]."""
    return Kind(check_share, "float", "(0,1]", schema=_SHARE)


def word(*choices: str, pattern: str = "", told: str = "") -> Kind:
    """One of a few words, or text that matches a pattern, which messages tell as `told`."""

    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or (value not in choices and not (pattern and re.fullmatch(pattern, value))):
            raise OptionError(
                f"{name}={value!r} is not known; choose one of {', '.join((*choices, *filter(None, [told])))}"
            )
        return value

    listed = [*choices, *filter(None, [told])]
    literal = f"Literal[{', '.join(repr(choice) for choice in choices)}]" if choices and not pattern else "str"
    schema: dict[str, Any] = {"enum": [*choices]}
    if pattern:
        schema = {"anyOf": [schema, {"type": "string", "pattern": f"^{pattern}$"}]}
    return Kind(read, literal, "|".join(listed), choices, schema=schema)


def flag() -> Kind:
    """True or False; the words for them are understood."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

    def read(name: str, value: Any) -> bool:
        found = value if isinstance(value, bool) else words.get(str(value).lower())
        if found is None:
            raise OptionError(f"{name}={value!r} must be true or false")
        return found

    return Kind(read, "bool", "true|false", ("true", "false"), schema={"type": "boolean"})


def check_number(name: str, value: Any) -> float:
    """A finite number; text that says one will do.

    Raises:
        OptionError: it is none.
    """
    found = _numeric(value)
    if found is None or not math.isfinite(found):
        raise OptionError(f"{name}={_shown(value)} must be a finite number")
    return found


def check_strength(name: str, value: Any) -> float:
    """A number that multiplies updates: finite, and 0 or of a size that leaves room in float32.

    Raises:
        OptionError: it is not.

    Example:
        >>> check_strength("weight", "0.5"), check_strength("weight", -1e15)
        (0.5, -1000000000000000.0)
    """
    found = check_number(name, value)
    if found and not WEAKEST <= abs(found) <= STRONGEST:
        far = "large" if abs(found) > 1 else "small"
        raise OptionError(
            f"{name}={_shown(value)} is too {far}: merges are computed in float32, so its size must be 0 or between "
            f"{WEAKEST:g} and {STRONGEST:g}"
        )
    return found


def check_whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number of at least `least`, and of at most `most`; 16.0 and "16" will do.

    Raises:
        OptionError: it is none.
    """
    found = _numeric(value)
    high = math.inf if most is None else most
    if found is None or found != found // 1 or not least <= found <= high or math.isinf(found):
        reach = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise OptionError(f"{name}={_shown(value)} must be a whole number {reach}")
    return int(found)


def check_share(name: str, value: Any) -> float:
    """A share in (0, 1].

    Raises:
        OptionError: it is none.
    """
    found = _numeric(value)
    if found is None or not 0 < found <= 1:
        raise OptionError(f"{name}={_shown(value)} must lie in (0, 1]")
    return found


def _numeric(value: Any) -> float | None:
    """A number from a number, text, or a scalar tensor; None where it is none. A truth value is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (Integral, Real)):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return _numeric(item())
    return None


def _shown(value: Any) -> str:
    return f"{value!r}" if len(repr(value)) < 80 else f"{type(value).__name__}"
