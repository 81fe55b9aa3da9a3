"""Strengths by module: what a merge makes of the option `modules`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from samerge.adapters import Adapter
from samerge.adapters.model import Extras
from samerge.errors import OptionError
from samerge.methods.problem import Site
from samerge.options.module_weights import ModuleWeights


def without_silenced(
    adapters: Sequence[Adapter], names: Sequence[str], rules: ModuleWeights | None
) -> tuple[tuple[Adapter, ...], tuple[str, ...]]:
    """The adapters without the modules in which they have the weight 0, and what the report says of the rules.

    Args:
        adapters: those that take part, under the base's names.
        names: of all adapters of the merge.
        rules: the option; None where it is not given.

    Raises:
        OptionError: a pattern matches no module, a rule names no adapter of the merge, or nothing is left.
    """
    if rules is None:
        return tuple(adapters), ()
    counts = rules.check(_modules(adapters), names)
    left = tuple(_without(adapter, rules) for adapter in adapters)
    if not any(adapter.modules for adapter in left):
        raise OptionError("modules gives every module of every adapter the weight 0, so that there is nothing to merge")
    said = [
        f"{rule.pattern} {'' if rule.adapter is None else f'of {rule.adapter} '}times {rule.weight:g} "
        f"({counts[rule.pattern]} modules)"
        for rule in rules.rules
    ]
    return left, (f"weights by module, the last that matches: {'; '.join(said)}",)


def with_factors(sites: Sequence[Site], names: Sequence[str], rules: ModuleWeights | None) -> tuple[Site, ...]:
    """The sites with what the adapters' weights are multiplied with there."""
    if rules is None:
        return tuple(sites)
    return tuple(replace(site, factors={n: rules.of(site.module, names[n]) for n in site.experts}) for site in sites)


def factor_of(rules: ModuleWeights | None) -> Callable[[str, str], float]:
    """What an adapter's weight is multiplied with, from the module and the adapter."""
    return (lambda module, adapter: 1.0) if rules is None else rules.of


def _modules(adapters: Sequence[Adapter]) -> list[str]:
    """All that a rule may speak of: adapted modules, and those that are trained whole, in part or in their bias."""
    return sorted({name for adapter in adapters for name in (*adapter.modules, *_beside(adapter.extras))})


def _beside(extras: Extras) -> list[str]:
    return [*(name.rpartition(".")[0] for name in (*extras.saved, *extras.biases)), *extras.tokens]


def _without(adapter: Adapter, rules: ModuleWeights) -> Adapter:
    def kept(module: str) -> bool:
        return rules.of(module, adapter.name) != 0

    extras = adapter.extras
    left = Extras(
        biases={name: load for name, load in extras.biases.items() if kept(name.rpartition(".")[0])},
        saved={name: load for name, load in extras.saved.items() if kept(name.rpartition(".")[0])},
        tokens={name: rows for name, rows in extras.tokens.items() if kept(name)},
        copies=extras.copies,
    )
    return replace(adapter, modules={m: one for m, one in adapter.modules.items() if kept(m)}, extras=left)
