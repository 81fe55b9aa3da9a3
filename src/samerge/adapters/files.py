"""Reading an adapter from a folder in PEFT's format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from samerge.adapters.checks import refuse_config, strange_fields
from samerge.adapters.companions import companions_of
from samerge.adapters.config import scaling
from samerge.adapters.describe import Stored, check_dtypes, described
from samerge.adapters.extras import extras_of
from samerge.adapters.model import AdaptedModule, Adapter, widest
from samerge.adapters.names import sort_keys, targets_of
from samerge.adapters.patterns import PatternError, allowance
from samerge.adapters.tensors import AdapterTensors
from samerge.errors import AdapterError
from samerge.weights.hub import CONFIG_NAME, PICKLED, PICKLED_ENDINGS, WEIGHTS_NAME
from samerge.weights.tensorfile import TensorFile
from samerge.weights.untrusted import Origin, read_json

#: What a tensor without values is, and the way out.
_SHARDS = (
    "shards of DeepSpeed ZeRO-3 or FSDP that were not gathered. Save it again inside "
    "deepspeed.zero.GatheredParameters or FSDP.summon_full_params"
)


def read_adapter(folder: str | Path, name: str, source: str | None = None) -> Adapter:
    """An adapter from a folder in PEFT's format.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        name: what to call it in messages and in the record.
        source: where it came from, for the record; the folder by default.

    Raises:
        AdapterError: a file is missing or broken, or the adapter is of a kind that cannot be merged.
    """
    folder = Path(folder)
    config, file = open_adapter(folder, name)
    return peft_adapter(name, source or str(folder), config, file, companions_of(folder))


def peft_adapter(
    name: str, source: str, config: Mapping[str, Any], file: TensorFile, companions: tuple[Path, ...] = ()
) -> Adapter:
    """An adapter in PEFT's format whose files are open.

    Args:
        name: what to call it.
        source: where it came from.
        config: what `adapter_config.json` says.
        file: of its weights.
        companions: files of weights beside it.

    Raises:
        AdapterError: it is broken, or of a kind that cannot be merged.
    """
    refuse_config(name, config)
    lora, others = sort_keys(name, file.entries)
    if not lora:
        raise AdapterError(f"reading adapter {name!r}: {file.path.name} {_instead(sorted(file.entries))}")
    hollow = [other for other, key in others.items() if 0 in file.entries[key].shape]
    if hollow:
        shape = file.entries[others[hollow[0]]].shape
        raise AdapterError(f"reading adapter {name!r}: {hollow[0]!r} has shape {shape}; these are {_SHARDS}")
    modules: dict[str, AdaptedModule] = {}
    try:
        with allowance():
            for path, target in targets_of(name, lora, config).items():
                stored = _stored(name, path, lora[path], file)
                scale = scaling(config, target.name)
                modules.update(described(name, target, config, stored, scale, bool(config.get("fan_in_fan_out"))))
    except PatternError as error:
        raise AdapterError(f"reading adapter {name!r}: {CONFIG_NAME}: {error}") from error
    return Adapter(
        name,
        source,
        config,
        dict(sorted(modules.items())),
        file.sha256(),
        extras_of(config, others, lambda key: partial(file.read, key)),
        _ignored(name, config),
        companions,
        weights_name=file.path.name,
    )


def _instead(keys: list[str]) -> str:
    """What a file holds that has no LoRA tensors, in words."""
    if not keys:
        return f"holds no tensors at all. It may have been written of {_SHARDS}"
    shown = ", ".join(map(repr, keys[:2])) + (", ..." if len(keys) > 2 else "")
    return f"holds no LoRA tensors: none of {shown} is a lora_A or lora_B"


def open_adapter(folder: Path, name: str) -> tuple[dict[str, Any], TensorFile]:
    """The configuration of an adapter in PEFT's format, as it stands there, and its file of weights.

    Raises:
        AdapterError: one of them is missing or broken.
    """
    origin = Origin(f"reading adapter {name!r}", AdapterError)
    config_file, weights_file = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not os.path.lexists(config_file):
        raise origin.refusal(
            f"there is no {CONFIG_NAME} in {folder}; give the folder that PeftModel.save_pretrained wrote (an adapter "
            f"that is not called 'default' lies in a sub-folder of its name)"
        )
    if not os.path.lexists(weights_file):
        found = sorted(path.name for path in folder.iterdir())
        pickled = next((name for name in found if name.endswith(PICKLED_ENDINGS)), None)
        way = f"; {pickled} {PICKLED}" if pickled else ""
        raise origin.refusal(f"there is no {WEIGHTS_NAME} in {folder}, which has {found}{way}")
    # metadata of other tools may hold NaN, which Python writes; the fields that count are checked later
    return read_json(config_file, origin, infinite=True), AdapterTensors(weights_file, origin)


def _ignored(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What to say about fields that are not read."""
    fields = strange_fields(config)
    if not fields:
        return ()
    return (
        f"the configuration of the adapter {name} sets {', '.join(sorted(fields)[:5])}, which PEFT does not know; "
        f"ignored, as PEFT does",
    )


def _stored(adapter: str, path: str, parts: Mapping[str, str], file: TensorFile) -> Stored:
    embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if not {a, b} <= set(parts) or set(parts) - {a, b, "bias", "lora_magnitude_vector"}:
        raise AdapterError(
            f"reading adapter {adapter!r}: module {path!r} has {sorted(parts)}, expected both {a} and {b}; "
            f"the file is incomplete"
        )
    shapes = (file.entries[parts[a]].shape, file.entries[parts[b]].shape)
    if any(len(shape) < 2 or 0 in shape for shape in shapes):
        raise AdapterError(
            f"reading adapter {adapter!r}, module {path!r}: {a} has shape {shapes[0]} and {b} {shapes[1]}; these are "
            f"{_SHARDS}"
        )
    kinds = {part: file.dtype(key) for part, key in parts.items()}
    check_dtypes(adapter, path, kinds)
    magnitude = parts.get("lora_magnitude_vector")
    return Stored(
        shapes,
        widest((kinds[a], kinds[b])),
        embedding,
        partial(_read_pair, file, parts[a], parts[b]),
        partial(file.read, parts["bias"]) if "bias" in parts else None,
        partial(file.read, magnitude) if magnitude else None,
    )


@lru_cache(maxsize=1)  # the experts of a stack are read one after the other, from the same two tensors
def _read_pair(file: TensorFile, a: str, b: str) -> tuple[Tensor, Tensor]:
    return file.read(a), file.read(b)
