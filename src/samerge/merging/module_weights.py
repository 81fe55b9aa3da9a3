"""Strengths by module: what a merge makes of the option `modules`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from samerge.adapters import Adapter
from samerge.adapters.formats.components import beginning
from samerge.adapters.model import Extras
from samerge.errors import BaseModelError, OptionError
from samerge.merging.alignment.matching import NotInBaseError
from samerge.merging.alignment.spelling import Together, together
from samerge.methods.problem import Site
from samerge.options.module_weights import ModuleWeights
from samerge.weights import WeightSource


def fitted(
    adapters: Sequence[Adapter],
    names: Sequence[str],
    source: WeightSource | None,
    model: nn.Module | None,
    rules: ModuleWeights | None,
) -> Together:
    """The adapters and their base under one spelling, without the modules in which an adapter has the weight 0.

    Modules that have it by their names in the adapter's own file need not be in the base.

    Args:
        adapters: those that take part, under their own names.
        names: of all adapters of the merge.
        source: the base; None where none was given.
        model: the live model that the source reads, if it is one.
        rules: the option; None where it is not given.

    Raises:
        OptionError: a pattern matches no module, a rule names no adapter of the merge, or nothing is left.
        AdapterError, BaseModelError: adapters and base do not fit; says so where an adapter has more than the base.
    """
    known = adapters
    if rules is not None:
        known = [_labelled(adapter, rules, source is not None) for adapter in adapters]
    try:
        one = together(known, source, model, rules=rules)
    except NotInBaseError as error:
        raise BaseModelError(f"{error}{_way_out(error)}") from None
    if rules is None:
        return one
    counts = rules.check(
        {after.name: _modules(before, after, rules) for before, after in zip(adapters, one.adapters, strict=True)},
        names,
    )
    left = tuple(_without(adapter, rules) for adapter in one.adapters)
    if not any(adapter.modules for adapter in left):
        raise OptionError("modules gives every module of every adapter the weight 0, so that there is nothing to merge")
    said = [
        f"{rule.pattern} {'' if rule.adapter is None else f'of {rule.adapter} '}times {rule.weight:g} ({count} modules)"
        for rule, count in zip(rules.rules, counts, strict=True)
    ]
    told = f"weights by module, the last that matches: {'; '.join(said)}"
    return replace(one, adapters=left, notes=(*one.notes, told))


def with_factors(sites: Sequence[Site], names: Sequence[str], rules: ModuleWeights | None) -> tuple[Site, ...]:
    """The sites with what the adapters' weights are multiplied with there."""
    if rules is None:
        return tuple(sites)
    return tuple(
        replace(site, factors={n: rules.of(site.module, names[n], one.own) for n, one in site.experts.items()})
        for site in sites
    )


def factor_of(rules: ModuleWeights | None) -> Callable[[str, str], float]:
    """What an adapter's weight is multiplied with, from the module and the adapter."""
    return (lambda module, adapter: 1.0) if rules is None else rules.of


def _labelled(adapter: Adapter, rules: ModuleWeights, based: bool) -> Adapter:
    """The adapter with its modules' own names kept; with a base, without those that are absent in any case."""
    left = {
        name: replace(one, own=name)
        for name, one in adapter.modules.items()
        if not (based and rules.absent(name, adapter.name))
    }
    return replace(adapter, modules=left)


def _modules(before: Adapter, after: Adapter, rules: ModuleWeights) -> set[tuple[str, ...]]:
    """All that a rule may speak of: adapted modules, and those that are trained whole, in part or in their bias.

    Args:
        before: the adapter under its own names.
        after: the same under the base's, without what is absent and the base has not got.
        rules: the option.
    """
    there = {(name, one.own) if one.own else (name,) for name, one in after.modules.items()}
    own = {one.own for one in after.modules.values()}
    gone = {(name,) for name in before.modules if name not in own and rules.of(name, before.name) == 0}
    return there | gone | {(name,) for name in _beside(after.extras)}


def _way_out(error: NotInBaseError) -> str:
    """What to do where an adapter has modules that the base has not, of other components than those that it has."""
    missing, there = ({beginning(name) for name in names} for names in (error.missing, error.there))
    if not there or missing & there or "" in missing:
        return ""
    rules = ", ".join(f"'{name}*': 0" for name in sorted(missing))
    return f" To leave out what the base has not got: modules={{{rules}}}"


def _beside(extras: Extras) -> list[str]:
    return [*(name.rpartition(".")[0] for name in (*extras.saved, *extras.biases)), *extras.tokens]


def _without(adapter: Adapter, rules: ModuleWeights) -> Adapter:
    def kept(module: str) -> bool:
        own = adapter.modules[module].own if module in adapter.modules else ""
        return rules.of(module, adapter.name, own) != 0

    extras = adapter.extras
    left = Extras(
        biases={name: load for name, load in extras.biases.items() if kept(name.rpartition(".")[0])},
        saved={name: load for name, load in extras.saved.items() if kept(name.rpartition(".")[0])},
        tokens={name: rows for name, rows in extras.tokens.items() if kept(name)},
        copies=extras.copies,
    )
    return replace(adapter, modules={m: one for m, one in adapter.modules.items() if kept(m)}, extras=left)
