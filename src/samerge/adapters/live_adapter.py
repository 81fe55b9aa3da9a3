"""Reading an adapter of a live `PeftModel`. Its tensors are looked at, never changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from samerge.adapters.checks import refuse_config, refuse_live
from samerge.adapters.describe import Stored, described
from samerge.adapters.model import LIVE, AdaptedModule, Adapter, Extras, Load, TokenRows, widest
from samerge.adapters.names import WRAPPERS, Target
from samerge.errors import AdapterError
from samerge.weights import unwrap
from samerge.weights.offloaded import materialised


def live_adapter(model: nn.Module, name: str) -> Adapter:
    """An adapter of a live `PeftModel`; its tensors are looked at, never changed.

    Raises:
        AdapterError: no adapter of that name, or it is of a kind that cannot be merged.
    """
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    if name not in configs:
        raise AdapterError(
            f"there is no adapter {name!r} in this {type(model).__name__}; it has {sorted(configs)}. "
            f"Load it with model.load_adapter(..., adapter_name={name!r})"
        )
    config = configs[name].to_dict()
    config["peft_type"] = str(getattr(config["peft_type"], "value", config["peft_type"]))
    refuse_config(name, config)
    refuse_live(name, config)
    base = unwrap(model)
    modules: dict[str, AdaptedModule] = {}
    for path, layer in base.named_modules():
        for part in ("lora_", "lora_embedding_"):
            if name in getattr(layer, f"{part}A", {}) and name in getattr(layer, f"{part}B", {}):
                modules.update(_described(name, _plain(path), layer, part, config))
    if not modules:
        raise AdapterError(f"adapter {name!r} of this {type(model).__name__} has no LoRA layers")
    notes = _scaled(base, name, config)
    return Adapter(name, f"{LIVE}{name}", config, dict(sorted(modules.items())), None, _extras(base, name), notes)


def _scales(layer: Any, name: str, config: Mapping[str, Any]) -> tuple[float, float]:
    """An adapter's scale in a layer as trained, and as it is on this model at the moment.

    `set_scale` and diffusers' `set_adapters(names, weights)` change the second. A scale that is a tensor is that of an
    adapter that was hot-swapped, and its own.
    """
    now = layer.scaling[name]
    if isinstance(now, Tensor):
        return float(now), float(now)
    rank, stabilised = layer.r[name], getattr(layer, "use_rslora", {}).get(name, bool(config.get("use_rslora")))
    return layer.lora_alpha[name] / (math.sqrt(rank) if stabilised else rank), float(now)


def _scaled(base: nn.Module, name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What to say where an adapter's strength on the model is another one than as trained."""
    layers: list[Any] = [layer for layer in base.modules() if name in getattr(layer, "lora_alpha", {})]
    pairs = [_scales(layer, name, config) for layer in layers]
    other = sorted({round(now / own, 6) for own, now in pairs if own and not math.isclose(now, own, rel_tol=1e-6)})
    if not other:
        return ()
    many = f"{other[0]:g}" if len(other) == 1 else f"{other[0]:g} to {other[-1]:g}"
    return (
        f"the adapter {name} runs at {many} of its strength on this model (set_adapters or set_scale); it was merged "
        f"as trained, times its weight in the merge alone",
    )


def _described(
    adapter: str, path: str, layer: Any, part: str, config: Mapping[str, Any]
) -> Iterator[tuple[str, AdaptedModule]]:
    table_a, table_b = getattr(layer, f"{part}A"), getattr(layer, f"{part}B")
    a, b = materialised(table_a, adapter), materialised(table_b, adapter)
    if a.is_meta or b.is_meta:
        raise AdapterError(
            f"reading adapter {adapter!r}: its factors of {path} are on the meta device and have no values. PEFT drops "
            f"them when it loads a second adapter onto an offloaded base; give the adapter's folder instead of its name"
        )
    bias = None if getattr(table_b[adapter], "bias", None) is None else materialised(table_b, adapter, "bias")
    magnitude = None
    if adapter in getattr(layer, "lora_magnitude_vector", {}):
        magnitude = partial(_detached, layer.lora_magnitude_vector[adapter].weight)
    stored = Stored(
        (tuple(a.shape), tuple(b.shape)),
        widest((a.dtype, b.dtype)),
        part == "lora_embedding_",
        partial(_detached_pair, a, b),
        None if bias is None else partial(_detached, bias),
        magnitude,
    )
    return described(
        adapter,
        _target(path, layer),
        config,
        stored,
        _scales(layer, adapter, config)[0],
        bool(getattr(layer, "fan_in_fan_out", False)),
        int(layer.r[adapter]),
    )


def _target(path: str, layer: Any) -> Target:
    """What a LoRA layer of a live model belongs to; PEFT's wrappers tell it themselves."""
    bare = ".".join(component for component in path.split(".") if component != "base_layer")
    kind = type(layer).__name__
    if kind == "ParamWrapper":
        owner = layer.get_base_layer()
        number = [name for name, _ in owner.named_parameters(recurse=False)].index(layer.parameter_name)
        return Target(
            "parameter", f"{bare}.{layer.parameter_name}", number, bool(getattr(owner, "is_transposed", False))
        )
    if kind == "MultiheadAttention":
        return Target("in_proj", f"{bare}.in_proj_weight")
    if path.endswith(".base_layer.out_proj"):
        return Target("out_proj", bare)
    return Target("linear", bare)


def _extras(base: nn.Module, name: str) -> Extras:
    saved: dict[str, Load] = {}
    tokens: dict[str, TokenRows] = {}
    for path, module in base.named_modules():
        kind, plain = type(module).__name__, _plain(path)
        if kind == "ModulesToSaveWrapper" and name in module.modules_to_save:
            inner = module.modules_to_save[name]
            for key, tensor in inner.state_dict().items():
                saved[f"{plain}.{key}"] = partial(_detached, tensor)
        elif kind == "TrainableTokensWrapper":
            rows: Any = module.token_adapter
            if name in rows.trainable_tokens_delta and not rows.tied_adapter:
                tokens[plain] = TokenRows(
                    tuple(int(i) for i in rows.token_indices[name]),
                    partial(_detached, rows.trainable_tokens_delta[name]),
                )
    return Extras(saved=saved, tokens=tokens)


def _plain(path: str) -> str:
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def _detached(tensor: Tensor) -> Tensor:
    """A tensor as it is; eight-bit floats, in which nothing is computed, in float32."""
    small = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return tensor.detach().float() if small else tensor.detach()


def _detached_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return _detached(a), _detached(b)
