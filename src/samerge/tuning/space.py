"""The search space: which options of a merge are searched, between what bounds, and what a point in it stands for."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from samerge.errors import OptionError
from samerge.methods import REGISTRY, entry
from samerge.methods.parameters import defaults

#: What is searched unless the caller says otherwise; density only where the method has one.
DEFAULT_SEARCH: Mapping[str, Any] = {"scaling": (0.1, 2.0), "density": (0.05, 1.0), "weights": (0.0, 2.0)}

#: Arguments of `merge` that do not change what comes out of it, or are no options.
_NOT_SEARCHED = frozenset({"base", "adapters", "method_options", "device", "progress"})

#: Bounds that are this far apart, as a ratio, are searched on a log scale, unless they are weights.
_LOG_RATIO = 10.0

Value = float | int | str | bool | None


class Suggests(Protocol):
    """What a trial of the optimiser can be asked for."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of a list."""


@dataclass(frozen=True)
class Dimension:
    """One searched option.

    Args:
        name: what the user calls it: "scaling", "weights.math", "mu".
        kind: "option", an argument of `merge`; "weight", of the adapter that the name ends in; "own", of the method.
        low: the smallest value.
        high: the largest one.
        whole: only whole numbers.
        log: on a log scale.
        choices: instead of bounds, the values.
    """

    name: str
    kind: Literal["option", "weight", "own"]
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    choices: tuple[Value, ...] | None = None

    def suggest(self, trial: Suggests) -> Value:
        """A value, from the optimiser."""
        if self.choices is not None:
            chosen: Value = trial.suggest_categorical(self.name, self.choices)
            return chosen
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)

    def record(self) -> Any:
        """As plain JSON: a list of values, or the bounds and the scale."""
        if self.choices is not None:
            return list(self.choices)
        return {"low": self.low, "high": self.high, "whole": self.whole, "log": self.log}


@dataclass(frozen=True)
class Space:
    """What is searched and what is fixed.

    Args:
        dimensions: the searched options, `method` first where it is one of them.
        fixed: options of `merge` that were given, `method` among them; where one is searched, too, it is the untuned
            value.
        names: the adapters.
    """

    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, Any] = field(repr=False)
    names: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that a trial may have."""
        found = next((d.choices for d in self.dimensions if d.name == "method" and d.choices), (self.fixed["method"],))
        return tuple(str(method) for method in found)

    def suggest(self, trial: Suggests) -> dict[str, Value]:
        """A point: a value for every dimension that means something to the method of the point."""
        values: dict[str, Value] = {}
        for dimension in self.dimensions:
            method = str(values.get("method", self.fixed["method"]))
            if has(method, dimension):
                values[dimension.name] = dimension.suggest(trial)
        return values

    def options(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """The keyword arguments of `merge` at a point; {} is the untuned merge."""
        method = str(values.get("method", self.fixed["method"]))
        kinds = {dimension.name: dimension.kind for dimension in self.dimensions}
        options = {name: value for name, value in self.fixed.items() if _applies(method, name)}
        own = {k: v for k, v in (self.fixed.get("method_options") or {}).items() if k in _own(method)}
        own |= {name: value for name, value in values.items() if kinds[name] == "own"}
        options |= {name: value for name, value in values.items() if kinds[name] == "option"}
        weights = {name.partition(".")[2]: v for name, v in values.items() if kinds[name] == "weight"}
        if weights:
            fixed = self.fixed.get("weights", {})
            options["weights"] = (
                dict.fromkeys(self.names, 1.0) | ({} if isinstance(fixed, str) else dict(fixed)) | weights
            )
        options.pop("method_options", None)
        return options | ({"method_options": own} if own else {}) | {"method": method}

    def record(self) -> dict[str, Any]:
        """The searched options as plain JSON."""
        return {dimension.name: dimension.record() for dimension in self.dimensions}


def space_of(search: Mapping[str, Any] | None, fixed: Mapping[str, Any], names: Sequence[str]) -> Space:
    """The search space, checked.

    Args:
        search: by option: bounds (low, high), or (low, high, "log" or "linear"); or a list of values. "weights" stands
            for the weight of every adapter, "weights.<name>" for that of one. None for `DEFAULT_SEARCH`.
        fixed: options of `merge` by name, `method` among them.
        names: the adapters.

    Raises:
        OptionError: an option is not known, does not go with the method or with another one, or its bounds are none.

    Example:
        >>> space = space_of({"scaling": (0.1, 2.0), "weights": (0.0, 2.0)}, {"method": "linear"}, ["math", "code"])
        >>> [(d.name, d.low, d.high, d.log) for d in space.dimensions]
        [('scaling', 0.1, 2.0, True), ('weights.math', 0.0, 2.0, False), ('weights.code', 0.0, 2.0, False)]
        >>> space.options({"scaling": 0.5, "weights.math": 0.8, "weights.code": 1.5})
        {'method': 'linear', 'scaling': 0.5, 'weights': {'math': 0.8, 'code': 1.5}}
    """
    fixed = {name: value for name, value in fixed.items() if value is not None}
    if isinstance(fixed.get("weights"), Sequence) and not isinstance(fixed["weights"], str):
        fixed["weights"] = _by_name(fixed["weights"], names)
    given = dict(_default_search(fixed) if search is None else search)
    methods = _methods(given, str(fixed["method"]))
    _check_fixed(fixed, methods)
    dimensions = [
        dimension
        for name in sorted(given, key=lambda name: name != "method")
        for dimension in _dimensions(name, given[name], given, methods, names)
    ]
    if not dimensions:
        raise OptionError("search is empty; name at least one option to search, such as scaling=(0.1, 2.0)")
    searched = {dimension.name for dimension in dimensions}
    if {"rank", "density"} <= searched | (set(fixed) & {"rank", "density"}) and searched & {"rank", "density"}:
        raise OptionError(
            "rank and density together, one of them searched: both set how many components are kept; leave one out"
        )
    if isinstance(fixed.get("weights"), str) and any(dimension.kind == "weight" for dimension in dimensions):
        lacking = [name for name in names if f"weights.{name}" not in searched]
        if lacking:
            raise OptionError(
                f"weights={fixed['weights']!r} with the weights of only some adapters searched; search those of "
                f"{lacking}, too, or give weights as numbers"
            )
    return Space(tuple(dimensions), fixed, tuple(names))


def has(method: str, dimension: Dimension) -> bool:
    """Whether a dimension means something to a method."""
    return dimension.name in _own(method) if dimension.kind == "own" else _applies(method, _option_of(dimension))


def kinds() -> dict[str, str]:
    """The options of `merge` that can be searched or fixed, each with its annotation."""
    from samerge.api import merge

    parameters = inspect.signature(merge).parameters
    return {name: str(p.annotation) for name, p in parameters.items() if name not in ("base", "adapters", "progress")}


def _option_of(dimension: Dimension) -> str:
    return "weights" if dimension.kind == "weight" else dimension.name


def _applies(method: str, option: str) -> bool:
    """Options that no line of the registry names mean something to every method."""
    return option in entry(method).uses or not any(option in line.uses for line in REGISTRY.values())


def _own(method: str) -> dict[str, Any]:
    parameters = entry(method).parameters
    return {} if parameters is None else defaults(parameters)


def _default_search(fixed: Mapping[str, Any]) -> dict[str, Any]:
    without = {"density"} if "rank" in fixed or not _applies(str(fixed["method"]), "density") else set()
    return {name: bounds for name, bounds in DEFAULT_SEARCH.items() if name not in without}


def _methods(given: Mapping[str, Any], fixed: str) -> tuple[str, ...]:
    methods = given.get("method", [fixed])
    if not isinstance(methods, list) or not methods:
        raise OptionError(f"search method={methods!r}: give a list of names, such as ['saliency', 'tsv']")
    for method in (*methods, fixed):
        entry(method)
    return tuple(methods)


def _by_name(weights: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    from samerge.inputs import weights_of

    return dict(zip(names, weights_of(weights, names), strict=True))


def _check_fixed(fixed: Mapping[str, Any], methods: Sequence[str]) -> None:
    known = kinds()
    for name in fixed:
        if name not in known:
            raise OptionError(f"samerge.tune: {_unknown(name, known)}")
        if not any(_applies(method, name) for method in (*methods, str(fixed["method"]))):
            raise OptionError(f"method={methods[0]!r} has no option {name!r} (given {name}={fixed[name]!r})")
    own = fixed.get("method_options", {})
    if not isinstance(own, Mapping):
        raise OptionError(f"method_options={own!r} must be a mapping of names to values")
    for name in own:
        if not any(name in _own(method) for method in (*methods, str(fixed["method"]))):
            raise OptionError(f"method_options: {', '.join(methods)} has no option {name!r} of its own")


def _dimensions(
    name: str, given: Any, search: Mapping[str, Any], methods: Sequence[str], names: Sequence[str]
) -> list[Dimension]:
    """The dimensions that one entry of `search` stands for."""
    words = isinstance(given, list) and not all(_is_number(value) for value in given)
    if name == "weights" and not words:
        single = [f"weights.{adapter}" for adapter in names if f"weights.{adapter}" not in search]
        return [_dimension(each, "weight", given, whole=False, log=False) for each in single]
    if name.startswith("weights."):
        if name.partition(".")[2] not in names:
            raise OptionError(f"search {name!r}: no adapter is called so; there are {list(names)}")
        return [_dimension(name, "weight", given, whole=False, log=False)]
    known = {option: kind for option, kind in kinds().items() if option not in _NOT_SEARCHED}
    if name in known:
        dimension = _dimension(name, "option", given, whole=known[name].startswith("int"), log=True)
    else:
        types = [type(_own(method)[name]) for method in methods if name in _own(method)]
        if not types:
            others = [option for method in methods for option in _own(method)]
            raise OptionError(f"search: {_unknown(name, [*known, *others])}")
        dimension = _dimension(name, "own", given, whole=types[0] is int, log=True)
    if not any(has(method, dimension) for method in methods):
        raise OptionError(f"search {name!r}: method={', '.join(methods)} has no such option; leave it out")
    return [dimension]


def _dimension(name: str, kind: Literal["option", "weight", "own"], given: Any, whole: bool, log: bool) -> Dimension:
    """One dimension from bounds or a list; `log`: on a log scale where the bounds are far apart."""
    if isinstance(given, list):
        if not given or not all(value is None or isinstance(value, (str, bool, int, float)) for value in given):
            raise OptionError(f"search {name}={given!r}: a list must hold words, numbers, True, False or None")
        return Dimension(name, kind, choices=tuple(dict.fromkeys(given)))
    bounds = tuple(given) if isinstance(given, tuple) else ()
    scale = bounds[2] if len(bounds) == 3 else None
    if len(bounds) not in (2, 3) or not all(_is_number(value) for value in bounds[:2]) or not bounds[0] < bounds[1]:
        raise OptionError(
            f"search {name}={given!r}: give bounds (low, high) with low < high, or (low, high, 'log'), or a list of "
            f"values"
        )
    if scale not in (None, "log", "linear"):
        raise OptionError(f"search {name}={given!r}: the scale must be 'log' or 'linear'")
    low, high = bounds[:2]
    if whole and (int(low) != low or int(high) != high):
        raise OptionError(f"search {name}={given!r}: it takes whole numbers, and so must its bounds be")
    if scale == "log" and low <= 0:
        raise OptionError(f"search {name}={given!r}: a log scale needs bounds above 0")
    wide = log and low > 0 and high / low >= _LOG_RATIO
    return Dimension(name, kind, float(low), float(high), whole, scale == "log" or (wide and scale is None))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _unknown(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; there are {list(known)}")
