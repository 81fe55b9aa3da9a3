"""The truncated SVD through the factors against a dense SVD."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samerge.linalg.factors import LoraFactors
from samerge.linalg.truncation import singular_triplets, svd_basis, truncate


def factors(rank, out, into, seed=0, dtype=torch.float64, scale=0.7):
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(
        torch.randn(rank, into, generator=generator, dtype=dtype),
        torch.randn(out, rank, generator=generator, dtype=dtype),
        scale,
    )


SHAPES = given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 999))


@SHAPES
def test_triplets_are_those_of_the_dense_matrix(rank, out, into, seed):
    f = factors(rank, out, into, seed)
    u, s, vh = singular_triplets(f)
    assert u.shape[1] == len(s) == len(vh) == min(rank, out, into)
    torch.testing.assert_close(s, torch.linalg.svdvals(f.delta())[: len(s)], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(u * s @ vh, f.delta(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(u.T @ u, torch.eye(len(s), dtype=torch.float64), rtol=0, atol=1e-9)
    peaks = vh.gather(1, vh.abs().argmax(1, keepdim=True))
    assert (peaks > 0).all()


@SHAPES
def test_truncation_is_eckart_youngs(rank, out, into, seed):
    f = factors(rank, out, into, seed)
    u, s, vh = torch.linalg.svd(f.delta(), full_matrices=False)
    for k in (1, 2, rank, rank + 5):
        short, lost = truncate(f, k)
        assert short.rank == min(k, rank, out, into)
        torch.testing.assert_close(short.delta(), u[:, :k] * s[:k] @ vh[:k], rtol=1e-8, atol=1e-9)
        assert lost == pytest.approx(float(s[k:].square().sum() / s.square().sum()), abs=1e-12)


def test_float32_is_as_exact_as_float32_can_be():
    f = factors(16, 300, 200, dtype=torch.float32)
    expected = torch.linalg.svd(f.to(dtype=torch.float64).delta())
    short, _ = truncate(f, 5)
    best = expected.U[:, :5] * expected.S[:5] @ expected.Vh[:5]
    assert (short.delta().double() - best).norm() / best.norm() < 1e-5


def test_truncation_of_nothing():
    for f in (factors(0, 4, 3), LoraFactors(torch.zeros(2, 3), torch.zeros(4, 2))):
        short, lost = truncate(f, 2)
        assert lost == 0.0
        assert not short.delta().any()


@given(st.integers(1, 6), st.integers(0, 999))
def test_the_basis_is_blind_to_the_gauge(rank, seed):
    f = factors(rank, 10, 8, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    Q = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))[0]
    Q = Q * torch.linspace(0.5, 2.0, rank, dtype=torch.float64)
    other = LoraFactors(torch.linalg.solve(Q, f.A), f.B @ Q, f.scale)
    torch.testing.assert_close(svd_basis(other).A, svd_basis(f).A, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(svd_basis(other).B, svd_basis(f).B, rtol=1e-6, atol=1e-7)


def test_the_basis_holds_what_exists():
    f = factors(4, 9, 7)
    twice = LoraFactors(torch.cat([f.A, f.A]), torch.cat([f.B, f.B], dim=1), f.scale)
    assert svd_basis(twice).rank == 4
    torch.testing.assert_close(svd_basis(twice).delta(), twice.delta())
    assert svd_basis(LoraFactors(torch.zeros(3, 4), torch.randn(5, 3))).rank == 0
    assert svd_basis(factors(20, 6, 5)).rank == 5  # more components than the matrix has dimensions


def test_the_basis_leaves_rows_and_columns_of_zeros_as_they_are():
    f = factors(4, 9, 7)
    f.A[:, :2], f.B[0] = 0, 0
    found = svd_basis(f)
    assert not found.A[:, :2].any()
    assert not found.B[0].any()
    torch.testing.assert_close(found.delta(), f.delta())


@pytest.mark.parametrize("width", [64, 4096])
def test_the_basis_keeps_weak_components_of_wide_layers(width):
    """What is dropped as rounding must be rounding: a component 1e-4 times the first is real in float32."""
    f = factors(2, width, width, dtype=torch.float32)
    A, B = torch.linalg.qr(f.A.T)[0].T, torch.linalg.qr(f.B)[0] * torch.tensor([1.0, 1e-4])
    kept = svd_basis(LoraFactors(A, B))
    assert kept.rank == 2
    weak = (B @ A - kept.delta()).norm()
    assert weak < 3e-6


@pytest.mark.parametrize("width", [64, 2048])
def test_the_basis_drops_rounding_in_float32(width):
    f = factors(8, width, width, dtype=torch.float32)
    twice = LoraFactors(torch.cat([f.A, f.A]), torch.cat([f.B, f.B], dim=1))
    assert svd_basis(twice).rank == 8
