"""How many updates are different, against dense inner products."""

from __future__ import annotations

import pytest
import torch
from linalg.stacks import KINDS, adapters, stack
from torch import Tensor

from samerge.linalg import voices as module
from samerge.linalg.gram import gram
from samerge.linalg.triplets import Triplets
from samerge.linalg.voices import several, voices


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quiet", [1.0, 0.5, 0.1])
def test_two_voices_are_certain_only_where_they_are_heard(kind, quiet):
    both = stack(kind)
    loads = both.S * torch.where(both.owners > 0, quiet, 1.0)
    squares = [float(torch.linalg.svdvals(X)[0] ** 2) for X in (both.U, both.V)]
    if several(both, loads, squares[0] * squares[1]):
        assert voices(both, loads) >= 2 - 1e-9
    if kind in ("copies", "nearly copies"):
        assert not several(both, loads, squares[0] * squares[1])


def test_orthogonal_updates_are_certainly_several():
    eye = torch.eye(8, dtype=torch.float64)
    both = Triplets(eye[:, :6], torch.ones(6).double(), eye[:, :6], False, torch.arange(6) // 2)
    assert several(both, both.S, 1.0)
    assert voices(both, both.S) == pytest.approx(3)
    assert not several(both, both.S * torch.tensor([1, 1, 0.1, 0.1, 0.1, 0.1]), 1.0)
