"""What the tests of the comparators share: random updates in float64 and a naive SVD of dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.linalg.triplets import Triplets, singular
from samerge.methods.ace import ace
from samerge.methods.aswudi import aswudi
from samerge.methods.dc_merge import dc_merge
from samerge.methods.iso_c import iso_c
from samerge.methods.iso_cts import iso_cts
from samerge.methods.registry import find
from samerge.methods.star import star
from samerge.methods.svc import svc
from samerge.methods.tsv import tsv
from samerge.methods.wudi import wudi

#: Methods that are functions of the adapters' triplets.
COMBINE = {
    "tsv": tsv,
    "iso-c": iso_c,
    "iso-cts": iso_cts,
    "star": star,
    "wudi": wudi,
    "aswudi": aswudi,
    "dc-merge": dc_merge,
    "svc": svc,
    "ace": ace,
}

#: (d_out, d_in, ranks): plain, one adapter, more components than d_out or d_in.
SHAPES = [(11, 9, (2, 3, 2)), (8, 12, (4,)), (6, 14, (3, 4, 2)), (15, 5, (3, 4, 1)), (20, 20, (4, 4, 4, 4))]


def updates(d_out: int, d_in: int, ranks: Sequence[int], seed: int = 0) -> list[LoraFactors]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [LoraFactors(draw(r, d_in), draw(d_out, r), scale=0.5 + i) for i, r in enumerate(ranks)]


def regauged(parts: Sequence[LoraFactors], seed: int = 7) -> list[LoraFactors]:
    """The same updates with other factors."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in parts:
        q = torch.randn(part.rank, part.rank, generator=generator, dtype=torch.float64)
        q += 3 * torch.eye(part.rank, dtype=torch.float64)
        found.append(LoraFactors(torch.linalg.solve(q, part.A), part.B @ q, part.scale))
    return found


def held(matrix: Tensor) -> LoraFactors:
    """A dense matrix as factors."""
    return LoraFactors(torch.eye(matrix.shape[1], dtype=matrix.dtype), matrix)


def triplets(parts: Sequence[LoraFactors]) -> dict[int, Triplets]:
    """Those of the updates that are not zero, by number, as a method is given them."""
    found = {n: singular(part) for n, part in enumerate(parts)}
    return {n: part for n, part in found.items() if part.rank}


def combined(method: str, parts: Sequence[LoraFactors], weights: Sequence[float], **own: Any) -> Tensor:
    """The dense merge that a method by triplets gives; options of its own by name."""
    found = triplets(parts)
    options = find(method).options(**own)
    update, _ = COMBINE[method](found, {n: weights[n] for n in found}, len(parts), options)
    return update.delta()


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V of the singular values that are not zero."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    alive = s > 1e-9 * s[0]
    return u[:, alive], s[alive], vh[alive].T


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
