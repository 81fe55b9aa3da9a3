"""The polar factor by Gram matrices against an SVD of the stack."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from linalg.stacks import KINDS, adapters, dense_polar, size, stack

from samerge.linalg import gram as gram_module
from samerge.linalg.gram import gram, singular_space
from samerge.linalg.polar import polar
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import singular


def with_values(d: int, n: int, values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A (d, n) matrix with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    u, v = (torch.linalg.qr(torch.randn(m, k, generator=generator, dtype=torch.float64))[0] for m in (d, n))
    return (u * values) @ v.T


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["U", "V"])
def test_of_stacks_of_adapters(kind, side):
    X = getattr(stack(kind), side)
    expected = dense_polar(X)
    found = polar(X)
    assert size(found.columns - expected) < 1e-9 * size(expected)
    assert found.full == (torch.linalg.matrix_rank(X, rtol=1e-6) == X.shape[1])
    assert found.full == (kind in ("distinct", "same start", "nearly copies"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["U", "V"])
def test_of_vectors_in_float32(kind, side):
    """Their rounding, 6e-8, comes back multiplied with the condition number of the stack: 25,000 for near copies."""
    rough = stack(kind, dtype=torch.float32)
    exact = stacked(
        {n: singular(part.to(dtype=torch.float64)) for n, part in enumerate(adapters(kind, dtype=torch.float32))}
    )
    signs = (getattr(rough, side) * getattr(exact, side)).sum(0).sign()  # of a triplet, which rounding may turn
    expected = dense_polar(getattr(exact, side)) * signs
    found = polar(getattr(rough, side)).columns
    assert size(found - expected) < (2e-3 if kind == "nearly copies" else 1e-5) * size(expected)


@pytest.mark.parametrize(("d", "n"), [(60, 20), (20, 60), (40, 40)])
@pytest.mark.parametrize("least", [1.0, 1e-2, 1e-3, 1e-4, 1e-5, 1.5e-6])
def test_down_to_the_cut_off(d, n, least):
    """Singular values whose squares a Gram matrix in float64 cannot hold beside the largest."""
    values = torch.logspace(0, torch.tensor(least).log10().item(), 20, dtype=torch.float64)
    X = with_values(d, n, values)
    found = polar(X)
    assert size(found.columns - dense_polar(X)) < 1e-9 * 20**0.5


def test_what_lies_below_the_cut_off_does_not_exist():
    values = torch.tensor([1.0, 0.5, 2e-6, 5e-7, 1e-9], dtype=torch.float64)
    X = with_values(30, 12, values)
    found = polar(X)
    there = torch.tensor([1.0] * 3 + [0.0] * 9, dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.svdvals(found.columns), there, rtol=0, atol=1e-8)
    assert not found.full


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 999), st.sampled_from([1e-18, 1.0, 1e18]))
def test_shapes_and_sizes(d, n, seed, scale):
    X = torch.randn(d, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    expected = dense_polar(X)
    assert size(polar(X).columns - expected) < 1e-8 * max(1.0, size(expected))


@given(st.sampled_from(KINDS), st.integers(0, 99), st.data())
def test_the_order_of_the_columns_does_not_matter(kind, seed, data):
    X = stack(kind, seed).U
    order = torch.tensor(data.draw(st.permutations(range(X.shape[1]))))
    whole = polar(X).columns
    torch.testing.assert_close(polar(X[:, order]).columns, whole[:, order], rtol=0, atol=1e-9)


def test_nothing_and_zero():
    for X in (torch.zeros(5, 0), torch.zeros(5, 3), torch.zeros(3, 5)):
        found = polar(X)
        assert found.columns.shape == X.shape
        assert not found.columns.any()
    assert polar(torch.zeros(5, 0)).full


@pytest.mark.parametrize("shape", [(700, 90), (90, 700), (1, 5), (5, 0)])
def test_a_gram_matrix_by_tiles(shape, monkeypatch):
    monkeypatch.setattr(gram_module, "TILE", 32)
    monkeypatch.setattr(gram_module, "ROWS", 100)
    X = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gram(X), X.double().T @ X.double(), rtol=1e-12, atol=1e-12)


def test_the_singular_space_is_one():
    X = with_values(50, 9, torch.tensor([3.0, 1.0, 1e-4, 1e-5], dtype=torch.float64))
    space = singular_space(X)
    assert space.rank == 4
    left = X @ space.inverse
    for vectors, slack in ((left, 1e-8), (space.right, 1e-12)):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(4, dtype=torch.float64), rtol=0, atol=slack)
    torch.testing.assert_close((left * space.values) @ space.right.T, X, rtol=0, atol=1e-12)
