"""Finding a method by its name: a file of this folder, one that was registered, or an installed package's."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from samerge.errors import OptionError
from samerge.methods.other_names import OTHER_NAMES
from samerge.options.option import meant

if TYPE_CHECKING:
    from samerge.methods.method import Method

#: The entry point group in which a package offers methods: each entry point is a `Method`.
GROUP = "samerge.methods"

_registered: dict[str, Method] = {}


def register_method(method: Method) -> Method:
    """Make a method known by its name, beside those of samerge.

    Args:
        method: with a name that is not taken.

    Returns:
        The method, so that this can be used where it is made.

    Raises:
        OptionError: the name is taken by another one.

    Example:
        ```python
        from samerge.methods.linear import begin
        samerge.register_method(samerge.Method("mine", begin, summary="the weighted sum"))
        ```
    """
    if method.name in (*_files(), *OTHER_NAMES) or _registered.get(method.name, method) != method:
        raise OptionError(f"registering method {method.name!r}: this name is taken; choose another")
    _registered[method.name] = method
    return method


def available_methods() -> Iterator[str]:
    """The names of all merge methods, the default first.

    Example:
        >>> next(available_methods())
        'saliency'
    """
    first = ("saliency", "even", "paper", "elementwise", "linear", "svd")
    names = [*_files(), *_registered, *_entry_points()]
    yield from (name for name in first if name in names)
    yield from sorted(name for name in names if name not in first)


def find(name: object) -> Method:
    """The method of a name: samerge's own, PEFT's or mergekit's (without the options that such a name implies).

    Raises:
        OptionError: there is none; says which was probably meant.
    """
    return found(name)[0]


def found(name: object) -> tuple[Method, Mapping[str, float | str]]:
    """The method of a name, and the options that the name implies.

    Example:
        >>> method, implied = found("ties_svd")
        >>> method.name, implied
        ('ties', {'trim': 'layer'})
    """
    if not isinstance(name, str):
        raise OptionError(f"method={name!r} must be text, the name of one")
    own, implied = OTHER_NAMES.get(name, (name, {}))
    if own in _files():
        method: Method = import_module(f"samerge.methods.{own.replace('-', '_')}").METHOD
        return method, implied
    if own in _registered:
        return _registered[own], implied
    if own in _entry_points():
        loaded: Method = _entry_points()[own].load()
        return loaded, implied
    known = list(available_methods())
    raise OptionError(f"method={name!r} is not known{meant(name, [*known, *OTHER_NAMES])} Methods: {', '.join(known)}")


def summaries() -> dict[str, str]:
    """One line for each method, without importing any."""
    own = _files()
    return {name: own[name] if name in own else find(name).summary for name in available_methods()}


@cache
def _files() -> dict[str, str]:
    """The methods of this folder and their first lines: the files whose docstring begins with their name."""
    listed = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        name = file.stem.replace("_", "-")
        if told.startswith(f"`{name}`: "):
            listed[name] = told.splitlines()[0].removeprefix(f"`{name}`: ").rstrip(".")
    return listed


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
