"""The metric of inputs against a whole eigendecomposition."""

from __future__ import annotations

import pytest
import torch

from samerge.linalg.metric import POWER, RIDGE, metric


def dense(X: torch.Tensor) -> torch.Tensor:
    """(X^T X / n / c + RIDGE I)^POWER with c the mean of the diagonal."""
    C = X.double().T @ X.double() / len(X)
    values, E = torch.linalg.eigh(C / C.diagonal().mean() + RIDGE * torch.eye(len(C), dtype=torch.float64))
    return (E * values**POWER) @ E.T


def samples(n: int, d: int, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n + d)
    X = torch.randn(n, d, generator=generator) * torch.logspace(-spread, spread, d)
    return X @ torch.randn(d, d, generator=generator)


@pytest.mark.parametrize(("n", "d"), [(100, 8), (8, 8), (9, 8), (7, 8), (1, 8), (3, 40), (40, 3)])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_whatever_the_shape(n, d, spread) -> None:
    X = samples(n, d, spread)
    S, eye = metric(X), torch.eye(d, dtype=torch.float64)
    assert S is not None
    torch.testing.assert_close(S.times(eye), dense(X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(S.divided(eye), torch.linalg.inv(dense(X)), rtol=1e-4, atol=1e-4)


def test_samples_of_low_rank() -> None:
    """Copies of two inputs: all other directions are alike."""
    X = samples(2, 30).repeat(20, 1)
    S = metric(X)
    assert S is not None
    torch.testing.assert_close(S.times(torch.eye(30, dtype=torch.float64)), dense(X), rtol=1e-4, atol=1e-5)
    assert metric(X[:20]).V.shape == (30, 2)


def test_the_size_of_the_inputs_does_not_matter() -> None:
    X, rows = samples(20, 8), torch.randn(3, 8)
    one, other = metric(X), metric(X * 1e-4)
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one.times(rows), other.times(rows), rtol=1e-4, atol=1e-5)


def test_no_inputs_at_all() -> None:
    assert metric(torch.zeros(5, 8)) is None


def test_half_precision_is_read() -> None:
    X = samples(20, 8)
    one, other = metric(X), metric(X.bfloat16())
    torch.testing.assert_close(one.times(torch.eye(8)), other.times(torch.eye(8)), rtol=0.05, atol=0.05)
