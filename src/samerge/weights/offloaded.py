"""Where the values of a parameter on the meta device are: in accelerate's offload map, or in the model's checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from samerge.weights.inside_peft import BaseModule
from samerge.weights.stored import InFile, InMemory, InRawFile, Lazily, Stored, whole
from samerge.weights.tensorfile import TensorFile


def offloaded(base: BaseModule, parameter: str, meta: Tensor, files: dict[str, TensorFile]) -> Stored | None:
    """The values of a parameter that accelerate offloaded to the CPU or to disk; None when no hook knows of it.

    Args:
        base: the module that holds the parameter, with the modules around it, whose hooks may know of it.
        parameter: its name within the module.
        meta: the parameter as it is, on the meta device.
        files: safetensors files opened so far, by path; filled.
    """
    for module, names in _lookups(base, parameter):
        for hook in _hooks(module):
            weights: Any = getattr(hook, "weights_map", None)
            for name in names if weights is not None else ():
                found = _entry(weights, name, meta, files)
                if found is not None:
                    return found
    return None


def execution_device(module: nn.Module) -> torch.device | None:
    """Where accelerate brings a module's weights for the forward pass; None without a hook."""
    for hook in _hooks(module):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None


def materialised(table: Any, name: str, parameter: str = "weight") -> Tensor:
    """One of PEFT's factors or its bias, fetched from where accelerate offloaded it when it is on the meta device.

    Args:
        table: `lora_A` or the like: a `ModuleDict` of layers with a weight, or a `ParameterDict`.
        name: the adapter.
        parameter: of the layer.

    Returns:
        The factor; still on the meta device when its values are nowhere.
    """
    module, parameter = (table, name) if isinstance(table[name], Tensor) else (table[name], parameter)
    tensor: Tensor = getattr(module, parameter)
    found = offloaded(BaseModule("", module), parameter, tensor, {}) if tensor.is_meta else None
    return tensor if found is None else whole(found)


def _lookups(base: BaseModule, parameter: str) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    yield base.module, (parameter,)
    for parent, now, before in base.parents:
        names = (f"{now}.{parameter}", f"{before}.{parameter}" if before else parameter)
        yield parent, tuple(dict.fromkeys(names))


def _hooks(module: nn.Module) -> Iterator[Any]:
    pending = [getattr(module, "_hf_hook", None)]
    while pending:
        hook = pending.pop()
        if hook is not None:
            yield hook
            pending.extend(getattr(hook, "hooks", ()))


def _entry(weights: Any, name: str, meta: Tensor, files: dict[str, TensorFile]) -> Stored | None:
    """One entry of accelerate's maps, read a few rows at a time where its place is known."""
    key, inner = name, weights
    while hasattr(inner, "dataset") and hasattr(inner, "prefix"):  # PrefixedDataset
        key, inner = f"{inner.prefix}{key}", inner.dataset
    in_memory = getattr(inner, "state_dict", inner)
    if isinstance(in_memory, Mapping) and not hasattr(inner, "index"):
        tensor = in_memory.get(key)
        return InMemory(tensor) if isinstance(tensor, Tensor) and tensor.shape == meta.shape else None
    if isinstance(in_memory, Mapping) and isinstance(in_memory.get(key), Tensor):
        return InMemory(in_memory[key])
    info: Any = getattr(inner, "index", {}).get(key)  # OffloadedWeightsLoader
    if info is None:
        return None
    shape = tuple(meta.shape)
    if info.get("safetensors_file") is not None:
        path, tensor_name = str(info["safetensors_file"]), str(info.get("weight_name", key))
        if path not in files:
            files[path] = TensorFile(path)
        if tensor_name in files[path].entries and files[path].entries[tensor_name].shape == shape:
            return InFile(files[path], tensor_name)
    elif info.get("dtype") in ("bfloat16", *_NUMPY):
        dtype = torch.bfloat16 if info["dtype"] == "bfloat16" else _NUMPY[info["dtype"]]
        return InRawFile(os.path.join(str(inner.save_folder), f"{key}.dat"), shape, dtype)
    return Lazily(shape, meta.dtype, lambda: inner[key])


_NUMPY = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "int64", "int32", "int8", "uint8")}
