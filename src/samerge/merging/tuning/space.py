"""The search space: which options of a merge are searched, between what bounds, and what a point in it stands for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from samerge.errors import OptionError
from samerge.merging.comparison import planned
from samerge.merging.tuning.dimensions import (
    LINKS,
    Dimension,
    Suggests,
    Value,
    applies,
    dimensions_of,
    has,
    kinds,
    names_of,
    own_options,
    unknown,
)
from samerge.methods import entry
from samerge.methods.chain import Chain, chain
from samerge.options.values import INTERFERENCE

#: What is searched unless the caller says otherwise; density only where the method has one.
DEFAULT_SEARCH: Mapping[str, Any] = {"scaling": (0.1, 2.0), "density": (0.05, 1.0), "weights": (0.0, 2.0)}

#: The values of options that are found from the experts' inputs.
_MEASURED: Mapping[str, tuple[str, ...]] = {"weights": ("auto",), "scaling": INTERFERENCE}


@dataclass(frozen=True)
class Space:
    """What is searched and what is fixed.

    Args:
        dimensions: the searched options, those first that name links of the chain, and `basis` last.
        fixed: options of `merge` that were given; where one is searched, too, it is the untuned value.
        names: the adapters.
        needs_base: whether every trial, whatever its chain, reads the base's weights.
    """

    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, Any] = field(repr=False)
    names: tuple[str, ...]
    needs_base: bool

    def suggest(self, trial: Suggests) -> dict[str, Value]:
        """A point: a value for every dimension that means something to the chain of the point."""
        values: dict[str, Value] = {}
        for dimension in self.dimensions:
            if dimension.name in LINKS or self._has(values, dimension):
                values[dimension.name] = dimension.suggest(trial)
        return values

    def _has(self, values: Mapping[str, Value], dimension: Dimension) -> bool:
        """Whether a dimension means something at a point whose links, and for `basis` all else, are known."""
        links = _chain(self.fixed, values)
        return _has_basis(links, self.options(values)) if dimension.name == "basis" else has(links, dimension)

    def options(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """The keyword arguments of `merge` at a point; {} is the untuned merge."""
        links = _chain(self.fixed, values)
        given = {d.name: (d, d.option(values[d.name])) for d in self.dimensions if d.name in values}
        options = {name: value for name, value in self.fixed.items() if applies(links, name)}
        own = {name: value for name, value in options.pop("method_options", {}).items() if name in own_options(links)}
        own |= {name: value for name, (dimension, value) in given.items() if dimension.kind == "own"}
        options |= {name: value for name, (dimension, value) in given.items() if dimension.kind == "option"}
        weights = {name.partition(".")[2]: value for name, (d, value) in given.items() if d.kind == "weight"}
        if weights:
            fixed = self.fixed.get("weights", {})
            options["weights"] = (
                dict.fromkeys(self.names, 1.0) | ({} if isinstance(fixed, str) else dict(fixed)) | weights
            )
        if not _has_basis(links, options):
            options.pop("basis", None)
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
        for name in sorted(given, key=_place)
        for dimension in dimensions_of(name, given[name], given, links, names)
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
    space = Space(tuple(dimensions), fixed, tuple(names), all(one.needs_base for one in links))
    _check_values(space)
    return space


def _place(name: str) -> int:
    """Where an option stands in the order in which those of a point are suggested: each after those it depends on."""
    return LINKS.index(name) if name in LINKS else len(LINKS) + (name == "basis")


def _has_basis(links: Chain, options: Mapping[str, Any]) -> bool:
    """Whether a merge has a basis: by its selection, or by weights or a scaling found from the experts' inputs."""
    return "basis" in links.uses() or any(_measured(name, options.get(name)) for name in _MEASURED)


def _measured(option: str, value: Any) -> bool:
    """Whether a value of "weights" or "scaling" is found from the experts' inputs, which have a basis."""
    return isinstance(value, str) and value in _MEASURED[option]


def _chain(fixed: Mapping[str, Any], values: Mapping[str, Any]) -> Chain:
    """The chain of a point."""
    return chain(*(values.get(name, fixed.get(name)) for name in LINKS))


def _chains(search: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[Chain]:
    """The untuned chain, then all others that a trial may have. Names that do not go together are left to fail there.

    Raises:
        OptionError: a link is no list of names, or a name is not known.
    """
    choices: list[list[Any]] = []
    for link in LINKS:
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
    without = {"density"} if not applies(links, "density") or ("rank" in fixed and links.counts) else set()
    return {name: bounds for name, bounds in DEFAULT_SEARCH.items() if name not in without}


def _by_name(weights: Sequence[float], names: Sequence[str]) -> dict[str, float]:
    from samerge.merging.inputs import weights_of

    return dict(zip(names, weights_of(weights, names), strict=True))


def _check_fixed(fixed: Mapping[str, Any], links: Sequence[Chain]) -> None:
    known = kinds()
    for name in fixed:
        if name not in known:
            raise OptionError(f"samerge.tune: {unknown(name, known)}")
        if not any(applies(one, name) for one in links):
            raise OptionError(links[0].refusal(name, f"{name}={fixed[name]!r}"))
    own = fixed.get("method_options", {})
    if not isinstance(own, Mapping):
        raise OptionError(f"method_options={own!r} must be a mapping of names to values")
    for name in own:
        if not any(name in own_options(one) for one in links):
            raise OptionError(f"method_options: {names_of(links)} has no option {name!r} of its own")


def _check_values(space: Space) -> None:
    """Refuse fixed options with which no trial can be merged: the untuned merge cannot, nor points all over the space.

    Raises:
        OptionError: of the untuned merge.
    """
    refused: OptionError | None = None
    count = max((len(d.choices or ()) for d in space.dimensions), default=0)
    for place in (None, *range(max(count, 2))):
        try:
            options = space.options({} if place is None else space.suggest(_Place(place)))
            planned(options, options.get("weights"))
        except OptionError as error:
            refused = refused or error
        else:
            return
    if refused is not None:
        raise refused


@dataclass(frozen=True)
class _Place:
    """Suggests the value at some place of every list, and the lower or the upper bound of all else."""

    place: int

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return high if self.place % 2 else low

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return high if self.place % 2 else low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return choices[self.place % len(choices)]


def _check_basis(fixed: Mapping[str, Any], search: Mapping[str, Any], links: Sequence[Chain]) -> None:
    """Refuse `basis` where no trial has one."""
    lists = {option: search[option] if isinstance(search.get(option), list) else [] for option in _MEASURED}
    given = [(option, value) for option in _MEASURED for value in (fixed.get(option), *lists[option])]
    if any(_measured(*each) for each in given) or any("basis" in one.uses() for one in links):
        return
    if "basis" in fixed:
        raise OptionError(links[0].refusal("basis", f"basis={fixed['basis']!r}"))
    if "basis" in search:
        raise OptionError(f"search 'basis': {links[0].refusal('basis', 'basis')}")
