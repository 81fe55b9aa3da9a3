"""Twins among components against a dense, one by one search."""

from __future__ import annotations

import math

import pytest
import torch
from linalg.stacks import KINDS, stack

from samerge.linalg import twins
from samerge.linalg.gram import gram
from samerge.linalg.twins import joined


def dense(both, weights) -> tuple[list[float], list[float]]:
    """By whole matrices p q^T."""
    outer = [torch.outer(both.U[:, k], both.V[:, k]) for k in range(both.rank)]
    said, left = list(weights), [1.0] * both.rank
    waiting = sorted(range(both.rank), key=lambda k: (-abs(weights[k] * float(both.S[k])), k))
    while waiting:
        k, *waiting = waiting
        cosines = {j: float((outer[k] * outer[j]).sum()) for j in waiting}
        alike = [j for j in waiting if abs(cosines[j]) > 0.9]
        total = weights[k] + sum(
            math.copysign(1, cosines[j]) * weights[j] * float(both.S[j]) / float(both.S[k]) for j in alike
        )
        said[k] = max(-abs(weights[k]), min(abs(weights[k]), total)) if abs(total) > 1e-5 * abs(weights[k]) else 0.0
        for j in alike:
            said[j] = 0.0
        for j in (k, *alike):
            left[j] = abs(said[k] / weights[k])
        waiting = [j for j in waiting if j not in alike]
    return said, left


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("tile", [3, 512])
@pytest.mark.parametrize("signs", [(1.0, 1.0), (1.0, -1.0), (1.0, -0.4)])
@pytest.mark.parametrize("kind", KINDS)
def test_against_a_dense_search(kind, signs, tile, known, monkeypatch):
    monkeypatch.setattr(twins, "TILE", tile)
    both = stack(kind)
    weights = torch.tensor([(1 + 0.1 * n) * signs[n % 2] for n in both.owners.tolist()], dtype=torch.float64)
    products = (gram(both.U), gram(both.V)) if known else None
    found = joined(both, weights, products)
    for one, expected in zip(found, dense(both, weights.tolist()), strict=True):
        assert one.tolist() == pytest.approx(expected, abs=1e-9)
    if kind in ("copies", "nearly copies"):
        assert float(found[0].abs().min()) == 0
    if kind == "distinct":
        assert torch.equal(found[0], weights)


def test_many_that_are_alike_on_one_side_alone_are_no_twins():
    """More pairs than components: both ways to look at V."""
    eye = torch.eye(30, dtype=torch.float64)
    both = twins.Triplets(eye[:, [0] * 20], torch.ones(20).double(), eye[:, :20], False, torch.arange(20))
    weights = torch.ones(20).double()
    assert torch.equal(joined(both, weights)[0], weights)
    turned = twins.Triplets(both.V, both.S, both.U, False, both.owners)
    assert torch.equal(joined(turned, weights)[0], weights)
