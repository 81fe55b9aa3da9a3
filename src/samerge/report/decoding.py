"""From plain JSON values, which a stranger may have written, to frozen dataclasses, by their annotations."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")

#: Beyond what float32 factors can make; its fourth power is a number still.
_LARGEST = 1e75

#: What a message quotes of a wrong value.
_QUOTED = 60


def decoded(kind: type[T], value: Any, where: str = "") -> T:
    """A dataclass from a JSON object. Keys that it does not know are left aside.

    Args:
        kind: a frozen dataclass of numbers, texts, mappings from text, tuples, and other such dataclasses. What its
            `__post_init__` raises as ValueError is told with its place.
        value: what was read.
        where: its place in the file, for messages.

    Raises:
        ValueError: something is missing, of another kind, or out of its range; says where.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point:
        ...     x: float
        ...     y: float = 0.0
        >>> decoded(Point, {"x": 1, "colour": "red"})
        Point(x=1.0, y=0.0)
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where or 'the whole'} must be an object, found {_shown(value)}")
    hints = get_type_hints(kind)
    given = {}
    for one in dataclasses.fields(cast(Any, kind)):
        place = f"{where}.{one.name}".lstrip(".")
        if one.name in value:
            given[one.name] = _value(hints[one.name], value[one.name], place)
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            raise ValueError(f"{place} is missing")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        [inner] = [one for one in arguments if one is not type(None)]
        return None if value is None else _value(inner, value, where)
    if dataclasses.is_dataclass(kind):
        return decoded(cast(type, kind), value, where)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be an object, found {_shown(value)}")
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _finite(value, where)
    if kind is not float and type(value) is kind:
        return value
    raise ValueError(f"{where} must be {_WORDS.get(kind, kind)}, found {_shown(value)}")


def _tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} must be a list, found {_shown(value)}")
    if arguments[-1] is Ellipsis:
        return tuple(_value(arguments[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if len(value) != len(arguments):
        raise ValueError(f"{where} must be a list of {len(arguments)}, found {len(value)}")
    pairs = enumerate(zip(arguments, value, strict=True))
    return tuple(_value(one, item, f"{where}[{place}]") for place, (one, item) in pairs)


def _finite(value: float, where: str) -> float:
    if not abs(value) <= _LARGEST:
        raise ValueError(f"{where} must be a number of at most {_LARGEST:g}, found {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


_WORDS = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
