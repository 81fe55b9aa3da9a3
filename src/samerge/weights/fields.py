"""Fields of a configuration: which kind of value each has, checked once, where the file is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from samerge.weights.untrusted import Origin


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Args:
        words: what it is called in messages, as in "a number".
        fits: whether a value is of this kind.
    """

    words: str
    fits: Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):  # of a configuration made in Python
        value = value.item() if value.ndim == 0 else None
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a finite number", _is_number)
OBJECT = Kind("an object with fields", lambda value: isinstance(value, Mapping))


def whole(least: int, most: int) -> Kind:
    """A whole number between two, both included."""
    return Kind(f"a whole number from {least} to {most}", lambda value: _is_whole(value) and least <= value <= most)


def list_of(kind: Kind, most: int = 1_000_000) -> Kind:
    """A list (in Python also a tuple or a set) of at most `most` values of one kind."""
    limit = f"a list of at most {most} entries" if most < 1_000_000 else "a list"
    return Kind(
        f"{limit}, each {kind.words}",
        lambda value: (
            isinstance(value, (list, tuple, set, frozenset)) and len(value) <= most and all(map(kind.fits, value))
        ),
    )


def table_of(kind: Kind) -> Kind:
    """An object whose values are of one kind."""
    return Kind(
        f"an object, each value {kind.words}",
        lambda value: isinstance(value, Mapping) and all(map(kind.fits, value.values())),
    )


def either(*kinds: Kind) -> Kind:
    """A value of one of several kinds."""
    return Kind(" or ".join(kind.words for kind in kinds), lambda value: any(kind.fits(value) for kind in kinds))


def check_fields(
    given: Mapping[str, Any], kinds: Mapping[str, Kind], name: str, origin: Origin, needed: tuple[str, ...] = ()
) -> None:
    """Check the fields that are there; null stands for a field that is not.

    Args:
        given: the fields.
        kinds: what each may be; fields that are not named here are not looked at.
        name: of the file, for errors.
        origin: what is being read, for errors.
        needed: fields that must be there.

    Raises:
        SamergeError: of the origin's class; names the field, what it holds and what it may hold.

    Example:
        >>> check_fields({"r": "4"}, {"r": whole(1, 9)}, "adapter_config.json", Origin("reading adapter 'a'"))
        Traceback (most recent call last):
        ...
        samerge.errors.BaseModelError: reading adapter 'a': adapter_config.json says r='4'; it must be a whole number
        from 1 to 9
    """
    for field, kind in kinds.items():
        value = given.get(field)
        if value is None:
            if field in needed:
                found = "says null for" if field in given else "does not say"
                raise origin.refusal(f"{name} {found} {field}; it must be {kind.words}")
        elif not kind.fits(value):
            raise origin.refusal(f"{name} says {field}={shown(value)}; it must be {kind.words}")


def shown(value: object) -> str:
    """A value in a message: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
