"""A merge as a chain of named links, each an option:

    balance -> selection -> aggregation -> truncation -> spectrum -> scaling

The first two map a problem to a problem, the aggregation (any method of the registry) maps a problem to an outcome, and
the last three work on the outcome (`samerge.merging.finish`). No link knows the others.

`method` names one link: `saliency` the selection of this name, every other method the aggregation of its name. A link
that nobody names is "none" (selection) or "sum" (aggregation). So method="saliency" is selection="saliency" with
aggregation="sum", and method="tsv" is aggregation="tsv" without a selection. A recipe names links, too; where it names
neither of the two, the merge is `saliency`. Where nothing is named at all, it is the recipe `DEFAULT_RECIPE`, and
options of a selection are refused, since nobody asked for one. A link that is named twice, differently, is an error.

Options of a chain with a selection: `density` (and `iterations`, `basis`, `scope`, ...) are the selection's; the
aggregation's own density, where it has one, is `method_options={"density": ...}`. `rank` is the rank of the result in
every chain. A selection before the sum reaches it by the number of components that it keeps; any other chain is
truncated to it, so that there `rank` and `density` go together. Without a density, the rank of a chain with a selection
is the largest source rank.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from samerge.errors import OptionError
from samerge.methods import REGISTRY, entry
from samerge.methods.balance import balance
from samerge.methods.criteria import AGREE, READ_BASE, kind_of
from samerge.methods.parameters import parameters_of
from samerge.methods.problem import Entry, MergedLayer, Outcome, Problem, Site
from samerge.methods.saliency import Selected, select
from samerge.options.merge_options import DEFAULT_RECIPE, RECIPES, MergeOptions, resolve
from samerge.options.values import INTERFERENCE, choice, whole
from samerge.parallel.processes import group

#: Share of its components that every expert keeps before another aggregation than the sum, by default.
LIGHT_DENSITY = 0.75

#: The aggregations that are the exact sum.
SUMS = frozenset({"sum", "linear", "cat"})

#: Options that mean something in every chain.
_COMMON = frozenset(
    {"selection", "aggregation", "balance", "spectrum", "scaling", "svd_rank"}
    | {"dtype", "device", "modules_to_save", "dora"}
)
#: Options of what comes after a selection; selections that differ in these alone are the same.
_AFTER = frozenset(
    {"method", "recipe", "aggregation", "aggregation_density", "method_options", "spectrum", "scaling", "svd_rank"}
    | {"dtype", "modules_to_save", "fit", "unused"}
)


@dataclass
class Shared:
    """What several merges of the same experts and base have in common, so that it is computed once.

    Args:
        selections: by all that they depend on.
        converted: sites whose DoRA modules were converted, with what that lost; likewise.
    """

    selections: dict[Hashable, Selected] = field(default_factory=dict)
    converted: dict[Hashable, tuple[tuple[Site, ...], Mapping[str, Mapping[str, float]]]] = field(default_factory=dict)


_SELECTING = frozenset({"rank", "density", "iterations", "basis", "scope"})
#: Those of them, and of selections that read the base, that say nothing where nothing is selected.
_OF_A_SELECTION = (_SELECTING - {"rank"}) | {"connectivity", "residual", "refresh", "precision", "agreement"}


@dataclass(frozen=True)
class Chain:
    """The links that depend on the method.

    Args:
        name: what the chain is called: a method's name, or both links' names with a plus.
        selection: a criterion, "random:<seed>", or "none".
        aggregation: a method's name, or "sum".
        recipe: the named set of defaults.
        named: whether the caller named any of these; otherwise it is the default merge.
        linked: whether the caller named a link, by its method, selection or aggregation, and not a recipe alone.
    """

    name: str
    selection: str
    aggregation: str
    recipe: str | None
    named: bool = True
    linked: bool = True

    @property
    def selects(self) -> bool:
        """Whether there is a selection."""
        return self.selection != "none"

    @property
    def told(self) -> str:
        """How a caller names it, for messages: by a method, or by a selection that is none."""
        if self.name in REGISTRY:
            return f"method={self.name!r}"
        return f"selection={self.selection!r}" + (
            "" if self.aggregation in SUMS else f" with aggregation={self.aggregation!r}"
        )

    @property
    def entry(self) -> Entry:
        """The aggregation's line of the registry."""
        return entry("linear" if self.aggregation == "sum" else self.aggregation)

    @property
    def needs_base(self) -> bool:
        """Whether the base's weights are read."""
        return self.entry.needs_base or kind_of(self.selection) in READ_BASE

    @property
    def by_site(self) -> bool:
        """Whether every site is merged by itself, so that several processes can share the sites out."""
        return self.entry.by_site

    @property
    def counts(self) -> bool:
        """Whether `rank` is reached by choosing as many components, rather than by truncation."""
        return self.aggregation in SUMS if self.selects else self.entry.counts

    def uses(self) -> frozenset[str]:
        """The options that mean something here."""
        used = _COMMON | (self.entry.uses - ({"density"} if self.selects else set()))
        if self.selects:
            used |= _SELECTING
            if kind_of(self.selection) in READ_BASE:
                used |= {"connectivity", "residual", "recipe", "refresh", "precision"}
            if kind_of(self.selection) in AGREE:
                used |= {"agreement"}
        used |= {"rank", "recipe"} if RECIPES.get(self.recipe or "", {}).get("fit") else set()
        return used if self.named else used - _OF_A_SELECTION  # `density` might be meant for either link

    def refusal(self, name: str, given: str) -> str:
        """Why an option that means nothing here is refused, with the way out.

        Args:
            name: of the option.
            given: how it was given, such as "density=0.5".
        """
        if not self.linked and not self.selects and name in _OF_A_SELECTION:
            return (
                f"{given} is for merges that select components, and the default, recipe={self.recipe!r}, selects none: "
                f"name the one that does, with method='saliency' (--method saliency; combination_type='saliency' on a "
                f"live model), or leave {name} out"
            )
        return f"{self.told} has no option {name!r} (given {given}); leave it out"

    def options(
        self, given: Mapping[str, Any], method_options: Mapping[str, Any] | None, measured: bool = False
    ) -> MergeOptions:
        """The options, checked and filled in.

        Args:
            given: the caller's, by name; None means not given.
            method_options: the aggregation's own.
            measured: whether the weights are found from the experts' inputs, which have a basis.

        Raises:
            OptionError: one means nothing here, is out of its range, or does not go with another.
        """
        own, density = self._own(method_options)
        used = self.uses() | ({"basis"} if measured or given.get("scaling") in INTERFERENCE else set())
        for name, value in {**given, "recipe": self.recipe}.items():
            if value is not None and name not in used:
                raise OptionError(self.refusal(name, f"{name}={value!r}"))
        defaults, recipe = dict(self.entry.defaults), RECIPES.get(self.recipe or "", {})
        if self.selects:
            density = defaults.pop("density", None) if density is None else density
            defaults["scaling"] = "auto"
            if not self.counts:
                defaults["density"] = LIGHT_DENSITY
                defaults["fit"] = given.get("density") is None and "density" not in recipe
        filled = {
            **given,
            "selection": self.selection,
            "aggregation": self.aggregation,
            "aggregation_density": density,
            "method_options": parameters_of(
                self.told if self.aggregation == "sum" else f"method={self.aggregation!r}", self.entry.parameters, own
            ),
        }
        if given.get("rank") is not None and not self.counts:
            whole("rank", given["rank"])  # by its own name; below it is the svd_rank
            if given.get("svd_rank") is not None:
                raise OptionError(
                    f"rank={given['rank']} and svd_rank={given['svd_rank']} together: with {self.told} both "
                    f"are the rank of the result; give one"
                )
            filled |= {"rank": None, "svd_rank": given["rank"]}
        options = resolve(self.name, self.recipe, filled, defaults)
        for value, adaptive in (
            (options.density, self.selects or self.entry.adaptive),
            (density, self.entry.adaptive),
        ):
            if isinstance(value, str) and not adaptive:
                name = self.aggregation if self.selects else self.name
                raise OptionError(f"density={value!r}: method={name!r} knows no adaptive density; give a number")
        return replace(options, unused=self._unused(options, measured))

    def _unused(self, options: MergeOptions, measured: bool) -> frozenset[str]:
        """The options that mean nothing to this chain as it is filled in, and are not in the record."""
        used = replace(self, named=True).uses() | {"method", "recipe", "fit"}  # a density that nobody gave is used, too
        used -= set() if self.counts else {"rank"}  # which is the svd_rank here
        if measured or options.scaling in INTERFERENCE:
            used |= {"basis"}
        if self.needs_base:
            used |= {"prune_outside"}
        if options.connectivity != "flow":
            used -= {"residual"}
        if self.selects and "density" in self.entry.uses:
            used |= {"aggregation_density"}
        if self.entry.parameters is not None:
            used |= {"method_options"}
        return frozenset(item.name for item in fields(options)) - used

    def svd_rank(self, options: MergeOptions, source_rank: int) -> int | None:
        """The rank that the result is truncated to, from the largest source rank; None for none."""
        if options.svd_rank is not None:
            return options.svd_rank
        return source_rank if options.fit else self.entry.svd_rank(source_rank)

    def run(self, problem: Problem, options: MergeOptions, shared: Shared | None = None) -> Outcome:
        """Balance, select, aggregate.

        Args:
            problem: the experts, brought together.
            options: filled in.
            shared: what other chains for the same experts and base had. A selection that differs from this one in
                nothing but what comes after it is taken from there instead of being scored anew, and a new one is put
                there.
        """
        balanced = balance(problem, options.balance) if options.balance != "none" else None
        current = problem if balanced is None else balanced.problem
        selected = self._selected(current, options, shared) if self.selects else None
        if selected is None:
            outcome = group().together(lambda: self.entry.run(current, options))
        else:
            rest = self._aggregating(options, problem.rank)
            outcome = group().together(lambda: self.entry.run(selected.problem, rest))
            outcome = replace(
                outcome,
                layers={m: _joined(layer, selected, m) for m, layer in outcome.layers.items()},
                log_connectivity=selected.log_connectivity,
                kernel=selected.kernel,
            )
        if balanced is not None:
            outcome = replace(
                outcome, layers={m: _noted(layer, balanced.factors[m]) for m, layer in outcome.layers.items()}
            )
        return outcome

    def _selected(self, problem: Problem, options: MergeOptions, shared: Shared | None) -> Selected:
        if shared is None:
            return select(problem, options)
        names = (item.name for item in fields(options) if item.name not in _AFTER)
        key = (problem.weights, problem.group, *(getattr(options, name) for name in names))
        if key not in shared.selections:
            shared.selections[key] = select(problem, options)
        return shared.selections[key]

    def _own(self, given: Mapping[str, Any] | None) -> tuple[Mapping[str, Any] | None, float | str | None]:
        """`method_options` without the aggregation's density, and that."""
        if not self.selects or "density" not in self.entry.uses or not isinstance(given, Mapping):
            return given, None
        density = given.get("density")
        if isinstance(density, str):
            with suppress(ValueError):  # words are for `density_mean`
                density = float(density)
        return {name: value for name, value in given.items() if name != "density"}, density

    def _aggregating(self, options: MergeOptions, source_rank: int) -> MergeOptions:
        """The options as the aggregation after a selection reads them."""
        rank = self.svd_rank(options, source_rank)
        return replace(
            options,
            density=options.aggregation_density,
            rank=rank if self.entry.counts and options.aggregation_density is None else None,
            svd_rank=rank,
            scope="layer",
        )


def chain(method: str | None, selection: str | None, aggregation: str | None, recipe: str | None) -> Chain:
    """The chain that the caller means.

    Args:
        method: a method's name, or None.
        selection: a criterion, "random:<seed>" or "none"; None when not given.
        aggregation: a method's name or "sum"; None when not given.
        recipe: a named set of defaults, or None.

    Raises:
        OptionError: a name is not known, or a link is named twice.

    Example:
        >>> chain("saliency", None, "tsv", None).name, chain(None, None, None, None).recipe
        ('saliency+tsv', 'even')
    """
    for name, value in (("method", method), ("selection", selection), ("aggregation", aggregation)):
        if value is not None and not isinstance(value, str):
            raise OptionError(f"{name}={value!r} must be text, the name of one")
    linked = any(name is not None for name in (method, selection, aggregation))
    named = linked or recipe is not None
    recipe = recipe if named else DEFAULT_RECIPE
    if recipe is not None:
        choice("recipe", recipe, tuple(RECIPES))
    if method is not None:
        implied = entry(method).selection
        if implied != "none":
            selection = _agreeing("selection", selection, implied, method)
        else:
            aggregation = _agreeing("aggregation", aggregation, method, method)
    defaults = RECIPES.get(recipe or "", {})
    if selection is None and aggregation is None and not {"selection", "aggregation"} & defaults.keys():
        selection = "saliency"  # a recipe that names neither is one for the selection
    selection = selection if selection is not None else str(defaults.get("selection", "none"))
    aggregation = aggregation if aggregation is not None else str(defaults.get("aggregation", "sum"))
    if aggregation != "sum" and entry(aggregation, "aggregation").selection != "none":
        raise OptionError(
            f"aggregation={aggregation!r} is a selection and its sum; give selection={aggregation!r}, and another "
            f"aggregation or none"
        )
    found = Chain(_name(selection, aggregation), selection, aggregation, recipe, named, linked)
    if found.selects and found.entry.needs_base:
        raise OptionError(
            f"aggregation={aggregation!r} selects by itself, single elements; leave selection={selection!r} out"
        )
    return found


def _agreeing(link: str, given: str | None, implied: str, method: str) -> str:
    """What a method says of a link, where the caller does not say another thing."""
    if given is not None and given != implied and not {given, implied} <= SUMS:
        raise OptionError(
            f"method={method!r} means {link}={implied!r}, and {link}={given!r} was given, too; leave method or {link} "
            f"out"
        )
    return implied


def _name(selection: str, aggregation: str) -> str:
    if selection == "none":
        return "linear" if aggregation == "sum" else aggregation
    return selection if aggregation in SUMS else f"{selection}+{aggregation}"


def _joined(layer: MergedLayer, selected: Selected, module: str) -> MergedLayer:
    """The layer with what the selection kept in its shares: components and norms from before, energies multiplied.

    The conflicts are those that the last to prune left: the aggregation, where it does.
    """
    before = selected.shares[module]
    shares = {
        n: replace(before[n], energy=before[n].energy * share.energy, elements=share.elements)
        for n, share in layer.shares.items()
    }
    conflict = selected.conflicts[module] if layer.conflict is None else layer.conflict
    return replace(layer, shares=shares, conflict=conflict)


def _noted(layer: MergedLayer, factors: Mapping[int, float]) -> MergedLayer:
    """The layer with the factors of the balance in its shares."""
    return replace(layer, shares={n: replace(share, balance=factors[n]) for n, share in layer.shares.items()})
