"""Agreement and canonical bases against the dense sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linalg.stacks import KINDS, dense_sum, size, stack

from samerge.linalg import stack as stack_module
from samerge.linalg.agreement import agreement
from samerge.linalg.canonical import blocks, canonical
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import Triplets

WEIGHTS = torch.tensor([1.0, -0.5, 2.0, 0.7, 0.1] * 3, dtype=torch.float64)


@pytest.mark.parametrize("tile", [3, 512])
@pytest.mark.parametrize("kind", KINDS)
def test_agreement_with_the_dense_sum(kind, tile, monkeypatch):
    for module in ("samerge.linalg.stack", "samerge.linalg.agreement"):
        monkeypatch.setattr(f"{module}.TILE", tile)
    triplets = stack(kind)
    weights = WEIGHTS[triplets.owners]
    T = dense_sum(triplets, weights)
    expected = [triplets.S[k] * triplets.U[:, k] @ T @ triplets.V[:, k] for k in range(triplets.rank)]
    torch.testing.assert_close(agreement(triplets, weights), torch.stack(expected), rtol=1e-10, atol=1e-10)
    some = torch.tensor([7, 0, 4])
    torch.testing.assert_close(agreement(triplets, weights, some), torch.stack(expected)[some], rtol=1e-10, atol=1e-10)
    rough = agreement(stack(kind, dtype=torch.float32), weights)
    torch.testing.assert_close(rough, torch.stack(expected), rtol=1e-4, atol=1e-5 * float(max(expected).abs()))


@pytest.mark.parametrize("tile", [3, 512])
@pytest.mark.parametrize("kind", ["distinct", "too many"])  # Gram matrices first, the sum first
def test_images(kind, tile, monkeypatch):
    monkeypatch.setattr(stack_module, "TILE", tile)
    triplets = stack(kind)
    loads = torch.linspace(-1, 1, triplets.rank, dtype=torch.float64)
    groups = [torch.tensor([2, 0]), torch.tensor([1]), torch.arange(3, triplets.rank)]
    found = [torch.full((len(triplets.U), len(group)), torch.nan, dtype=torch.float64) for group in groups]
    for rows, i, image in stack_module.images(triplets, loads, groups):
        found[i][rows] = image
    T = (triplets.U * loads) @ triplets.V.T
    for group, image in zip(groups, found, strict=True):
        torch.testing.assert_close(image, T @ triplets.V[:, group], rtol=1e-10, atol=1e-10)


def flat(seed: int, turned: int | None = None, spread: float = 0.0) -> Triplets:
    """Three adapters of a (23, 17) layer with near-equal singular values in blocks; `turned` inside them by chance."""
    generator = torch.Generator().manual_seed(seed)
    other = torch.Generator().manual_seed(turned or 0)

    def draw(m: int, n: int, by: torch.Generator) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(m, n, generator=by, dtype=torch.float64))[0]

    parts = {}
    for n, sizes in enumerate(([3], [2, 1, 2], [1, 1])):
        rank = sum(sizes)
        U, V = draw(23, rank, generator), draw(17, rank, generator)
        S = torch.cat([torch.full((b,), 2.0 - 0.5 * i, dtype=torch.float64) for i, b in enumerate(sizes)])
        S *= 1 - spread * torch.arange(rank)
        if turned is not None:
            turn = torch.block_diag(*(draw(b, b, other) for b in sizes))
            U, V = U @ turn, V @ turn
        parts[n] = Triplets(U, S, V, True)
    return stacked(parts)


def test_blocks():
    assert [b.tolist() for b in blocks(flat(0))] == [[0, 1, 2], [3, 4], [6, 7]]
    assert [b.tolist() for b in blocks(flat(0, spread=4e-5))] == [[0, 1, 2], [3, 4], [6, 7]]
    assert [b.tolist() for b in blocks(flat(0, spread=7e-5))] == [[0, 1], [3, 4], [6, 7]]  # no chains
    assert blocks(flat(0, spread=2e-4)) == []
    distinct = stack("distinct")
    assert canonical(distinct, WEIGHTS[distinct.owners]) is distinct
    nothing = Triplets(torch.zeros(3, 0), torch.zeros(0).double(), torch.zeros(2, 0), True)
    assert canonical(nothing, torch.zeros(0)) is nothing


@pytest.mark.parametrize("tile", [2, 512])
@given(seed=st.integers(0, 999), turned=st.integers(1, 999))
def test_a_basis_that_depends_on_the_update_alone(tile, seed, turned):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samerge.linalg.canonical.TILE", tile)
        one, other = flat(seed), flat(seed, turned)
        weights = WEIGHTS[one.owners]
        a, b = canonical(one, weights), canonical(other, weights)
    assert not torch.allclose(one.U, other.U)
    torch.testing.assert_close(a.S, b.S)
    for n in range(3):
        own = (one.owners == n).nonzero().flatten()
        torch.testing.assert_close(a.select(own).delta(), one.select(own).delta(), rtol=0, atol=1e-12)
    for k in range(a.rank):  # each component, whose sign is free
        torch.testing.assert_close(
            torch.outer(a.U[:, k], a.V[:, k]), torch.outer(b.U[:, k], b.V[:, k]), rtol=0, atol=1e-7
        )


def test_agreement_of_a_block_are_eigenvalues_and_the_transposed_gives_the_same():
    one = flat(3)
    weights = WEIGHTS[one.owners]
    T = dense_sum(one, weights)
    found = canonical(one, weights)
    eta = agreement(found, weights)
    for block in blocks(one):
        C = one.U[:, block].T @ T @ one.V[:, block]
        expected = torch.linalg.eigvalsh((C + C.T) / 2) * one.S[block]
        torch.testing.assert_close(eta[block].sort().values, expected.sort().values)
        assert (eta[block].abs().diff() <= 1e-12).all()
    swapped = canonical(Triplets(one.V, one.S, one.U, False, one.owners), weights)
    for k in range(one.rank):
        torch.testing.assert_close(
            torch.outer(swapped.V[:, k], swapped.U[:, k]), torch.outer(found.U[:, k], found.V[:, k])
        )


def test_near_equal_values_become_one():
    one = flat(3, spread=4e-5)
    found = canonical(one, WEIGHTS[one.owners])
    assert found.S[0] == found.S[1] == found.S[2]
    assert size(found.delta() - one.delta()) < 2e-4 * size(one.delta())
    assert size(found.S) == pytest.approx(size(one.S), rel=1e-12)
