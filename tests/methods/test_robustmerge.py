"""`robustmerge` against its formulas on the factors."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge
from methods.dense import close, updates
from samerge.methods.robustmerge import robust


def pruned(matrix, density):
    count = max(1, round(density * matrix.numel()))
    return matrix * (matrix.abs() >= matrix.abs().flatten().sort(descending=True).values[count - 1])


def naive(pairs, density, rank, floor=0.8):
    """Component by component, from (A, B)."""
    scales = torch.zeros(len(pairs), rank, dtype=torch.float64)
    for i, (A, _) in enumerate(pairs):
        small = pruned(A, density)
        for k in range(len(A)):
            if small[k].any():
                scales[i, k] = A[k].abs().sum() / small[k].abs().sum()
        alive = sorted(float(scale) for scale in scales[i] if scale)
        least = alive[min(math.floor(floor * len(alive)), len(alive) - 1)]
        scales[i] = torch.where(scales[i] > 0, scales[i].clamp_min(least), 0.0)
    scales = scales / scales.sum(0).clamp_min(1e-300)
    left = torch.zeros(pairs[0][1].shape[0], rank, dtype=torch.float64)
    right = torch.zeros(rank, pairs[0][0].shape[1], dtype=torch.float64)
    for i, (A, B) in enumerate(pairs):
        left[:, : len(A)] += pruned(B, density) * scales[i, : len(A)]
        right[: len(A)] += pruned(A, density)
    return left @ right


@pytest.mark.parametrize("ranks", [(3, 3), (2, 4, 3), (1,)])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.7, 1.0])
@pytest.mark.parametrize("floor", [0.0, 0.5, 0.8, 1.0])
def test_robust(ranks, density, floor):
    parts = [part.folded() for part in updates(7, 9, ranks)]
    close(robust(parts, density, floor).delta(), naive([(p.A, p.B) for p in parts], density, max(ranks), floor))


def test_one_adapter_unpruned_is_itself():
    (part,) = updates(7, 9, (3,))
    close(robust([part.folded()], 1.0, 0.8).delta(), part.delta())


def test_through_merge(tmp_path):
    base = chain([8, 9])
    factors = [chain_factors(base, rank, seed=rank) for rank in (2, 3)]
    adapters = [write_adapter(tmp_path / str(n), f) for n, f in enumerate(factors)]
    merged = samerge.merge(None, adapters, weights=[1.0, -2.0], method="robustmerge")
    pairs = [tuple(t.double() for t in f["layers.0"]) for f in factors]
    expected = 4 * naive([pairs[0], (pairs[1][0], -2 * pairs[1][1])], 0.2, 3)
    assert merged.settings["r"] == 3
    torch.testing.assert_close(merged.delta("layers.0").double(), expected, rtol=1e-5, atol=1e-5)


def test_what_is_refused(tmp_path):
    adapter = write_adapter(tmp_path / "a", chain_factors(chain([8, 9]), 2, seed=0))
    with pytest.raises(samerge.OptionError, match=r"floor=1.5 must be in \[0, 1\]"):
        samerge.merge(None, {"a": adapter}, method="robustmerge", floor=1.5)
