"""The search space: which options of a merge are searched, between what bounds, and what a point in it stands for."""

from __future__ import annotations

import difflib
import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from samerge.errors import OptionError
from samerge.methods import entry
from samerge.methods.chain import Chain, chain
from samerge.methods.parameters import defaults
from samerge.options import INTERFERENCE, auto_factor

#: What is searched unless the caller says otherwise; density only where the method has one.
DEFAULT_SEARCH: Mapping[str, Any] = {"scaling": (0.1, 2.0), "density": (0.05, 1.0), "weights": (0.0, 2.0)}

#: Options that name the links of the chain; they decide which others there are.
_LINKS = ("method", "selection", "aggregation", "recipe")

#: Options that no chain lists: every merge has weights; `basis` depends on how weights and scaling are found.
_ALWAYS = frozenset({"weights", "basis", "method_options", *_LINKS})

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
        prefix: what stands before the number in the option: "auto:" of "auto:1.3".
    """

    name: str
    kind: Literal["option", "weight", "own"]
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    choices: tuple[Value, ...] | None = None
    prefix: str = ""

    def option(self, value: Value) -> Value:
        """The option's value from the optimiser's."""
        return f"{self.prefix}{value!r}" if self.prefix else value

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
        bounds = {"low": self.low, "high": self.high, "whole": self.whole, "log": self.log}
        return bounds | ({"prefix": self.prefix} if self.prefix else {})


@dataclass(frozen=True)
class Space:
    """What is searched and what is fixed.

    Args:
        dimensions: the searched options, those first that name links of the chain.
        fixed: options of `merge` that were given; where one is searched, too, it is the untuned value.
        names: the adapters.
    """

    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, Any] = field(repr=False)
    names: tuple[str, ...]

    def suggest(self, trial: Suggests) -> dict[str, Value]:
        """A point: a value for every dimension that means something to the chain of the point."""
        values: dict[str, Value] = {}
        for dimension in self.dimensions:
            if dimension.name in _LINKS or has(_chain(self.fixed, values), dimension):
                values[dimension.name] = dimension.suggest(trial)
        return values

    def options(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """The keyword arguments of `merge` at a point; {} is the untuned merge."""
        links = _chain(self.fixed, values)
        given = {d.name: (d, d.option(values[d.name])) for d in self.dimensions if d.name in values}
        options = {name: value for name, value in self.fixed.items() if _applies(links, name)}
        own = {name: value for name, value in options.pop("method_options", {}).items() if name in _own(links)}
        own |= {name: value for name, (dimension, value) in given.items() if dimension.kind == "own"}
        options |= {name: value for name, (dimension, value) in given.items() if dimension.kind == "option"}
        weights = {name.partition(".")[2]: value for name, (d, value) in given.items() if d.kind == "weight"}
        if weights:
            fixed = self.fixed.get("weights", {})
            options["weights"] = (
                dict.fromkeys(self.names, 1.0) | ({} if isinstance(fixed, str) else dict(fixed)) | weights
            )
        return options | ({"method_options": own} if own else {})

    def given(self) -> dict[str, Any]:
        """The fixed options, with the recipe that the untuned merge is where they name no method or the like."""
        recipe = _chain(self.fixed, {}).recipe
        return {**self.fixed, **({} if recipe is None else {"recipe": recipe})}

    def record(self) -> dict[str, Any]:
        """The searched options as plain JSON."""
        return {dimension.name: dimension.record() for dimension in self.dimensions}


def space_of(search: Mapping[str, Any] | None, fixed: Mapping[str, Any], names: Sequence[str]) -> Space:
    """The search space, checked.

    Args:
        search: by option: bounds (low, high), or (low, high, "log" or "linear"); or a list of values. Bounds of scaling
            may be ("auto:0.5", "auto:3"). "weights" stands for the weight of every adapter, "weights.<name>" for that
            of one. None for `DEFAULT_SEARCH`.
        fixed: options of `merge` by name; None means not given.
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
    links = _chains(search or {}, fixed)
    given = dict(_default_search(fixed, links[0]) if search is None else search)
    _check_fixed(fixed, links)
    _check_basis(fixed, given, links)
    dimensions = [
        dimension
        for name in sorted(given, key=lambda name: _LINKS.index(name) if name in _LINKS else len(_LINKS))
        for dimension in _dimensions(name, given[name], given, links, names)
    ]
    if not dimensions:
        raise OptionError("search is empty; name at least one option to search, such as scaling=(0.1, 2.0)")
    searched = {dimension.name for dimension in dimensions}
    together = {"rank", "density"} <= searched | set(fixed) and searched & {"rank", "density"}
    if together and all(one.counts for one in links):
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


def has(links: Chain, dimension: Dimension) -> bool:
    """Whether a dimension means something to a chain."""
    return dimension.name in _own(links) if dimension.kind == "own" else _applies(links, _option_of(dimension))


def kinds() -> dict[str, str]:
    """The options of `merge` that can be searched or fixed, each with its annotation."""
    from samerge.api import merge

    parameters = inspect.signature(merge).parameters
    return {name: str(p.annotation) for name, p in parameters.items() if name not in ("base", "adapters", "progress")}


def _option_of(dimension: Dimension) -> str:
    return "weights" if dimension.kind == "weight" else dimension.name


def _applies(links: Chain, option: str) -> bool:
    return option in _ALWAYS or option in links.uses()


def _own(links: Chain) -> dict[str, Any]:
    """The aggregation's own options; after a selection its density is one of them."""
    parameters = {} if links.entry.parameters is None else defaults(links.entry.parameters)
    return parameters | ({"density": 1.0} if links.selects and "density" in links.entry.uses else {})


def _chain(fixed: Mapping[str, Any], values: Mapping[str, Any]) -> Chain:
    """The chain of a point."""
    return chain(*(values.get(name, fixed.get(name)) for name in _LINKS))


def _chains(search: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[Chain]:
    """The untuned chain, then all others that a trial may have. Names that do not go together are left to fail there.

    Raises:
        OptionError: a link is no list of names, or a name is not known.
    """
    choices: list[list[Any]] = []
    for link in _LINKS:
        names = search.get(link, [fixed.get(link)])
        if not isinstance(names, list) or not names:
            raise OptionError(f"search {link}={names!r}: give a list of names, such as ['saliency', 'tsv']")
        choices.append(names)
    for method in choices[0]:
        if method is not None:
            entry(method)
    found = [_chain(fixed, {})]
    for names in itertools.product(*choices):
        with suppress(OptionError):
            found.append(chain(*names))
    return found


def _default_search(fixed: Mapping[str, Any], links: Chain) -> dict[str, Any]:
    without = {"density"} if not _applies(links, "density") or ("rank" in fixed and links.counts) else set()
    return {name: bounds for name, bounds in DEFAULT_SEARCH.items() if name not in without}


def _by_name(weights: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    from samerge.inputs import weights_of

    return dict(zip(names, weights_of(weights, names), strict=True))


def _check_fixed(fixed: Mapping[str, Any], links: Sequence[Chain]) -> None:
    known = kinds()
    for name in fixed:
        if name not in known:
            raise OptionError(f"samerge.tune: {_unknown(name, known)}")
        if not any(_applies(one, name) for one in links):
            raise OptionError(links[0].refusal(name, f"{name}={fixed[name]!r}"))
    own = fixed.get("method_options", {})
    if not isinstance(own, Mapping):
        raise OptionError(f"method_options={own!r} must be a mapping of names to values")
    for name in own:
        if not any(name in _own(one) for one in links):
            raise OptionError(f"method_options: {_names(links)} has no option {name!r} of its own")


def _check_basis(fixed: Mapping[str, Any], search: Mapping[str, Any], links: Sequence[Chain]) -> None:
    """Refuse `basis` where no trial has one: by a selection, or for weights or a scaling found from experts' inputs."""
    measured = any(
        value in rules
        for option, rules in (("weights", ("auto",)), ("scaling", INTERFERENCE))
        for value in (fixed.get(option), *(search[option] if isinstance(search.get(option), list) else ()))
    )
    if measured or any("basis" in one.uses() for one in links):
        return
    if "basis" in fixed:
        raise OptionError(links[0].refusal("basis", f"basis={fixed['basis']!r}"))
    if "basis" in search:
        raise OptionError(f"search 'basis': {links[0].refusal('basis', 'basis')}")


def _names(links: Sequence[Chain]) -> str:
    return ", ".join(dict.fromkeys(one.name for one in links))


def _dimensions(
    name: str, given: Any, search: Mapping[str, Any], links: Sequence[Chain], names: Sequence[str]
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
        types = [type(_own(one)[name]) for one in links if name in _own(one)]
        if not types:
            others = [option for one in links for option in _own(one)]
            raise OptionError(f"search: {_unknown(name, [*known, *others])}")
        dimension = _dimension(name, "own", given, whole=types[0] is int, log=True)
    if not any(has(one, dimension) for one in links):
        if not any(one.linked for one in links):
            raise OptionError(f"search {name!r}: {links[0].refusal(name, name)}")
        raise OptionError(f"search {name!r}: method={_names(links)} has no such option; leave it out")
    return [dimension]


def _dimension(name: str, kind: Literal["option", "weight", "own"], given: Any, whole: bool, log: bool) -> Dimension:
    """One dimension from bounds or a list; `log`: on a log scale where the bounds are far apart."""
    if isinstance(given, list):
        if not given or not all(value is None or isinstance(value, (str, bool, int, float)) for value in given):
            raise OptionError(f"search {name}={given!r}: a list must hold words, numbers, True, False or None")
        return Dimension(name, kind, choices=tuple(dict.fromkeys(given)))
    bounds = tuple(given) if isinstance(given, tuple) else ()
    prefix = ""
    if name == "scaling" and len(bounds) >= 2 and all(str(bound).startswith("auto:") for bound in bounds[:2]):
        prefix, bounds = "auto:", (*(auto_factor(bound) for bound in bounds[:2]), *bounds[2:])
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
    return Dimension(
        name, kind, float(low), float(high), whole, scale == "log" or (wide and scale is None), prefix=prefix
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _unknown(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; there are {list(known)}")
