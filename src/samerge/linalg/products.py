"""Products of low-rank matrices as low-rank factors: what LoHa, LoKr and the CP form of a convolution stand for.

    (B1 A1) * (B2 A2)    the rows of A are all products of a row of A1 and one of A2, columns of B likewise: rank r1 r2
    (B1 A1) x (B2 A2)    = (B1 x B2) (A1 x A2), the Kronecker product: rank r1 r2

Both are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors


def hadamard(one: LoraFactors, two: LoraFactors) -> LoraFactors:
    """The product element by element of two low-rank matrices of one shape.

    Returns:
        Factors of rank r1 r2, or of the smaller side of the matrix where that is less.

    Example:
        >>> A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
        >>> hadamard(LoraFactors(A, B), LoraFactors(A, B)).delta()
        tensor([[ 9., 36.],
                [16., 64.]])
    """
    one, two = one.folded(), two.folded()
    if hadamard_rank(one.rank, two.rank, one.shape) < one.rank * two.rank:
        return trivial((one.B @ one.A) * (two.B @ two.A))
    A = (one.A[:, None] * two.A[None]).flatten(0, 1)  # (r1 r2, in)
    B = (one.B[:, :, None] * two.B[:, None]).flatten(1)  # (out, r1 r2)
    return LoraFactors(A, B)


def hadamard_rank(one: int, two: int, shape: tuple[int, int]) -> int:
    """The rank that `hadamard` gives."""
    return min(one * two, *shape)


def kronecker(one: LoraFactors, two: LoraFactors) -> LoraFactors:
    """The Kronecker product of two low-rank matrices."""
    one, two = one.folded(), two.folded()
    return LoraFactors(_kron(one.A, two.A), _kron(one.B, two.B))


def _kron(one: Tensor, two: Tensor) -> Tensor:
    """As torch.kron, which takes no transposed matrices."""
    return torch.einsum("ij,kl->ikjl", one, two).reshape(one.shape[0] * two.shape[0], -1)


def trivial(dense: Tensor) -> LoraFactors:
    """A matrix as factors, one of which is the identity: of the rank of its smaller side.

    Example:
        >>> trivial(torch.tensor([[1.0, 2.0]])).B
        tensor([[1.]])
    """
    out, columns = dense.shape
    identity = torch.eye(min(out, columns), dtype=dense.dtype)
    return LoraFactors(dense, identity) if out <= columns else LoraFactors(identity, dense)


def through_core(core: Tensor, down: Tensor) -> Tensor:
    """The A of a convolution in CP form: sum_j core_ijkl down_jn, flattened.

    Args:
        core: (a, b, *kernel).
        down: (b, in).

    Returns:
        (a, in, *kernel).
    """
    found: Tensor = torch.einsum("ijk,jn->ink", core.flatten(2), down)
    return found.reshape(core.shape[0], down.shape[1], *core.shape[2:])
