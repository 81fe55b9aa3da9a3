"""What a search varies: options of a merge by name, each between bounds or from a list."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samerge.errors import OptionError
from samerge.merging.inputs import weights_of
from samerge.merging.plan import DEFAULT_METHOD, Plan, named_once, plan
from samerge.methods.registry import find
from samerge.options.common import CommonOptions
from samerge.options.kinds import Kind, check_number, real
from samerge.options.option import Option, table, unknown

#: What is searched where nothing is named; `density` only where the method has one and no rank is given.
DEFAULT_SEARCH: Mapping[str, tuple[float, float]] = {
    "scaling": (0.1, 2.0),
    "density": (0.05, 1.0),
    "weights": (0.0, 2.0),
}
#: Bounds that are this far apart, as a ratio, are searched on a log scale, unless they are weights.
_LOG_RATIO = 10.0


@dataclass(frozen=True)
class Space:
    """What is searched, and what stays as it is.

    Args:
        search: by option, the method first: a list of values, or `low`, `high`, `whole` and `log`.
        fixed: the other keyword arguments of `merge`; where one is searched, too, it is the untuned value.
        names: the adapters.
    """

    search: Mapping[str, Any]
    fixed: Mapping[str, Any]
    names: tuple[str, ...]

    def suggest(self, trial: Any) -> dict[str, Any]:
        """A point, from a trial of optuna's: a value for each searched option that its method has."""
        values: dict[str, Any] = {}
        for name, given in self.search.items():
            if not _has(values.get("method", self.fixed.get("method")), name):
                continue
            if isinstance(given, list):
                values[name] = trial.suggest_categorical(name, given)
            else:
                kind = trial.suggest_int if given["whole"] else trial.suggest_float
                values[name] = kind(name, given["low"], given["high"], log=given["log"])
        return values

    def options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of `merge` at a point; of the fixed ones those that its method has.

        Args:
            values: by searched option; none for the untuned merge.
        """
        method = values.get("method", self.fixed.get("method"))
        found = {name: value for name, value in self.fixed.items() if _has(method, name)}
        found |= {name: value for name, value in values.items() if not name.startswith("weights.")}
        searched = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("weights.")}
        if searched:
            own = self.fixed.get("weights")
            rest = weights_of(None if isinstance(own, str) else own, self.names)
            found["weights"] = dict(zip(self.names, rest, strict=True)) | searched
        return {name: value for name, value in found.items() if value is not None}

    def record(self) -> dict[str, Any]:
        """The searched options as plain JSON."""
        return dict(self.search)


def space_of(search: Mapping[str, Any] | None, fixed: Mapping[str, Any], names: Sequence[str]) -> Space:
    """The search space, checked.

    Args:
        search: by option: a pair of bounds, or a list of values. "weights" stands for the weight of every adapter,
            "weights.<name>" for that of one. None for `DEFAULT_SEARCH`.
        fixed: keyword arguments of `merge`; None means not given.
        names: the adapters.

    Raises:
        OptionError: an option is not known, its bounds are none, or the untuned merge is not possible.

    Example:
        >>> space = space_of({"scaling": (0.1, 2.0), "weights": [0.5, 1]}, {"method": "linear"}, ["math", "code"])
        >>> space.search["scaling"], space.search["weights.code"]
        ({'low': 0.1, 'high': 2.0, 'whole': False, 'log': True}, [0.5, 1.0])
        >>> space.options({"scaling": 0.5, "weights.math": 0.8, "weights.code": 1.5})
        {'method': 'linear', 'scaling': 0.5, 'weights': {'math': 0.8, 'code': 1.5}}
    """
    fixed = named_once({name: value for name, value in fixed.items() if value is not None})
    method = fixed.get("method")
    if search is None:
        without = "density" if "rank" in fixed or not _has(method, "density") else None
        search = {name: bounds for name, bounds in DEFAULT_SEARCH.items() if name != without}
    if not search:
        raise OptionError("search is empty; name at least one option to search, such as scaling=(0.1, 2.0)")
    others = search.get("method", [])
    if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
        raise OptionError(f"searching the method: {others!r} is no list of names, such as ['saliency', 'tsv']")
    rows = {row.name: row for other in (method, *others) for row in _rows(other)}
    for name in fixed:
        if name not in rows:
            raise unknown(name, rows, "the merge that is tuned")
    found: dict[str, Any] = {"method": others} if others else {}
    for name, given in search.items():
        for single in _single(name, search, names):
            if single not in rows and not single.startswith("weights."):
                raise unknown(single, rows, "search: the merge that is tuned")
            if single != "method":
                found[single] = _checked(single, given, rows)
    lacking = [name for name in names if f"weights.{name}" not in found]
    if isinstance(fixed.get("weights"), str) and 0 < len(lacking) < len(names):
        raise OptionError(
            f"weights={fixed['weights']!r} with the weights of only some adapters searched; search those of {lacking}, "
            f"too, or give weights as numbers"
        )
    space = Space(found, fixed, tuple(names))
    planned(space.options({}))
    return space


def planned(options: Mapping[str, Any]) -> Plan:
    """The plan of a merge from its keyword arguments."""
    rest = {name: value for name, value in options.items() if name not in ("method", "weights")}
    return plan(options.get("method"), rest, options.get("weights"))


def _single(name: str, search: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The options that one entry of a search stands for."""
    if name == "weights":
        return [f"weights.{adapter}" for adapter in names if f"weights.{adapter}" not in search]
    if name.startswith("weights.") and name.partition(".")[2] not in names:
        raise OptionError(f"search {name!r}: no adapter is called so; there are {', '.join(names)}")
    return [name]


def _checked(name: str, given: Any, rows: Mapping[str, Option]) -> Any:
    """The values or bounds of one option, as they are recorded."""
    kind = real() if name.startswith("weights.") else rows[name].kind
    if isinstance(given, list) and given:
        return [None if value is None or value == "none" else _choice(name, kind, value) for value in given]
    if not isinstance(given, tuple) or len(given) != 2:
        raise OptionError(f"searching {name}: {given!r} is neither a pair of bounds (low, high) nor a list of values")
    low, high = (kind.read(name, check_number(name, value)) for value in given)
    if not low < high:
        raise OptionError(f"searching {name}: the lower bound, {low:g}, must be below the upper one, {high:g}")
    log = low > 0 and high / low >= _LOG_RATIO and not name.startswith("weights.")
    return {"low": low, "high": high, "whole": kind.annotation == "int", "log": log}


def _choice(name: str, kind: Kind, value: Any) -> Any:
    """One of several values, as it is recorded: plain, or the text that stands for it."""
    found = kind.read(name, value)
    if isinstance(found, (bool, int, float, str)):
        return found
    if isinstance(value, (str, os.PathLike)):
        return str(value)
    raise OptionError(f"searching {name}: {type(value).__name__} cannot be recorded; search values that are text")


def _rows(method: str | None) -> tuple[Option, ...]:
    """The options of a merge by a method, those that only `merge` itself reads among them."""
    same = next(row for row in table(CommonOptions) if row.name == "rank")
    by_name = [Option(name, same.kind, None, "") for name in ("method", "weights", "svd_rank")]
    return (*by_name, *table(CommonOptions), *table(find(method or DEFAULT_METHOD).options))


def _has(method: str | None, name: str) -> bool:
    """Whether an option means something to a method."""
    return name.startswith("weights.") or name in {row.name for row in _rows(method)}
