"""The plan of a merge: the method and all its options, filled in and checked, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from samerge.errors import OptionError
from samerge.methods.method import Method
from samerge.methods.registry import found
from samerge.options.common import CommonOptions
from samerge.options.option import Options, filled, table, unknown

#: The method where none is named, and the one that stands in for it where no base, or one of no known family, is there.
DEFAULT_METHOD, WITHOUT_BASE = "saliency", "even"

#: Other names of common options.
_SYNONYMS: Mapping[str, str] = {"svd_rank": "rank"}

Weights = Mapping[str, float] | Sequence[float] | str | None


@dataclass(frozen=True)
class Plan:
    """What a merge does.

    Args:
        method: how to merge.
        common: the options that every method has, `scaling` and `balance` filled in.
        own: the method's own options.
        weights: as the caller gave them.
        named: whether the caller named the method.
        note: why another method than the default was taken; empty where that was not so.
    """

    method: Method
    common: CommonOptions
    own: Options
    weights: Weights = None
    named: bool = True
    note: str = ""

    @property
    def scaling(self) -> float | str:
        """The strength of the merged update."""
        assert self.common.scaling is not None
        return self.common.scaling

    def record(self) -> dict[str, Any]:
        """All options as plain JSON values."""
        rule = {"weights": self.weights} if isinstance(self.weights, str) else {}
        return {**rule, **self.common.record(), **self.own.record()}

    def without_base(self, why: str) -> Plan | None:
        """The plan that stands in for the default where there is no gamma; None where the caller asked for gamma.

        Args:
            why: there is none, and what would bring it.
        """
        if self.named or self.method.name != DEFAULT_METHOD:
            return None
        other, _ = found(WITHOUT_BASE)
        known = {row.name for row in table(other.options)}
        given = {row.name for row in table(self.method.options) if getattr(self.own, row.name) != row.default}
        if given - known:
            return None
        own = filled(other.options, {name: getattr(self.own, name) for name in known})
        return replace(self, method=other, own=own, note=why)


def plan(method: str | None, options: Mapping[str, Any], weights: Weights = None) -> Plan:
    """A plan from what the caller gave.

    Args:
        method: its name, or another's name for it; None for the default.
        options: by name; None means not given.
        weights: as `merge` takes them.

    Raises:
        OptionError: the method or an option is not known, is out of its range, or does not go with another.

    Example:
        >>> plan("ties", {"density": "0.3", "svd_rank": 8.0}).record()["rank"]
        8
    """
    chosen, implied = found(DEFAULT_METHOD if method is None else method)
    given = named_once({**implied, **{name: value for name, value in options.items() if value is not None}})
    common_names = [row.name for row in table(CommonOptions)]
    own_names = [row.name for row in table(chosen.options)]
    for name in given:
        if name not in (*common_names, *own_names):
            raise unknown(name, [*own_names, *common_names], f"method {chosen.name!r}")
    common = filled(CommonOptions, {name: value for name, value in given.items() if name not in own_names})
    if common.scaling is None:
        common = replace(common, scaling=chosen.scaling)
    if common.balance is None:
        common = replace(common, balance=chosen.balance)
    own = filled(chosen.options, {name: value for name, value in given.items() if name in own_names})
    if (
        common.rank is not None
        and getattr(own, "density", None) is not None
        and chooses_by_rank(chosen)
        and "density" in given
    ):
        raise OptionError(
            f"rank={common.rank} and density={given['density']!r} together: with method {chosen.name!r} both say how "
            f"many components are kept; give one"
        )
    return Plan(chosen, common, own, weights, method is not None)


def chooses_by_rank(method: Method) -> bool:
    """Whether it keeps `rank` of all components, or as many as its density says in place of it."""
    return any(row.name == "density" and row.default is None for row in table(method.options))


def named_once(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options by their own names."""
    result: dict[str, Any] = {}
    for name, value in given.items():
        own = _SYNONYMS.get(name, name)
        if own != name and value == "none":
            continue  # as if it were not given
        if own in result:
            raise OptionError(f"{own} and {name} are the same option ({own} is the rank of the result); give one")
        result[own] = value
    return result
