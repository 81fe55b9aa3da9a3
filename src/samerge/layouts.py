"""How the two factors of a module lie in PEFT's files and layers, and how to see them as (out, in) matrices.

| kind | A as stored | B as stored | update of the base weight |
|---|---|---|---|
| linear | (r, in) | (out, r) | (out, in); (in, out) when fan_in_fan_out |
| embedding | (r, vocabulary) | (width, r) | (vocabulary, width): stored transposed |
| conv | (r, in, *kernel) | (out, r, 1, ...) | (out, in, *kernel), flattened to (out, in * prod(kernel)) |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from samerge.factors import LoraFactors

Kind = Literal["linear", "embedding", "conv"]


@dataclass(frozen=True)
class Layout:
    """The layout of one adapted module.

    Args:
        kind: see the table above.
        transposed: the base weight is stored (in, out): GPT-2's Conv1D, or an embedding.
        kernel: (in, *kernel) of a convolution, else empty.
    """

    kind: Kind = "linear"
    transposed: bool = False
    kernel: tuple[int, ...] = ()

    def factors(self, A: Tensor, B: Tensor, scale: float) -> LoraFactors:
        """Stored tensors as (r, in) and (out, r) factors."""
        return LoraFactors(A.reshape(A.shape[0], -1), B.reshape(B.shape[0], -1), scale)

    def tensors(self, factors: LoraFactors) -> tuple[Tensor, Tensor]:
        """The factors in the shape that PEFT stores, scale not included."""
        A, B = factors.A, factors.B
        if self.kind == "conv":
            A = A.reshape(A.shape[0], *self.kernel)
            B = B.reshape(*B.shape, *[1] * (len(self.kernel) - 1))
        return A, B

    def keys(self, module: str) -> tuple[str, str]:
        """The names of A and B in `adapter_model.safetensors`."""
        stem = f"base_model.model.{module}"
        if self.kind == "embedding":
            return f"{stem}.lora_embedding_A", f"{stem}.lora_embedding_B"
        return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"

    def delta(self, factors: LoraFactors, shape: tuple[int, ...] | None = None) -> Tensor:
        """The dense update in the orientation and shape of the base weight. For checks."""
        dense = factors.delta()
        if self.transposed:
            dense = dense.T
        if self.kind == "conv":
            dense = dense.reshape(dense.shape[0], *self.kernel)
        return dense if shape is None else dense.reshape(shape)


def layout_of(
    A_shape: tuple[int, ...], B_shape: tuple[int, ...], *, embedding: bool, fan_in_fan_out: bool
) -> tuple[Layout, int, tuple[int, int]]:
    """The layout of a module from the shapes of its stored factors.

    Returns:
        The layout, the rank, and (out, in) of the update as a matrix.

    Raises:
        ValueError: the two shapes do not belong together.
    """
    rank = A_shape[0]
    if len(A_shape) < 2 or len(B_shape) < 2 or B_shape[1] != rank or any(size != 1 for size in B_shape[2:]):
        raise ValueError(f"lora_A has shape {A_shape} and lora_B {B_shape}; expected (r, in) and (out, r)")
    columns = 1
    for size in A_shape[1:]:
        columns *= size
    if embedding:
        layout = Layout("embedding", transposed=True)
    elif len(A_shape) > 2:
        layout = Layout("conv", kernel=A_shape[1:])
    else:
        layout = Layout("linear", transposed=fan_in_fan_out)
    return layout, rank, (B_shape[0], columns)
