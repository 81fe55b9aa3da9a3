"""From the shapes of one LoRA layer's tensors to the linear maps that they adapt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samerge.adapters.config import pattern_value
from samerge.adapters.layouts import Layout, layout_of, stack_of
from samerge.adapters.model import AdaptedModule, Load
from samerge.adapters.names import Target
from samerge.errors import AdapterError
from samerge.linalg.factors import LoraFactors

#: Dtypes with the range of exponents that moving powers of two needs.
_WIDE = (torch.bfloat16, torch.float32, torch.float64)
#: Powers of two that one factor is larger than the product's root from which they are moved.
_UNEVEN = 30
#: The largest entry that an update may have, so that sums of its rows stay within float32.
_MOST = 2.0**126


@dataclass(frozen=True)
class Stored:
    """The tensors of one LoRA layer as they lie in a file or a live model.

    Args:
        shapes: of A and B.
        dtype: the wider of both.
        embedding: whether they are `lora_embedding_A` and `_B`.
        read: loads A and B.
        bias: loads the bias of `lora_B`, if there is one.
        magnitude: loads DoRA's magnitude, if there is one.
    """

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: torch.dtype
    embedding: bool
    read: Callable[[], tuple[Tensor, Tensor]]
    bias: Load | None = None
    magnitude: Load | None = None


def described(
    adapter: str,
    target: Target,
    config: Mapping[str, Any],
    stored: Stored,
    scale: float,
    fan_in_fan_out: bool,
    rank: int | None = None,
) -> Iterator[tuple[str, AdaptedModule]]:
    """The linear maps of one LoRA layer: one, or one for each expert of a stack, as `name[expert]`.

    Args:
        adapter: its name, for messages.
        target: what the layer belongs to.
        config: the adapter's configuration.
        stored: its tensors.
        scale: PEFT's scale.
        fan_in_fan_out: whether a linear layer's weight is stored (in, out).
        rank: the layer's rank where it is known; the configuration's otherwise.

    Raises:
        AdapterError: the shapes do not belong together, or are not those of the configuration; or a DoRA adapter has no
            magnitude, without which its factors are not its update.
    """
    if config.get("use_dora") and stored.magnitude is None:
        raise AdapterError(
            f"reading adapter {adapter!r}, module {target.name!r}: the configuration says use_dora, but there is no "
            f"lora_magnitude_vector; the file is incomplete, save the adapter again"
        )
    declared = rank or int(pattern_value(config.get("rank_pattern"), target.name, config["r"]))
    try:
        if target.kind == "parameter":
            layout, found, shape = stack_of(*stored.shapes, rank=declared, place=target.place)
            layout = replace(layout, transposed=target.transposed and bool(layout.experts))
        else:
            layout, found, shape = layout_of(
                *stored.shapes, kind=target.kind, embedding=stored.embedding, fan_in_fan_out=fan_in_fan_out
            )
    except ValueError as error:
        raise AdapterError(f"reading adapter {adapter!r}, module {target.name!r}: {error}") from error
    if declared != found:
        raise AdapterError(
            f"reading adapter {adapter!r}, module {target.name!r}: the configuration says rank {declared}, but lora_A "
            f"has shape {stored.shapes[0]} and lora_B {stored.shapes[1]}; file and configuration do not belong together"
        )
    for expert in range(max(1, layout.experts)):
        name = f"{target.name}[{expert}]" if layout.experts else target.name
        yield (
            name,
            AdaptedModule(
                layout,
                found,
                shape,
                stored.dtype,
                partial(_load, adapter, name, layout, stored.read, scale, expert),
                None if stored.bias is None else partial(_scaled, stored.bias, scale),
                stored.magnitude,
            ),
        )


def check_dtypes(adapter: str, module: str, kinds: Mapping[str, torch.dtype]) -> None:
    """Refuse factors that are not floating-point numbers.

    Args:
        adapter: its name.
        module: whose factors they are.
        kinds: the dtype of each, by what it is.

    Raises:
        AdapterError: one is not.
    """
    small = [f"{part} is {kind}" for part, kind in kinds.items() if kind.is_floating_point and kind.itemsize == 1]
    if small:
        raise AdapterError(
            f"reading adapter {adapter!r}, module {module!r}: {', '.join(small)}, and that holds no factors; save the "
            f"adapter again in float16"
        )
    whole = [f"{part} is {kind}" for part, kind in kinds.items() if not kind.is_floating_point]
    if whole:
        raise AdapterError(
            f"reading adapter {adapter!r}, module {module!r}: {', '.join(whole)}, and a LoRA's tensors are "
            f"floating-point numbers; save the adapter again, unquantised"
        )


def _scaled(read: Load, scale: float) -> Tensor:
    return read().float() * scale


def _load(
    adapter: str,
    module: str,
    layout: Layout,
    read: Callable[[], tuple[Tensor, Tensor]],
    scale: float,
    expert: int,
) -> LoraFactors:
    A, B = read()
    factors = layout.factors(A, B, scale, expert)
    sizes = [finite_size(adapter, module, part, one) for part, one in (("lora_A", factors.A), ("lora_B", factors.B))]
    bound = abs(scale) * sizes[0] * sizes[1] * factors.rank
    if bound > _MOST:
        raise AdapterError(
            f"adapter {adapter!r}, module {module!r}: its update has entries of up to {bound:.1g}, as no trained one "
            f"has; the adapter is broken (a diverged training?), leave it out of the merge"
        )
    return _evened(factors, *sizes)


def _evened(factors: LoraFactors, size_A: float, size_B: float) -> LoraFactors:
    """The same update of factors of like size, where the two are so unequal that a square of one is no number.

    Powers of two are moved from one to the other, which is exact: only what is 2^-100 of the largest entry can be lost.
    """
    A, B = factors.A, factors.B
    if A.dtype not in _WIDE or B.dtype not in _WIDE or not size_A or not size_B:
        return factors
    moved = round((math.log2(size_B) - math.log2(size_A)) / 2)
    return factors if abs(moved) < _UNEVEN else LoraFactors(A * 2.0**moved, B * 2.0**-moved, factors.scale)


def finite_size(adapter: str, module: str, part: str, tensor: Tensor) -> float:
    """The largest magnitude in a part of an adapter.

    Raises:
        AdapterError: it holds NaN or infinite values.
    """
    size = _largest(tensor)
    if not math.isfinite(size):
        raise AdapterError(
            f"adapter {adapter!r}, module {module!r}: {part} {tuple(tensor.shape)} holds NaN or infinite values; "
            f"the adapter is broken (a diverged training?), leave it out of the merge"
        )
    return size


def _largest(tensor: Tensor) -> float:
    """The largest magnitude in a tensor, in one pass; not a number where there is one that is none."""
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return float(torch.maximum(-low, high))
