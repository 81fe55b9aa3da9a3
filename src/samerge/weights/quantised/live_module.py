"""The tensors of a live quantised module, named as the format's files name them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from samerge.errors import BaseModelError
from samerge.weights.quantised import bitsandbytes
from samerge.weights.stored import Held, Lazily, Stored

#: Buffers that belong to a quantised weight; other buffers of a model are no weights.
_BUFFERS = (
    "weight", "weight_packed", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_shape", "weight_g_idx",
    "weight_global_scale",
)  # fmt: skip


def repacked(module: nn.Module) -> bool:
    """Whether a module holds its weight in the order of some kernel, as GPTQ's and AWQ's do once they are loaded."""
    names = {*module._parameters, *module._buffers}
    return "qweight" in names and "scales" in names


def packed_tensors(module: nn.Module, held: Held) -> dict[str, Tensor | Stored]:
    """The parameters of one module, and what else makes up its weight when that is quantised.

    Args:
        module: one module, without its children.
        held: where weights that come as a whole are held.

    Raises:
        BaseModelError: a weight is of a class that is not known.
    """
    own: dict[str, Tensor | Stored] = dict(module.named_parameters(recurse=False))
    own.update((name, buffer) for name, buffer in module.named_buffers(recurse=False) if name in _BUFFERS)
    merged = vars(module).get("in_proj_weight")
    if isinstance(merged, Tensor):
        own["in_proj_weight"] = merged  # merging into nn.MultiheadAttention leaves a plain tensor for the parameter
    if hasattr(module, "W_q") and callable(getattr(module, "dequantize", None)):
        return _hqq(module, held)
    for name, tensor in list(own.items()):
        if not isinstance(tensor, Tensor) or type(tensor) in (Tensor, nn.Parameter):
            continue
        kind: Any = type(tensor)
        library = kind.__module__.split(".")[0]
        if kind.__name__ == "Params4bit":
            own.update(_four_bits(name, tensor, held))
        elif kind.__name__ == "Int8Params":
            own.update(_eight_bits(module, name, tensor))
        elif library in ("torchao", "optimum", "quanto"):
            own[name] = Lazily(tuple(tensor.shape), tensor.dtype, _dequantise(module, name, tensor), held)
        elif kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
            raise BaseModelError(
                f"reading the base weights: {type(module).__name__}.{name} is a {kind.__module__}.{kind.__name__}, "
                f"which is not known; give the checkpoint's folder or hub id as the base instead"
            )
    return own


def _four_bits(name: str, tensor: Any, held: Held) -> dict[str, Tensor | Stored]:
    state = getattr(tensor, "quant_state", None)
    if state is None:
        return {}  # not quantised yet: bitsandbytes does so when the model is moved to its device
    if getattr(state, "packing_format_for_cpu", False):
        shape = (int(state.shape[0]), int(state.shape[1]))
        make = partial(bitsandbytes.for_cpu, tensor.data, state.absmax, state.code, shape)
        return {name: Lazily(shape, torch.float32, make, held)}
    tensors: dict[str, Tensor] = state.as_dict(packed=True)
    return {f"{name}.{part}": value for part, value in tensors.items()}


def _eight_bits(module: Any, name: str, tensor: Any) -> dict[str, Tensor]:
    state = getattr(module, "state", None)
    scale = getattr(tensor, "SCB", None)
    scale = getattr(state, "SCB", None) if scale is None else scale
    return {} if scale is None else {"SCB": scale}


def _hqq(module: Any, held: Held) -> dict[str, Tensor | Stored]:
    shape = tuple(int(size) for size in module.meta["shape"])
    weight = Lazily(shape, torch.float32, lambda: module.dequantize().detach().float(), held)
    bias = getattr(module, "bias", None)
    return {"weight": weight, **({"bias": bias} if isinstance(bias, Tensor) else {})}


def _dequantise(module: nn.Module, name: str, tensor: Any) -> Any:
    def make() -> Tensor:
        try:
            dense: Tensor = tensor.dequantize().detach()
        except (NotImplementedError, RuntimeError, ImportError, AssertionError) as error:
            raise BaseModelError(
                f"reading the base weights: {type(module).__name__}.{name} is quantised ({type(tensor).__name__}), and "
                f"its library cannot dequantise it on {tensor.device}: {error}; give the unquantised base instead"
            ) from error
        return dense

    return make
