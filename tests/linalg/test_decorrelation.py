"""The decorrelation of the kept components against a dense one."""

from __future__ import annotations

import pytest
import torch
from linalg.stacks import KINDS, size, stack

from samerge.linalg.decorrelation import CLEAR, NEAR, decorrelated


def dense(X: torch.Tensor) -> torch.Tensor:
    """By a whole SVD: directions whose eigenvalue is far below `NEAR` are left out."""
    u, s, vh = torch.linalg.svd(X.double(), full_matrices=False)
    return u * (s**8 / (s**8 + NEAR**4)) @ vh


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [[0, 10, 5, 8, 14], list(range(16))], ids=["few", "all of five"])
def test_against_the_dense_one(kind, index):
    triplets = stack(kind)
    for X in (triplets.U, triplets.V):
        found = decorrelated(X, torch.tensor(index))
        once = dense(X)[:, index]
        twice = dense(once / once.norm(dim=0))
        assert size(found.columns - twice) < 2e-6 * size(twice)
        off = size(found.columns.T @ found.columns - torch.eye(len(index), dtype=torch.float64))
        assert (off < 1e-5) == found.orthonormal
        if found.root is not None:
            torch.testing.assert_close(found.root @ found.root.T, X.T @ X, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [600, 45, 40])
def test_float32(width):
    """Well conditioned, hardly so, and not at all: as exact as the vectors are."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(width, 30, generator=generator, dtype=torch.float64)
    X[:, 20] += (3 if width == 40 else 0) * X[:, 3]
    X = (X / X.norm(dim=0)).float()
    kept = torch.tensor([4, 3, 20, 11])
    found = decorrelated(X, kept)
    once = dense(X)[:, kept]
    twice = dense(once / once.norm(dim=0))
    clear = bool(torch.linalg.svdvals(X.double())[-1].square() > CLEAR)
    assert (found.columns.dtype == torch.float32) == clear == (width == 600)
    assert size(found.columns - twice) < 1e-5 * size(twice)


def test_orthogonal_adapters_are_left_as_they_are():
    eye = torch.eye(12, dtype=torch.float64)
    columns = decorrelated(eye[:, [3, 1, 7, 5]], torch.tensor([2, 0])).columns
    torch.testing.assert_close(columns, eye[:, [7, 3]], rtol=0, atol=1e-9)


def test_both_copies_of_a_vector_share_one_direction():
    eye = torch.eye(4, dtype=torch.float64)
    twice = torch.cat([eye[:, :2], eye[:, :2]], dim=1)
    found = decorrelated(twice, torch.tensor([0, 2]))
    assert not found.orthonormal
    torch.testing.assert_close(found.columns @ found.columns.T, torch.outer(eye[0], eye[0]), rtol=0, atol=1e-9)
    found = decorrelated(twice, torch.tensor([0, 3]))  # different ones
    assert found.orthonormal
    torch.testing.assert_close(found.columns, eye[:, :2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("noise", [2e-2, 1e-3, 1e-6])  # of a vector's norm
def test_near_copies_do_not_become_noise(noise):
    """A plain polar factor makes a direction of their difference as strong as the one they share."""
    generator = torch.Generator().manual_seed(0)
    one = torch.linalg.qr(torch.randn(50, 6, generator=generator, dtype=torch.float64)).Q
    other = torch.linalg.qr(one + noise / 7 * torch.randn(50, 6, generator=generator, dtype=torch.float64)).Q
    both = decorrelated(torch.cat([one, other], dim=1), torch.arange(12)).columns
    shared = both[:, :6] + both[:, 6:]  # both say the same
    cosines = (shared * one).sum(dim=0) / shared.norm(dim=0)
    assert float(cosines.min()) > 0.99
    assert size(both[:, :6] - both[:, 6:]) < 0.05 * size(shared)
