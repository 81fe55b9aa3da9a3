"""How the two factors of a linear map lie in PEFT's files and layers, and how to see them as (out, in) matrices.

| kind | A as stored | B as stored | update of the base weight |
|---|---|---|---|
| linear | (r, in) | (out, r) | (out, in); (in, out) when fan_in_fan_out |
| embedding | (r, vocabulary) | (width, r) | (vocabulary, width): stored transposed |
| conv | (r, in, *kernel) | (out, r, 1, ...) | (out, in, *kernel), flattened to (out, in * prod(kernel)) |
| in_proj, out_proj | as linear | as linear | `in_proj_weight` and `out_proj.weight` of an `nn.MultiheadAttention` |
| parameter | (E r, in), expert by expert | (out, r E) | an `nn.Parameter` (E, out, in), or (out, in) |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.options.module_names import expert_of

Kind = Literal["linear", "embedding", "conv", "in_proj", "out_proj", "parameter"]


@dataclass(frozen=True)
class Layout:
    """The layout of one adapted linear map.

    Args:
        kind: see the table above.
        transposed: the base weight is stored (in, out): GPT-2's Conv1D, an embedding, the experts of gpt-oss.
        kernel: (in, *kernel) of a convolution, else empty.
        experts: how many matrices the stack has that this one is part of; 0 when it is no stack.
        place: for a parameter, its place among those of its module: PEFT nests their wrappers in this order.
    """

    kind: Kind = "linear"
    transposed: bool = False
    kernel: tuple[int, ...] = ()
    experts: int = 0
    place: int = field(default=0, compare=False)

    def factors(self, A: Tensor, B: Tensor, scale: float, expert: int = 0) -> LoraFactors:
        """Stored tensors as (r, in) and (out, r) factors; of a stack, those of one expert."""
        if self.experts:
            rank = A.shape[0] // self.experts
            A, B = A[expert * rank : (expert + 1) * rank], B.reshape(B.shape[0], rank, self.experts)[:, :, expert]
        return LoraFactors(A.reshape(A.shape[0], -1), B.reshape(B.shape[0], -1), scale)

    def tensors(self, factors: LoraFactors) -> tuple[Tensor, Tensor]:
        """The factors in the shape that PEFT stores, scale not included. Not for stacks, which `stacked` packs."""
        A, B = factors.A, factors.B
        if self.kind == "conv":
            A = A.reshape(A.shape[0], *self.kernel)
            B = B.reshape(*B.shape, *[1] * (len(self.kernel) - 1))
        return A, B

    def path(self, module: str) -> str:
        """The LoRA layer's path in PEFT, without prefix. For a parameter, of its module's outermost wrapper."""
        if self.kind == "in_proj":
            return module.removesuffix(".in_proj_weight")
        if self.kind == "out_proj":
            return module.removesuffix(".out_proj") + ".base_layer.out_proj"
        return parameter_of(module)[0] if self.kind == "parameter" else module

    def delta(self, factors: LoraFactors) -> Tensor:
        """The dense update in the orientation and shape of the base weight. For checks."""
        dense = factors.delta()
        if self.transposed:
            dense = dense.T
        if self.kind == "conv":
            dense = dense.reshape(dense.shape[0], *self.kernel)
        return dense


def layout_of(
    A_shape: tuple[int, ...],
    B_shape: tuple[int, ...],
    *,
    embedding: bool,
    fan_in_fan_out: bool,
    kind: Kind = "linear",
) -> tuple[Layout, int, tuple[int, int]]:
    """The layout of a module from the shapes of its stored factors.

    Returns:
        The layout, the rank, and (out, in) of the update as a matrix.

    Raises:
        ValueError: the two shapes do not belong together.
    """
    rank = A_shape[0]
    if len(A_shape) > 2 and len(B_shape) > 1 and 0 < B_shape[1] < rank and rank % B_shape[1] == 0:
        raise ValueError(
            f"lora_A has shape {A_shape} and lora_B {B_shape}: a convolution with groups={rank // B_shape[1]}. PEFT "
            f"applies its factors group by group, so that B A is no update of the weight, and cannot merge it either; "
            f"leave this module out of target_modules"
        )
    if len(A_shape) < 2 or len(B_shape) < 2 or B_shape[1] != rank or any(size != 1 for size in B_shape[2:]):
        part = len(A_shape) == len(B_shape) == 2 and 0 < rank < B_shape[1] and B_shape[1] % rank == 0
        raise ValueError(
            f"lora_A has shape {A_shape} and lora_B {B_shape}; expected (r, in) and (out, r)"
            + (". It may be the share of one process under FSDP; gather the adapter and save it again" if part else "")
        )
    columns = math.prod(A_shape[1:])
    if embedding:
        layout = Layout("embedding", transposed=True)
    elif len(A_shape) > 2:
        layout = Layout("conv", kernel=A_shape[1:])
    elif kind == "linear":
        layout = Layout("linear", transposed=fan_in_fan_out)
    else:
        layout = Layout(kind)
    return layout, rank, (B_shape[0], columns)


def stack_of(
    A_shape: tuple[int, ...], B_shape: tuple[int, ...], *, rank: int, place: int
) -> tuple[Layout, int, tuple[int, int]]:
    """The layout of a parameter's factors: as many experts as its rows hold ranks.

    Returns:
        The layout (whether it is transposed is not known yet), the rank, and (out, in) of one expert.

    Raises:
        ValueError: the two shapes do not belong together, or to the rank.
    """
    if len(A_shape) != 2 or len(B_shape) != 2 or A_shape[0] != B_shape[1] or A_shape[0] % rank:
        raise ValueError(
            f"lora_A has shape {A_shape} and lora_B {B_shape}; expected (experts * {rank}, in) and (out, {rank} * "
            f"experts), as the configuration's rank is {rank}"
        )
    experts = A_shape[0] // rank
    return Layout("parameter", experts=experts if experts > 1 else 0, place=place), rank, (B_shape[0], A_shape[1])


def stacked(parts: Sequence[LoraFactors]) -> tuple[Tensor, Tensor]:
    """The factors of all experts of a stack, all of one rank, as PEFT stores them: (E r, in) and (out, r E)."""
    A = torch.cat([part.A for part in parts])
    B = torch.stack([part.B for part in parts], dim=2)  # (out, r, E)
    return A, B.reshape(B.shape[0], -1)


def parameter_of(module: str) -> tuple[str, str]:
    """The module of a parameter and the parameter's own name in it.

    Example:
        >>> parameter_of("mlp.experts.down_proj[3]")
        ('mlp.experts', 'down_proj')
    """
    owner, _, short = expert_of(module)[0].rpartition(".")
    return owner, short


def stored_tensors(factors: Mapping[str, LoraFactors], layouts: Mapping[str, Layout]) -> dict[str, Tensor]:
    """All factors under the names and in the shapes of `adapter_model.safetensors`."""
    state: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, list[str]]] = {}  # module -> parameter -> names of its linear maps
    for module in factors:
        layout = layouts[module]
        if layout.kind == "parameter":
            owner, short = parameter_of(module)
            stacks.setdefault(owner, {}).setdefault(short, []).append(module)
            continue
        part, leaf = ("lora_embedding_", "") if layout.kind == "embedding" else ("lora_", ".weight")
        stem = f"base_model.model.{layout.path(module)}.{part}"
        state[f"{stem}A{leaf}"], state[f"{stem}B{leaf}"] = layout.tensors(factors[module])
    for owner, parameters in stacks.items():
        inside_out = sorted(parameters, key=lambda short: (layouts[parameters[short][0]].place, short))
        for number, short in enumerate(inside_out):
            names = sorted(parameters[short], key=lambda name: expert_of(name)[1] or 0)
            depth = len(inside_out) - 1 - number
            stem = f"base_model.model.{owner}{'.base_layer' * depth}.lora_"
            state[f"{stem}A.weight"], state[f"{stem}B.weight"] = stacked([factors[name] for name in names])
    return state
