"""Singular values of weighted sums against a dense SVD; triplets of several updates against those of each."""

from __future__ import annotations

import pytest
import torch
from methods.dense import SHAPES, updates

from samerge.linalg.factors import LoraFactors
from samerge.linalg.sums import Summed
from samerge.linalg.triplets import singular, singular_of


@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
def test_against_a_dense_svd(d_out, d_in, ranks):
    parts = updates(d_out, d_in, ranks)
    B, A = torch.cat([part.B for part in parts], dim=1), torch.cat([part.A for part in parts])
    loads = torch.cat([torch.full((part.rank,), part.scale, dtype=torch.float64) for part in parts])
    owners = torch.cat([torch.full((part.rank,), n) for n, part in enumerate(parts)])
    values, turns = torch.linalg.eigh(B.T @ B)
    scales = [1.0, -0.5, 3.0, 0.25][: len(parts)]
    dense = sum(c * part.delta() for c, part in zip(scales, parts, strict=True))
    expected = torch.linalg.svdvals(dense).square()
    found = Summed(turns * values.clamp_min(0).sqrt(), A @ A.T, loads, owners).squares(scales)
    for k in range(max(len(found), len(expected))):
        one = found[k] if k < len(found) else 0.0
        assert one == pytest.approx(float(expected[k]) if k < len(expected) else 0.0, rel=1e-8, abs=1e-9 * found[0])


def test_triplets_of_several_updates():
    parts = [*updates(20, 30, (4, 4, 2, 4, 2)), LoraFactors(torch.zeros(4, 30).double(), torch.zeros(20, 4).double())]
    for part, found in zip(parts, singular_of(parts), strict=True):
        alone = singular(part)
        assert found.rank == alone.rank
        for name in ("U", "S", "V"):
            torch.testing.assert_close(getattr(found, name), getattr(alone, name), rtol=1e-9, atol=1e-9)
    assert singular_of([]) == []
