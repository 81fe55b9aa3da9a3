"""Dimensions of a search: one searched option each, from the bounds or the list that the caller gives for it."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from samerge.errors import OptionError
from samerge.methods.chain import Chain
from samerge.methods.parameters import defaults
from samerge.options.values import auto_factor

#: Options that name the links of the chain; they decide which others there are.
LINKS = ("method", "selection", "aggregation", "recipe")

#: Options that no chain lists, or not it alone: every merge has weights; `basis` depends on weights and scaling, too,
#: and `space.Space` asks at every point.
_ALWAYS = frozenset({"weights", "basis", "method_options", *LINKS})

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


def dimensions_of(
    name: str, given: Any, search: Mapping[str, Any], links: Sequence[Chain], names: Sequence[str]
) -> list[Dimension]:
    """The dimensions that one entry of `search` stands for.

    Args:
        name: of the option: one of `merge`, one of a method's own, "weights" or "weights.<adapter>".
        given: its bounds, or a list of values.
        search: all entries; "weights" stands for those adapters that none names.
        links: the chains that trials may have.
        names: the adapters.

    Raises:
        OptionError: the option is not known or means nothing to any of the chains, or the bounds are none.
    """
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
        types = [type(own_options(one)[name]) for one in links if name in own_options(one)]
        if not types:
            others = [option for one in links for option in own_options(one)]
            raise OptionError(f"search: {unknown(name, [*known, *others])}")
        dimension = _dimension(name, "own", given, whole=types[0] is int, log=True)
    if not any(has(one, dimension) for one in links):
        if not any(one.linked for one in links):
            raise OptionError(f"search {name!r}: {links[0].refusal(name, name)}")
        raise OptionError(f"search {name!r}: {names_of(links)} has no such option; leave it out")
    return [dimension]


def has(links: Chain, dimension: Dimension) -> bool:
    """Whether a dimension means something to a chain."""
    return dimension.name in own_options(links) if dimension.kind == "own" else applies(links, _option_of(dimension))


def kinds() -> dict[str, str]:
    """The options of `merge` that can be searched or fixed, each with its annotation."""
    from samerge.merging.merge_adapters import merge

    parameters = inspect.signature(merge).parameters
    return {name: str(p.annotation) for name, p in parameters.items() if name not in ("base", "adapters", "progress")}


def _option_of(dimension: Dimension) -> str:
    return "weights" if dimension.kind == "weight" else dimension.name


def applies(links: Chain, option: str) -> bool:
    """Whether an option of `merge` means something to a chain."""
    return option in _ALWAYS or option in links.uses()


def own_options(links: Chain) -> dict[str, Any]:
    """The aggregation's own options; after a selection its density is one of them."""
    parameters = {} if links.entry.parameters is None else defaults(links.entry.parameters)
    return parameters | ({"density": 1.0} if links.selects and "density" in links.entry.uses else {})


def names_of(links: Sequence[Chain]) -> str:
    """How chains are named, each once, for messages."""
    return ", ".join(dict.fromkeys(one.told for one in links))


def unknown(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """That there is no option of this name, and which one may be meant."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"there is no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; there are {list(known)}")


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
