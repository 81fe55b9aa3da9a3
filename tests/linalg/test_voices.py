"""How many updates are different, against dense inner products."""

from __future__ import annotations

import pytest
import torch
from linalg.stacks import KINDS, adapters, stack
from torch import Tensor

from samerge.linalg import voices as module
from samerge.linalg.gram import gram
from samerge.linalg.voices import voices


def dense(updates: list[Tensor]) -> float:
    """The participation ratio of the eigenvalues of the Gram matrix of whole updates."""
    flat = torch.stack([one.double().flatten() for one in updates])
    values = torch.linalg.svdvals(flat).square()
    return float(values.sum() ** 2 / values.square().sum())


@pytest.mark.parametrize("signs", [(1.0, 1.0), (1.0, -1.0)])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_against_whole_updates(kind, known, signs, monkeypatch):
    monkeypatch.setattr(module, "TILE", 5)  # several tiles
    parts, both = adapters(kind), stack(kind)
    weights = [(0.3 + n % 3) * signs[n % 2] for n in range(len(parts))]
    loads = both.S * torch.tensor([weights[n] for n in both.owners.tolist()], dtype=torch.float64)
    grams = (gram(both.U), gram(both.V)) if known else (None, None)
    expected = dense([weight * part.delta() for weight, part in zip(weights, parts, strict=True)])
    assert voices(both, loads, *grams) == pytest.approx(expected, rel=1e-9)


def test_the_bounds():
    copies = stack("nearly copies")
    assert 1 <= voices(copies, copies.S) < 1.001
    apart = stack("distinct")
    assert 1 < voices(apart, apart.S) <= 5
    assert voices(apart, torch.zeros_like(apart.S)) == 1
