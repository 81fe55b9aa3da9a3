"""What adapters carry beside their factors: biases, fully trained modules, trained token rows, copies of base weights.

| what | merged |
|---|---|
| bias of `lora_B` | sum_n w_n s_n bias_n |
| bias of the base (`bias="all"`, "lora_only") | base + sum_n w_n (bias_n - base) |
| `modules_to_save`, `trainable_token_indices` | by choice: `saved_modules` |
| a copy of a base weight | left out when it equals the base's, or the adapter's own of a tied weight; else an error |

In a model with tied weights an output head is the input embedding, under whatever name: its copies, its trained rows
and its trained weight are the embedding's.

Biases are updates like any other: `scaling` as a number multiplies them. With "auto" they are divided by
sum |w_n| over the experts that have them: rules that are made for low-rank updates have no meaning for them, and one
expert keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samerge.adapters import Adapter, widest
from samerge.adapters.layouts import Layout
from samerge.adapters.model import Load
from samerge.errors import AdapterError, BaseModelError, OptionError
from samerge.merging.inputs import dtype_of
from samerge.merging.module_weights import factor_of
from samerge.merging.saved_modules import SavedParts, tied
from samerge.methods.problem import Site
from samerge.options.common import CommonOptions
from samerge.options.scaling import auto_factor
from samerge.weights import WeightSource
from samerge.weights.hub import CONFIG_NAME

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class MergedExtras:
    """What goes into the merged adapter beside its factors.

    Args:
        tensors: by name in the file.
        settings: fields of `adapter_config.json`.
        warnings: what the user should know.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def check_extras(adapters: Sequence[Adapter], choice: str | None, source: WeightSource | None) -> None:
    """Refuse what cannot be merged as the options stand, before any work is done.

    Args:
        adapters: those of a weight other than 0.
        choice: the option `modules_to_save`.
        source: the base.

    Raises:
        AdapterError: fully trained modules without a choice, or biases that nothing can be compared with.
        BaseModelError: a saved copy of a base weight differs from the base.
        OptionError: the choice names no adapter.
    """
    if choice is not None and choice.startswith("take:"):
        taken = choice.removeprefix("take:")
        if taken not in [adapter.name for adapter in adapters]:
            raise OptionError(
                f"modules_to_save={choice!r} names no adapter of this merge; choose one of "
                f"{[adapter.name for adapter in adapters]}"
            )
    trained = {adapter.name: [*adapter.extras.saved, *adapter.extras.tokens] for adapter in adapters}
    if choice is None and any(trained.values()):
        listed = "; ".join(f"{name}: {', '.join(what)}" for name, what in trained.items() if what)
        raise AdapterError(
            f"merging adapters that carry fully trained modules or token rows beside their LoRA factors ({listed}): "
            f"a sum of updates does not say what shall become of them. Choose modules_to_save='average' (the mean of "
            f"the adapters that have it), 'update' (the base's with every adapter's change added), 'take:<adapter>' "
            f"(one adapter's) or 'drop' (none)"
        )
    if choice == "update" and source is None and any(trained.values()):
        raise OptionError(
            f"modules_to_save='update' adds what the adapters changed of the base's own weights "
            f"({next(what[0] for what in trained.values() if what)} and others), and no base was given; give base=, or "
            f"choose 'average', 'take:<adapter>' or 'drop'"
        )
    for adapter in adapters:
        if adapter.extras.biases and source is None:
            raise AdapterError(
                f"merging adapter {adapter.name!r}: it trained biases of the base model "
                f"(bias={adapter.config.get('bias')!r}), of which only the change can be merged; give base="
            )
        own = tied(adapter, source)
        for name, load in adapter.extras.copies.items():
            if name not in own:
                _check_copy(adapter.name, name, load, source)


def merge_extras(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    sites: Sequence[Site],
    layouts: Mapping[str, Layout],
    heights: Mapping[str, int],
    options: CommonOptions,
    source: WeightSource | None,
) -> MergedExtras:
    """Merge what stands beside the factors.

    Args:
        adapters: the experts.
        weights: one for each.
        sites: the adapted linear maps.
        layouts: all modules of the merged adapter.
        heights: the outputs of each of them.
        options: the merge's.
        source: the base.

    Raises:
        AdapterError: they do not fit each other.
        BaseModelError: a bias is not in the base.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    warnings: list[str] = []
    active = [(adapter, weight) for adapter, weight in zip(adapters, weights, strict=True) if weight != 0]

    factor = factor_of(options.modules)
    chosen_dtype = dtype_of(options.dtype)
    dtype = chosen_dtype or widest(adapter.dtype for adapter, _ in active or [(adapters[0], 0)])
    scaling = 1.0 if options.scaling is None else options.scaling
    biases = _lora_biases(sites, weights, layouts, heights, scaling)
    if biases:
        settings["lora_bias"] = True
        tensors.update({name: bias.to(dtype) for name, bias in biases.items()})
    trained = _base_biases(active, layouts, scaling, source, factor)
    if trained:
        settings["bias"] = "all" if any(a.config.get("bias") == "all" for a, _ in active) else "lora_only"
        tensors.update(trained)
    if options.modules_to_save not in (None, "drop"):
        choice = str(options.modules_to_save)
        parts = SavedParts(active, choice, scaling, chosen_dtype, source, factor)
        rows, indices = parts.rows()
        tensors.update({_PREFIX + name: parts.tensor(name) for name in parts.names})
        tensors.update({f"{_PREFIX}{name}.token_adapter.trainable_tokens_delta": row for name, row in rows.items()})
        settings["modules_to_save"] = parts.modules or None
        if indices:
            settings["trainable_token_indices"] = indices
        warnings += _resized(tensors, indices, source)
    elif options.modules_to_save == "drop":
        dropped = sorted({name for a, _ in active for name in [*a.extras.saved, *a.extras.tokens]})
        if dropped:
            warnings.append(f"dropped, as modules_to_save='drop' asks: {', '.join(dropped)}")
    if tensors:
        what = ", ".join(sorted(name for name, value in settings.items() if value))
        heads = all(name.removeprefix(_PREFIX).startswith(("classifier.", "score.")) for name in tensors)
        loads = "PEFT and vLLM load it, other servers do not" if heads else "PEFT loads it, vLLM will not serve it"
        warnings.append(f"the merged adapter has more than LoRA factors ({what}): {loads}")
    return MergedExtras(tensors, settings, warnings)


def _resized(
    tensors: Mapping[str, Tensor], indices: Mapping[str, Sequence[int]], source: WeightSource | None
) -> list[str]:
    """What to say where trained modules or rows need a vocabulary that the base has not got."""
    shapes = {} if source is None else source.shapes
    told = []
    for name, shape in sorted(shapes.items()):
        trained = tensors.get(_PREFIX + name)
        rows = 1 + max(indices.get(name.removesuffix(".weight"), (-1,)))
        if trained is not None and tuple(trained.shape) != tuple(shape):
            told.append(f"{name} is {tuple(trained.shape)}, the base's {tuple(shape)}")
        elif rows and rows > shape[0]:
            told.append(f"row {rows - 1} of {name} is trained, the base has {shape[0]}")
    if not told:
        return []
    return [
        f"the base must be brought to the shapes of the trained modules before the merged adapter is loaded on it, by "
        f"resize_token_embeddings where its vocabulary grew: {'; '.join(told)}"
    ]


def _check_copy(adapter: str, name: str, load: Load, source: WeightSource | None) -> None:
    if source is None:
        raise AdapterError(
            f"merging adapter {adapter!r}: its file also holds {name!r}, which is no LoRA factor and not named in its "
            f"configuration; it can be left out only if it is a copy of the base's (save_embedding_layers), so give "
            f"base="
        )
    copy = load()
    if name not in source.shapes:
        raise BaseModelError(
            f"merging adapter {adapter!r}: its file also holds {name!r} {tuple(copy.shape)}, which is no LoRA factor, "
            f"not named in its configuration, and no weight of {source.name!r}; leaving it out would change what the "
            f"adapter does. Is it an adapter of another base model? If it was trained beside the LoRA (a value head), "
            f"name its module under modules_to_save in {CONFIG_NAME}: modules_to_save='drop' then leaves it out"
        )
    if tuple(copy.shape) != tuple(source.shapes[name]):
        raise BaseModelError(
            f"merging adapter {adapter!r}: its file holds the base weight {name!r} of shape {tuple(copy.shape)}, "
            f"that of {source.name!r} is {source.shapes[name]}: its vocabulary was resized. "
            f"Give the resized model as the base"
        )
    base = source.read(name, 0, copy.shape[0])
    if not torch.equal(base.to(copy.device, copy.dtype), copy):
        raise BaseModelError(
            f"merging adapter {adapter!r}: its file holds the base weight {name!r}, which differs from that of "
            f"{source.name!r}: it was trained or resized beside the adapter. Give the model that it belongs to as the "
            f"base, or save the adapter again with save_embedding_layers=False if the difference does not matter"
        )


def _sum(parts: Sequence[tuple[float, Tensor]], scaling: float | str) -> Tensor:
    total = torch.stack([weight * part.float() for weight, part in parts]).sum(0)
    if auto_factor(scaling) is not None:
        return total / len(parts)
    return total * float(scaling)


def _lora_biases(
    sites: Sequence[Site],
    weights: Sequence[float],
    layouts: Mapping[str, Layout],
    heights: Mapping[str, int],
    scaling: float | str,
) -> dict[str, Tensor]:
    """The merged bias of every module's `lora_B`; none if no expert has any."""
    if not any(m.bias is not None and weights[n] != 0 for site in sites for n, m in site.experts.items()):
        return {}
    unable = [module for module, layout in layouts.items() if layout.kind in ("embedding", "parameter", "in_proj")]
    if unable:
        raise AdapterError(
            f"merging adapters with lora_bias and others that adapt {unable[0]!r} ({layouts[unable[0]].kind}): PEFT's "
            f"lora_bias holds for a whole adapter and such modules cannot have one; merge them apart"
        )
    found = {}
    by_module = {site.module: site for site in sites}
    for module, layout in layouts.items():
        site = by_module.get(module)
        factors = site.factors if site else {}
        parts = [
            (weights[n] * factors.get(n, 1.0), adapted.bias().cpu())
            for n, adapted in (site.experts.items() if site else ())
            if adapted.bias is not None and weights[n] != 0
        ]
        key = f"{_PREFIX}{layout.path(module)}.lora_B.bias"
        found[key] = _sum(parts, scaling) if parts else torch.zeros(heights[module])
    return found


def _base_biases(
    active: Sequence[tuple[Adapter, float]],
    layouts: Mapping[str, Layout],
    scaling: float | str,
    source: WeightSource | None,
    factor: Callable[[str, str], float],
) -> dict[str, Tensor]:
    names = sorted({name for adapter, _ in active for name in adapter.extras.biases})
    if not names or source is None:
        return {}
    paths = {module: layout.path(module) for module, layout in layouts.items()}
    merged = {}
    for name in names:
        having = [(adapter, weight) for adapter, weight in active if name in adapter.extras.biases]
        if name not in source.shapes:
            raise BaseModelError(
                f"merging adapter {having[0][0].name!r}: it trained the bias {name!r}, which the base model "
                f"{source.name!r} does not have; is it an adapter of another base model?"
            )
        base = source.read(name, 0, source.shapes[name][0]).detach().cpu()
        module = name.removesuffix(".bias")
        parts = [
            (weight * factor(module, adapter.name), adapter.extras.biases[name]().float() - base.float())
            for adapter, weight in having
        ]
        key = f"{paths[module]}.base_layer.bias" if module in paths else name
        merged[_PREFIX + key] = (base.float() + _sum(parts, scaling)).to(base.dtype)
    return merged
