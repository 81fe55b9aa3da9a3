"""Adapters as they are found: a PEFT folder, or an adapter of a live `PeftModel`.

What counts is the tensors that exist: `target_modules` may be a list, a regex or "all-linear" and need not be resolved.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samerge.adapter_checks import refuse_config, refuse_keys
from samerge.checkpoints import unwrap
from samerge.errors import AdapterError
from samerge.factors import LoraFactors
from samerge.layouts import Layout, layout_of
from samerge.tensorfile import TensorFile

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"

_KEY = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B)(?:\.weight)?$"
)


@dataclass(frozen=True)
class AdaptedModule:
    """One adapted module of one adapter: everything but the values, and how to load those.

    Args:
        layout: how PEFT stores it.
        rank: r.
        shape: (out, in) of the update as a matrix.
        dtype: of the stored factors.
        load: reads the factors, in their own dtype, with PEFT's scale.
    """

    layout: Layout
    rank: int
    shape: tuple[int, int]
    dtype: torch.dtype
    load: Callable[[], LoraFactors]


@dataclass(frozen=True)
class Adapter:
    """A plain LoRA adapter, its tensors not loaded yet.

    Args:
        name: what the user calls it.
        source: the folder, hub id, or `PeftModel` it came from.
        config: `adapter_config.json` as a dict.
        modules: the adapted modules by name, without `base_model.model.`, sorted.
        sha256: of the weight file, for the record; None for a live adapter.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    modules: Mapping[str, AdaptedModule] = field(repr=False)
    sha256: str | None = None

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(module.rank for module in self.modules.values())

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of any factor."""
        return widest(module.dtype for module in self.modules.values())


def read_adapter(folder: str | Path, name: str, source: str | None = None) -> Adapter:
    """An adapter from a folder in PEFT's format.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        name: what to call it in messages and in the record.
        source: where it came from, for the record; the folder by default.

    Raises:
        AdapterError: a file is missing or broken, or the adapter is not a plain LoRA.
    """
    folder = Path(folder)
    config_file, weights_file = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not config_file.is_file():
        raise AdapterError(
            f"reading adapter {name!r}: there is no {CONFIG_NAME} in {folder}; "
            f"give the folder that PeftModel.save_pretrained wrote (an adapter that is not called 'default' lies in a "
            f"sub-folder of its name)"
        )
    if not weights_file.is_file():
        found = sorted(path.name for path in folder.iterdir())
        raise AdapterError(
            f"reading adapter {name!r}: there is no {WEIGHTS_NAME} in {folder}, which has {found}; a file in PyTorch's "
            f"pickle format can be converted by loading it with PEFT and saving it again"
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        file = TensorFile(weights_file)
    except ValueError as error:
        raise AdapterError(f"reading adapter {name!r}: {error}") from error
    refuse_config(name, config)
    pairs = _pair_up(name, file.entries)
    modules = {
        module: _described(
            name,
            module,
            config,
            (file.entries[a].shape, file.entries[b].shape),
            widest((file.dtype(a), file.dtype(b))),
            embedding,
            partial(_read_pair, file, a, b),
            scaling(config, module),
        )
        for module, (a, b, embedding) in pairs.items()
    }
    return Adapter(name, source or str(folder), config, modules, _sha256(weights_file))


def live_adapter(model: nn.Module, name: str) -> Adapter:
    """An adapter of a live `PeftModel`; its tensors are looked at, never changed.

    Raises:
        AdapterError: no adapter of that name, or it is not a plain LoRA.
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
    modules: dict[str, AdaptedModule] = {}
    for path, layer in unwrap(model).named_modules():
        for part in ("lora_", "lora_embedding_"):
            table_a, table_b = getattr(layer, f"{part}A", {}), getattr(layer, f"{part}B", {})
            if name not in table_a or name not in table_b:
                continue
            a, b = (t if isinstance(t, Tensor) else t.weight for t in (table_a[name], table_b[name]))
            module = path.replace("_orig_mod.", "")
            modules[module] = _described(
                name,
                module,
                config,
                (tuple(a.shape), tuple(b.shape)),
                widest((a.dtype, b.dtype)),
                part == "lora_embedding_",
                partial(_detached, a, b),
                float(layer.scaling[name]),
                fan_in_fan_out=bool(getattr(layer, "fan_in_fan_out", False)),
            )
    if not modules:
        raise AdapterError(f"adapter {name!r} of this {type(model).__name__} has no LoRA layers")
    return Adapter(name, f"live:{name}", config, dict(sorted(modules.items())))


def scaling(config: Mapping[str, Any], module: str) -> float:
    """LoRA's scale of a module: alpha / r, or alpha / sqrt(r) with rsLoRA, after the patterns of the configuration."""
    rank = pattern_value(config.get("rank_pattern"), module, config["r"])
    alpha = pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def pattern_value(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of PEFT's `rank_pattern` or `alpha_pattern` for a module: the first key that matches its name's end."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The widest of several dtypes, by torch's promotion (fp16 and bf16 together give fp32)."""
    found: torch.dtype | None = None
    for dtype in dtypes:
        found = dtype if found is None else torch.promote_types(found, dtype)
    return found or torch.float32


def _pair_up(name: str, keys: Iterable[str]) -> dict[str, tuple[str, str, bool]]:
    """Module name -> (key of A, key of B, is an embedding), sorted; everything else in the file is refused by name."""
    halves: dict[str, dict[str, str]] = {}
    others = []
    for key in sorted(keys):
        match = _KEY.match(key)
        if match is None:
            others.append(key)
        else:
            halves.setdefault(match["module"], {})[match["part"]] = key
    refuse_keys(name, others)
    if not halves:
        raise AdapterError(f"reading adapter {name!r}: its file holds no LoRA tensors (no key with lora_A and lora_B)")
    pairs = {}
    for module, parts in halves.items():
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if set(parts) != {a, b}:
            raise AdapterError(
                f"reading adapter {name!r}: module {module!r} has {sorted(parts)}, expected both {a} and {b}; "
                f"the file is incomplete"
            )
        pairs[module] = (parts[a], parts[b], embedding)
    return pairs


def _described(
    name: str,
    module: str,
    config: Mapping[str, Any],
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    dtype: torch.dtype,
    embedding: bool,
    read: Callable[[], tuple[Tensor, Tensor]],
    scale: float,
    fan_in_fan_out: bool | None = None,
) -> AdaptedModule:
    transposed = bool(config.get("fan_in_fan_out")) if fan_in_fan_out is None else fan_in_fan_out
    try:
        layout, rank, shape = layout_of(*shapes, embedding=embedding, fan_in_fan_out=transposed)
    except ValueError as error:
        raise AdapterError(f"reading adapter {name!r}, module {module!r}: {error}") from error
    declared = pattern_value(config.get("rank_pattern"), module, config["r"])
    if declared != rank:
        raise AdapterError(
            f"reading adapter {name!r}, module {module!r}: the configuration says rank {declared}, but lora_A has "
            f"shape {shapes[0]} and lora_B {shapes[1]}; file and configuration do not belong together"
        )

    def load() -> LoraFactors:
        A, B = read()
        for part, tensor in (("lora_A", A), ("lora_B", B)):
            if not bool(torch.isfinite(tensor).all()):
                raise AdapterError(
                    f"adapter {name!r}, module {module!r}: {part} {tuple(tensor.shape)} holds NaN or infinite values; "
                    f"the adapter is broken (a diverged training?), leave it out of the merge"
                )
        return layout.factors(A, B, scale)

    return AdaptedModule(layout, rank, shape, dtype, load)


def _read_pair(file: TensorFile, a: str, b: str) -> tuple[Tensor, Tensor]:
    return file.read(a), file.read(b)


def _detached(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a.detach(), b.detach()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
