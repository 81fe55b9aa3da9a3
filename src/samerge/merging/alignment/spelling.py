"""One spelling for a base and all its adapters.

An adapter names its modules after the model in memory that it was trained on: of another release of transformers, with
or without a head, inside a wrapper. Everything is brought to the names that the base has in memory as transformers
loads it today, so that a merged file has one spelling, that of the model it will be loaded onto:

| an adapter's names | become |
|---|---|
| those of the checkpoint, or of an older release | those in memory |
| with what a wrapper adds (`policy.`, `0.auto_model.`) | those without |
| of the model without its head (`BertModel`), or with one | the first adapter's: the base can be loaded as either |
| of single experts, where the base stacks them | those of the stacks (`alignment.experts`) |
| of q, k and v, or gate and up, in one piece or in several | as the base has them (`alignment.projections`) |
| llama.cpp's, of GGUF files | those of the base |
| kohya's, with `_` for `.` | those of the base, with the component's name before them (`alignment.underscored`) |

From here on a module of an adapter, a tensor of the base and a module of the merged adapter are the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from torch import nn

from samerge.adapters import Adapter, Extras
from samerge.adapters.formats.gguf_names import named_by_base
from samerge.merging.alignment.agreement import agreed
from samerge.merging.alignment.experts import stacked_experts
from samerge.merging.alignment.fused import FusedSource
from samerge.merging.alignment.matching import (
    Names,
    NotInBaseError,
    differ,
    in_one_model,
    match_modules,
    refuse_doubles,
    without,
)
from samerge.merging.alignment.memory import Memory, in_memory, may_be_renamed, of_live
from samerge.merging.alignment.projections import as_the_base_has_them
from samerge.merging.alignment.underscored import dotted
from samerge.merging.alignment.views import RenamedSource, replicated, replication, with_aliases
from samerge.options.module_names import expert_of, joined, stem_of
from samerge.options.module_weights import ModuleWeights
from samerge.weights import WeightSource

Value = TypeVar("Value")


@dataclass(frozen=True)
class Together:
    """Adapters and their base under one spelling.

    Args:
        adapters: in the order given.
        source: the base; None without one.
        notes: what was done to bring them together, for the report.
    """

    adapters: tuple[Adapter, ...]
    source: WeightSource | None
    notes: tuple[str, ...] = ()


def together(
    adapters: Sequence[Adapter],
    source: WeightSource | None,
    model: nn.Module | None = None,
    strict: bool = True,
    rules: ModuleWeights | None = None,
) -> Together:
    """Bring adapters and their base to one spelling.

    Args:
        adapters: the adapters.
        source: the base, None when none was given.
        model: the live model that the source reads, if it is one; its names stand.
        strict: without a base, refuse adapters that have nothing in common. Default: True.
        rules: weights by module: those that have 0 by their own name need not be in the base. Default: None.

    Raises:
        AdapterError: the adapters do not agree on how layers are replicated.
        BaseModelError: an adapter does not fit the base, or two adapters do not fit each other.
    """
    if source is None:
        return Together(*agreed(adapters, strict))
    adapters = [named_by_base(adapter, source.shapes, source.config, source.name) for adapter in adapters]
    adapters = [dotted(adapter, source, rules) for adapter in adapters]
    memory = _memory(adapters, source, model)
    known = {} if memory is None else dict(memory.names)
    view = RenamedSource(source, known) if any(name != tensor for name, tensor in known.items()) else source
    if any(module.layout.kind == "parameter" for adapter in adapters for module in adapter.modules.values()):
        fused = FusedSource(view)
        view = fused if fused.stacks else view
    layers = replication(adapters)
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    done = any(getattr(config, "layer_replication", None) for config in configs.values())  # by PEFT, on a live model
    if layers is not None and not done:
        view = replicated(view, layers)
    view = with_aliases(view, {} if memory is None else memory.tied)
    adapters = [as_the_base_has_them(stacked_experts(adapter, view), view) for adapter in adapters]
    readers = _Readers(source, view, memory)
    read = [_Reading(adapter, readers, rules) for adapter in adapters]
    if model is None:
        view, heads = _as_loaded(view, read, memory)
    else:
        heads = {}
    respelled = tuple(one.respelled(heads) for one in read)
    return Together(respelled, view, tuple(_notes([one.adapter for one in read], respelled)))


def _memory(adapters: Sequence[Adapter], source: WeightSource, model: nn.Module | None) -> Memory | None:
    """What transformers knows of the base, where it may matter: to ask it takes seconds."""
    if model is not None:
        return of_live(model, source)
    stems = {tensor.removesuffix(".weight") for tensor in source.shapes}
    if may_be_renamed(source) or any(name not in stems for adapter in adapters for name in _all_names(adapter)):
        return in_memory(source)
    return None


def _all_names(adapter: Adapter) -> set[str]:
    extras = adapter.extras
    names = {*(expert_of(module)[0] for module in adapter.modules), *extras.tokens, *extras.copies, *extras.saved}
    return {name.removesuffix(".weight") for name in (*names, *extras.biases)}


class _Readers:
    """The ways to read an adapter's names, the strictest first."""

    def __init__(self, source: WeightSource, view: WeightSource, memory: Memory | None) -> None:
        self.view, self.name = view, source.name
        stems = {tensor.removesuffix(".weight"): tensor for tensor in view.shapes}
        there = {} if memory is None else {t: name for name, t in memory.names.items() if name in view.shapes}
        stored = {tensor.removesuffix(".weight"): name for tensor, name in there.items()}

        def renamed(name: str) -> str:
            return name if memory is None else memory.renamed(f"{name}.weight").removesuffix(".weight")

        def exactly(names: Mapping[str, str], change: Callable[[str], str] = str) -> Callable[[str], list[str]]:
            return lambda name: [names[found]] if (found := change(name)) in names else []

        self.exact = [exactly(stems), exactly(stored), exactly(stems, renamed)]
        self._stored, self._renamed = there, renamed

    @cached_property
    def loose(self) -> list[Callable[[str], list[str]]]:
        """Those that allow for a prefix more or less."""
        shapes, stored = self.view.shapes, self._stored
        matrices = Names(tensor for tensor in shapes if len(shapes[tensor]) >= 2)
        older = Names(tensor for tensor, name in stored.items() if len(shapes[name]) >= 2)
        return [
            matrices.find,
            lambda name: [stored[tensor] for tensor in older.find(name)],
            lambda name: matrices.find(self._renamed(name)),
        ]

    @cached_property
    def everything(self) -> Names:
        """All tensors of the base, vectors among them."""
        return Names(self.view.shapes)


class _Reading:
    """What the names of one adapter mean."""

    def __init__(self, adapter: Adapter, readers: _Readers, rules: ModuleWeights | None) -> None:
        self.adapter, self.readers = adapter, readers
        try:
            self.tensors = self._read()
        except NotInBaseError as error:
            if rules is None:
                raise
            lost = [module for module in adapter.modules if stem_of(module) in error.missing]
            self.adapter = without(adapter, lost, rules)
            self.tensors = self._read()

    def _read(self) -> dict[str, str]:
        stems = sorted({stem_of(module) for module in self.adapter.modules})
        for reader in self.readers.exact:
            found = {stem: reader(stem) for stem in stems}
            if all(len(tensors) == 1 for tensors in found.values()):
                return self._once({stem: tensor for stem, [tensor] in found.items()})
        shapes = {stem_of(module): adapted.shape for module, adapted in self.adapter.modules.items()}
        for reader in self.readers.loose:
            found = {stem: reader(stem) for stem in stems}
            if all(len(tensors) == 1 for tensors in found.values()):
                return self._once({stem: tensor for stem, [tensor] in found.items()})
            if (inner := in_one_model(found, shapes, self.readers.view.shapes)) is not None:
                return self._once(inner)
        return match_modules(self.adapter.name, stems, self.readers.view.shapes, self.readers.name)  # which refuses

    def _once(self, found: dict[str, str]) -> dict[str, str]:
        refuse_doubles(self.adapter.name, found, self.readers.name)
        return found

    @cached_property
    def prefixes(self) -> set[tuple[str, str]]:
        """How its names differ from the base's: what they begin with before the ending that they share, each."""
        return {differ(stem, tensor.removesuffix(".weight")) for stem, tensor in self.tensors.items()}

    def respelled(self, heads: Mapping[str, str]) -> Adapter:
        """The adapter under the base's names, these changed by `heads`."""
        final = {stem: heads.get(tensor, tensor).removesuffix(".weight") for stem, tensor in self.tensors.items()}

        def module(name: str) -> str:
            stem, expert = expert_of(name)
            told = final[stem.removesuffix(".weight")] + (".weight" if stem.endswith(".weight") else "")
            return told if expert is None else f"{told}[{expert}]"

        adapter, extras = self.adapter, self.adapter.extras
        modules = {module(name): adapted for name, adapted in adapter.modules.items()}

        def each(values: Mapping[str, Value], loose: bool) -> dict[str, Value]:
            return {self._tensor(name, heads, loose): value for name, value in values.items()}

        if modules.keys() == adapter.modules.keys() and not (extras.saved or extras.copies or extras.tokens):
            return adapter
        tokens = {name: f"{name}.weight" for name in extras.tokens}
        return replace(
            adapter,
            modules=dict(sorted(modules.items())),
            extras=Extras(
                each(extras.biases, True),
                each(extras.saved, False),
                {
                    self._tensor(weight, heads, True).removesuffix(".weight"): extras.tokens[name]
                    for name, weight in tokens.items()
                },
                each(extras.copies, True),
            ),
        )

    def _tensor(self, name: str, heads: Mapping[str, str], loose: bool) -> str:
        """What a tensor beside the factors is called; a head that the base lacks keeps its name, but for a prefix."""
        stem = name.removesuffix(".weight")
        for reader in self.readers.exact:
            if found := reader(stem):
                return heads.get(found[0], found[0])
        for before, after in sorted(self.prefixes, reverse=True):
            if before and name.startswith(f"{before}."):
                return joined(after, name[len(before) + 1 :])
        candidates = self.readers.everything.find(name) if loose else []
        return heads.get(candidates[0], candidates[0]) if len(candidates) == 1 else name


def _as_loaded(
    view: WeightSource, read: Sequence[_Reading], memory: Memory | None
) -> tuple[WeightSource, dict[str, str]]:
    """The base as the first adapter's class of model has it: without what the head's class puts before, or with it.

    Returns:
        The base, and the new name of each tensor.
    """
    first = next((one for one in read if one.tensors), None)
    if first is None or len(first.prefixes) != 1:
        return view, {}
    [(before, after)] = first.prefixes
    if after and not before:
        if any(not tensor.startswith(f"{after}.") for one in read for tensor in one.tensors.values()):
            return view, {}  # the others adapt more than the model inside
        names = {name: name.removeprefix(f"{after}.") for name in view.shapes}
    elif before and not after and (memory is None or not memory.prefix or before.split(".")[-1] == memory.prefix):
        prefix = before if memory is None or not memory.prefix else memory.prefix
        names = {name: joined(prefix, name) for name in view.shapes}
    else:
        return view, {}
    if len(set(names.values())) < len(names):
        return view, {}
    return RenamedSource(view, {new: old for old, new in names.items()}), names


def _notes(before: Sequence[Adapter], after: Sequence[Adapter]) -> Iterable[str]:
    changed = [
        (one.name, old, new)
        for one, other in zip(before, after, strict=True)
        for old, new in [_example(one.modules, other.modules)]
        if old != new
    ]
    if changed:
        listed = "; ".join(f"{name}: {old} is {new}" for name, old, new in changed)
        yield f"these adapters name the modules of the base otherwise than it is loaded today ({listed})"


def _example(before: Iterable[str], after: Iterable[str]) -> tuple[str, str]:
    gone, come = sorted(set(before) - set(after)), sorted(set(after) - set(before))
    return (gone[0], come[0]) if gone and come else ("", "")
