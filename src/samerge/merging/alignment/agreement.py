"""Adapters without their base: names alone decide which modules are the same.

The first adapter's names stand. Another one that differs from them in what its names begin with, and in nothing else,
means the same modules if the shapes agree everywhere; where that can be read in two ways, or not be checked, it is an
error, since a base would decide it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from samerge.adapters import Adapter
from samerge.errors import BaseModelError
from samerge.merging.alignment.matching import bare, differ
from samerge.merging.alignment.projections import PARTS
from samerge.merging.alignment.underscored import refuse_mixed_names
from samerge.options.module_names import first_layer

#: Modules that some releases of a model have in one piece, and others in several, also under other names and in another
#: order of rows than those that can be taken apart.
_FUSED = {
    **PARTS,
    "query_key_value": ("q_proj", "k_proj", "v_proj", "query", "key", "value"),
    "qkv": (*PARTS["qkv"], "query", "key", "value", "q", "k", "v"),
}


def agreed(adapters: Sequence[Adapter], strict: bool) -> tuple[tuple[Adapter, ...], None, tuple[str, ...]]:
    """The adapters under the first one's names, no base, and what to tell of it.

    Args:
        adapters: the adapters.
        strict: refuse adapters that have no module in common with any other, and name no base in common.

    Raises:
        BaseModelError: they do not fit each other, or it is in doubt whether they do.
    """
    refuse_mixed_names(adapters)
    shapes: dict[str, tuple[int, int]] = {}
    stacks: set[str] = set()
    spelled: list[Adapter] = []
    notes = []
    for adapter in adapters:
        change = _change(shapes, stacks, adapter)
        if change is not None:
            before, after = change
            adapter = _respelled(adapter, before, after)
            notes.append(
                f"without a base, the modules of {adapter.name} are taken for those of the other adapters of the same "
                f"shapes, whose names begin otherwise ({after or 'nothing'!r} in place of {before or 'nothing'!r}); "
                f"give the base to have it checked"
            )
        spelled.append(adapter)
        for module, adapted in adapter.modules.items():
            shapes.setdefault(module, adapted.shape)
        stacks |= _stacks(adapter)
    _refuse_fused(spelled)
    if strict:
        _refuse_strangers(spelled)
    return tuple(spelled), None, tuple(notes)


def _stacks(adapter: Adapter) -> set[str]:
    """What the names of its modules have before the number of a layer."""
    return {found[0].removesuffix(".") for name in adapter.modules if (found := first_layer(name, 1)) is not None}


def _change(shapes: Mapping[str, tuple[int, int]], known: set[str], adapter: Adapter) -> tuple[str, str] | None:
    """What the adapter's names begin with and the others' have in its place; None where they are spelled alike."""
    own = _stacks(adapter)
    if own & known or not own or not known:
        return None
    pairs = {(stack, other) for stack in own for other in known if _same_end(stack, other)}
    if not pairs:
        return None
    changes = {differ(stack, other) for stack, other in pairs}
    [(before, after), *more] = sorted(changes)
    found = {name: _moved(name, before, after) for name in adapter.modules}
    common = [new for new in found.values() if new in shapes]
    if more or len(pairs) > len(own) or not common or any(new == name and before for name, new in found.items()):
        raise BaseModelError(
            f"merging adapter {adapter.name!r} without a base: its modules ({min(adapter.modules)!r}) and those of the "
            f"others ({min(shapes)!r}) are named otherwise, and it is in doubt which are the same; give base=, whose "
            f"names decide it"
        )
    for name, new in found.items():
        if new in shapes and shapes[new] != adapter.modules[name].shape:
            raise BaseModelError(
                f"merging adapter {adapter.name!r} without a base: its module {name!r} updates "
                f"{adapter.modules[name].shape}, {new!r} of the others {shapes[new]}; they are adapters of different "
                f"base models. If they are not, give base="
            )
    return before, after


def _same_end(one: str, other: str) -> bool:
    return one.endswith(f".{other}") or other.endswith(f".{one}") or bare(one) == bare(other)


def _moved(name: str, before: str, after: str) -> str:
    """A name with another beginning; as it is where it does not begin so."""
    if before and not name.startswith(f"{before}."):
        return name
    rest = name[len(before) + 1 :] if before else name
    return f"{after}.{rest}" if after else rest


def _respelled(adapter: Adapter, before: str, after: str) -> Adapter:
    def moved(name: str) -> str:
        return _moved(name, before, after)

    modules = {moved(name): one for name, one in adapter.modules.items()}
    return replace(adapter, modules=dict(sorted(modules.items())), extras=adapter.extras.renamed(moved))


def _refuse_fused(adapters: Sequence[Adapter]) -> None:
    """Refuse a module in one piece beside its parts: they change the same weight, and nothing here can tell how."""
    holders: dict[str, str] = {}
    for adapter in adapters:
        for module in adapter.modules:
            holders.setdefault(module, adapter.name)
    for module, name in holders.items():
        parent, _, last = module.rpartition(".")
        parts = [f"{parent}.{part}" for part in _FUSED.get(last, ()) if f"{parent}.{part}" in holders]
        if parts:
            raise BaseModelError(
                f"merging adapters without a base: {name!r} adapts {module!r} in one piece, {holders[parts[0]]!r} its "
                f"part {parts[0]!r}; they belong to different releases of the model. Give base=, whose own names "
                f"decide: then both are brought to its form, exactly"
            )


def _refuse_strangers(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters that nothing connects: no module in common with the others, and no base by name."""
    group: dict[str, str] = {}  # a module or a base -> the adapter that stands for its group

    def root(name: str) -> str:
        while parents[name] != name:
            name = parents[name]
        return name

    parents = {adapter.name: adapter.name for adapter in adapters}
    for adapter in adapters:
        base = adapter.config.get("base_model_name_or_path")
        for mark in (*adapter.modules, *([f"base {base}"] if base else ())):
            parents[root(adapter.name)] = root(group.setdefault(mark, adapter.name))
    first = adapters[0]
    for adapter in adapters[1:]:
        if root(adapter.name) != root(first.name):
            raise BaseModelError(
                f"merging adapters {first.name!r} and {adapter.name!r} without a base: they have no module in common "
                f"({min(first.modules)!r}, {min(adapter.modules)!r}) and do not name the same base model, so nothing "
                f"says that they belong together; give base=, which both are checked against"
            )
