"""Which tensors of a checkpoint an adapter's updates change, and how: the plan of `bake`.

| what an adapter has | what becomes of the base's tensor |
|---|---|
| a LoRA of any kind, of a matrix, a kernel, an embedding, an expert | W + sum_n w_n s_n B_n A_n, as it is stored |
| DoRA | W + w (m V / ||V|| - W), exactly, not truncated |
| a bias of `lora_B`, or of the base | the bias + its change |
| a module or rows that were trained whole | base + sum_n w_n (trained_n - base), or as `modules_to_save` says |

An output head that is tied to the embedding gets what the adapter says of either: where that is not the same for both,
the two are untied, each has a tensor of its own, and the configuration says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samerge.adapters import AdaptedModule, Adapter
from samerge.errors import AdapterError
from samerge.full.baked_tensors import Change, Recipe, Rows
from samerge.linalg.factors import LoraFactors, concatenate, norm
from samerge.merging.alignment.memory import in_memory
from samerge.merging.alignment.origins import places
from samerge.merging.conversion.dora import update_rows
from samerge.merging.saved_modules import SavedParts
from samerge.methods.problem import Site
from samerge.options.module_names import expert_of
from samerge.saliency.elements import TILE_ELEMENTS
from samerge.saliency.task_vectors import oriented
from samerge.weights import WeightSource
from samerge.weights.tiling import spans

_CPU = torch.device("cpu")
#: Of the configuration: whether the output head is the embedding.
_TIE = "tie_word_embeddings"


@dataclass(frozen=True)
class Baking:
    """What a checkpoint is to become.

    Args:
        recipes: of the tensors that change, by name.
        settings: what changes in the configuration.
        notes: what the user should know.
    """

    recipes: Mapping[str, Recipe]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass
class _Draft:
    """What is said of one tensor under one of its names."""

    changes: dict[int | None, list[Change]] = field(default_factory=dict)
    whole: Callable[[], Tensor] | None = None
    rows: dict[int, Tensor] = field(default_factory=dict)


def plan_baking(
    source: WeightSource,
    view: WeightSource,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    sites: Sequence[Site],
    saved: SavedParts | None,
    factor: Callable[[str, str], float],
) -> Baking:
    """Find out what becomes of every tensor.

    Args:
        source: the base, under its own names.
        view: the base, under the names that it has in common with the adapters.
        adapters: under these names.
        weights: one for each.
        sites: the adapted maps.
        saved: what was trained whole; None where it is left out.
        factor: what a weight is multiplied with, from the module and the adapter.

    Raises:
        AdapterError: an adapter has what the checkpoint has no place for.
    """
    drafts: dict[str, _Draft] = {}  # by name in the view
    names = [adapter.name for adapter in adapters]
    for site in sites:
        at = {n: weights[n] * site.factors.get(n, 1.0) for n in site.experts}
        tensor, expert = expert_of(site.key or "")
        draft = drafts.setdefault(tensor, _Draft())
        draft.changes.setdefault(expert, []).append(Change(partial(_update, site, names, at, view)))
        _lora_bias(drafts, site, adapters, at, view)
    _base_biases(drafts, adapters, weights, view, factor)
    if saved is not None:
        for name in saved.names:
            drafts.setdefault(name, _Draft()).whole = partial(saved.tensor, name)
        rows, indices = saved.rows()
        for embedding, values in rows.items():
            draft = drafts.setdefault(f"{embedding}.weight", _Draft())
            draft.rows = dict(zip(indices[embedding], values, strict=True))
    return _placed(source, view, drafts)


def _update(site: Site, names: Sequence[str], weights: Mapping[int, float], view: WeightSource) -> Rows:
    """The sum of the adapters' updates of a weight, by rows as the base stores it."""
    plain = {n: one for n, one in site.experts.items() if one.magnitude is None}
    found: list[Rows] = []
    if plain:
        parts = [one.load().to(_CPU, torch.float32) for one in plain.values()]
        found.append(_rows_of(concatenate(parts, [weights[n] for n in plain]), site.layout.transposed))
    for n in site.experts.keys() - plain.keys():
        found.append(_dora(names[n], site, site.experts[n], weights[n], view))
    return lambda start, stop: sum((rows(start, stop) for rows in found[1:]), found[0](start, stop))


def site_norms(
    site: Site, weights: Sequence[float], names: Sequence[str], view: WeightSource
) -> tuple[dict[str, float], float]:
    """The Frobenius norm of every adapter's update of a weight, and of their weighted sum."""
    at = {n: weights[n] * site.factors.get(n, 1.0) for n in site.experts}
    if all(one.magnitude is None for one in site.experts.values()):
        parts = {n: one.load().to(_CPU, torch.float32) for n, one in site.experts.items()}
        total = concatenate(list(parts.values()), list(at.values()))
        return {names[n]: float(norm(part)) for n, part in parts.items()}, float(norm(total))
    height = site.shape[1] if site.layout.transposed else site.shape[0]
    each = {n: _update(replace(site, experts={n: one}), names, {n: 1.0}, view) for n, one in site.experts.items()}
    squares, total_square = dict.fromkeys(each, 0.0), 0.0
    for start, stop in spans((height, sum(site.shape) - height), TILE_ELEMENTS):
        tiles = {n: rows(start, stop).double() for n, rows in each.items()}
        for n, tile in tiles.items():
            squares[n] += float(tile.square().sum())
        total_square += float(torch.stack([at[n] * tile for n, tile in tiles.items()]).sum(0).square().sum())
    return {names[n]: value**0.5 for n, value in squares.items()}, total_square**0.5


def _rows_of(factors: LoraFactors, transposed: bool) -> Rows:
    left, right = oriented(factors, transposed)
    return lambda start, stop: left[start:stop] @ right


def _dora(adapter: str, site: Site, adapted: AdaptedModule, weight: float, view: WeightSource) -> Rows:
    rows = update_rows(adapter, site, adapted, view, _CPU)
    if not site.layout.transposed:
        return lambda start, stop: weight * rows(start, stop)
    turned = rows(0, site.shape[0]).T
    return lambda start, stop: weight * turned[start:stop]


def _lora_bias(
    drafts: dict[str, _Draft],
    site: Site,
    adapters: Sequence[Adapter],
    weights: Mapping[int, float],
    view: WeightSource,
) -> None:
    having = {n: one.bias for n, one in site.experts.items() if one.bias is not None}
    if not having:
        return
    name = f"{site.module}.bias"
    if name not in view.shapes:
        raise AdapterError(
            f"baking adapter {adapters[min(having)].name!r}: it has a bias for {site.module!r} (lora_bias), and the "
            f"base model {view.name!r} has none there to add it to; merge it with samerge merge, PEFT serves it"
        )

    def load() -> Rows:
        total = torch.stack([weights[n] * bias().cpu() for n, bias in having.items()]).sum(0)
        return lambda start, stop: total[start:stop]

    drafts.setdefault(name, _Draft()).changes.setdefault(None, []).append(Change(load))


def _base_biases(
    drafts: dict[str, _Draft],
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    view: WeightSource,
    factor: Callable[[str, str], float],
) -> None:
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, bias in adapter.extras.biases.items():
            if name not in view.shapes:
                raise AdapterError(
                    f"baking adapter {adapter.name!r}: it trained the bias {name!r}, which the base model "
                    f"{view.name!r} does not have; is it an adapter of another base model?"
                )
            strength = weight * factor(name.rpartition(".")[0], adapter.name)

            def load(name: str = name, bias: Callable[[], Tensor] = bias, strength: float = strength) -> Rows:
                change = strength * (bias().cpu().float() - view.read(name, 0, view.shapes[name][0]).cpu().float())
                return lambda start, stop: change[start:stop]

            drafts.setdefault(name, _Draft()).changes.setdefault(None, []).append(Change(load))


def _placed(source: WeightSource, view: WeightSource, drafts: Mapping[str, _Draft]) -> Baking:
    """The drafts as recipes of the base's own tensors."""
    by_tensor: dict[str, dict[str, _Draft]] = {}  # the base's tensor -> the name it goes by -> what is said of it
    for name, draft in drafts.items():
        for expert in draft.changes or [None]:
            for place in places(view, name, expert):
                own = by_tensor.setdefault(place.tensor, {}).setdefault(
                    name, _Draft(whole=draft.whole, rows=draft.rows)
                )
                own.changes.setdefault(place.expert, []).extend(
                    replace(change, first=change.first + place.first) for change in draft.changes.get(expert, ())
                )
    tied = _tied(source) if any(_may_be_tied(names, source.shapes[t]) for t, names in by_tensor.items()) else {}
    for alias in tied.keys() & by_tensor.keys():  # a copy on the disk, which transformers does not read
        by_tensor.setdefault(tied[alias], {}).update(by_tensor.pop(alias))
    recipes: dict[str, Recipe] = {}
    untied: list[str] = []
    for tensor, names in by_tensor.items():
        heads = {alias for alias, of in tied.items() if of == tensor}
        through = {name: next((a for a in heads if _same_name(a, name)), tensor) for name in names}
        said: dict[str, list[_Draft]] = {tensor: [], **{alias: [] for alias in heads}}
        for name, draft in names.items():
            for target in said if draft.rows else [through[name]]:  # PEFT trains the rows of tied weights together
                said[target].append(draft)
        if heads and not _alike(said):
            _check_untied(tensor, said, source)
            untied.append(tensor)
        for target, these in said.items() if tensor in untied else [(tensor, next(iter(said.values())))]:
            if these:
                recipes[target] = _recipe(tensor, these)
    for alias, of in tied.items():
        if of in recipes and of not in untied and alias in source.shapes:
            recipes[alias] = recipes[of]
    if not untied:
        return Baking(recipes, {})
    for alias, of in tied.items():  # all of them: the configuration unties them all
        if alias not in recipes and alias not in source.shapes:
            recipes[alias] = replace(recipes[of], base=of) if of in recipes and of not in untied else Recipe(of)
    note = (
        f"the adapter changes {', '.join(sorted(untied))} and the output head that is tied to it in different ways: "
        f"they are two tensors now, and {_TIE} is false in the configuration"
    )
    return Baking(recipes, _untied_settings(source.config), (note,))


def _recipe(tensor: str, drafts: Sequence[_Draft]) -> Recipe:
    changes: dict[int | None, list[Change]] = {}
    for draft in drafts:
        for expert, found in draft.changes.items():
            changes.setdefault(expert, []).extend(found)
    whole = next((draft.whole for draft in drafts if draft.whole is not None), None)
    rows = next((draft.rows for draft in drafts if draft.rows), {})
    return Recipe(tensor, {expert: found for expert, found in changes.items() if found}, whole, rows)


def _tied(source: WeightSource) -> dict[str, str]:
    """The names of tensors that transformers takes for another one -> that, under the base's names."""
    memory = in_memory(source)
    if memory is None:
        return {}
    return {alias: memory.names[name] for alias, name in memory.tied.items() if name in memory.names}


def _may_be_tied(names: Iterable[str], shape: tuple[int, ...]) -> bool:
    """Whether it may be an embedding or an output head; to ask transformers takes seconds."""
    words = ("embed", "head", "wte", "shared", "decoder.weight", "output_projection")
    return len(shape) == 2 and any(word in name.lower() for name in names for word in words)


def _same_name(one: str, other: str) -> bool:
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def _alike(said: Mapping[str, Sequence[_Draft]]) -> bool:
    """Whether the same is said of all names of a tensor."""
    first, *others = said.values()
    if all(list(map(id, other)) == list(map(id, first)) for other in others):
        return True
    wholes = [[draft.whole for draft in drafts] for drafts in said.values()]
    if any(len(own) != 1 or own[0] is None for own in wholes) or any(
        draft.changes and any(draft.changes.values()) for drafts in said.values() for draft in drafts
    ):
        return False
    one, *rest = [own[0]() for own in wholes if own[0] is not None]
    return all(torch.equal(one, other) for other in rest)


def _check_untied(tensor: str, said: Mapping[str, Sequence[_Draft]], source: WeightSource) -> None:
    if len(said) > 2:
        raise AdapterError(
            f"baking into {source.name!r}: {tensor!r} is tied to {sorted(set(said) - {tensor})}, and the adapter does "
            f"not change all of them alike, so that no checkpoint of this model can hold the result; leave the module "
            f"out (modules={{'{tensor.removesuffix('.weight')}': 0}}), or serve the adapter beside its base"
        )


def _untied_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    text = config.get("text_config")
    changed: dict[str, Any] = {_TIE: False}
    if isinstance(text, Mapping):
        changed["text_config"] = {**text, _TIE: False}
    return changed
