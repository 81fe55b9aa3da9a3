"""The decorrelation of the kept components against a dense one."""

from __future__ import annotations

import pytest
import torch
from linalg.stacks import KINDS, dense_polar, size, stack

from samerge.linalg.decorrelation import decorrelated
from samerge.linalg.stack import stacked
from samerge.linalg.triplets import Triplets


def dense(X: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Columns of the polar factor, made orthonormal once more where the stack has not full column rank."""
    columns = dense_polar(X)[:, index]
    return columns if torch.linalg.matrix_rank(X, rtol=1e-6) == X.shape[1] else dense_polar(columns)


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_dense_one(kind):
    triplets = stack(kind)
    index = torch.tensor([0, 10, 5, 8, 14])  # of adapters 0, 3, 1, 2 and 4
    for found, X in zip(decorrelated(triplets, index), (triplets.U, triplets.V), strict=True):
        assert size(found - dense(X, index)) < 1e-8
        torch.testing.assert_close(found.T @ found, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-8)


def test_orthogonal_adapters_are_left_as_they_are():
    eye = torch.eye(12, dtype=torch.float64)
    values = torch.tensor([3.0, 2.0], dtype=torch.float64)
    parts = {n: Triplets(eye[:, 2 * n : 2 * n + 2], values, eye[:, 6 + 2 * n : 8 + 2 * n], True) for n in range(3)}
    u, v = decorrelated(stacked(parts), torch.tensor([4, 1]))
    torch.testing.assert_close(u, eye[:, [4, 1]])
    torch.testing.assert_close(v, eye[:, [10, 7]])


def test_both_copies_of_a_component_share_one_direction():
    eye = torch.eye(4, dtype=torch.float64)
    part = Triplets(eye[:, :2], torch.tensor([2.0, 1.0], dtype=torch.float64), eye[:, 1:3], True)
    u, v = decorrelated(stacked({0: part, 1: part}), torch.tensor([0, 2]))  # the first of either
    torch.testing.assert_close(u @ v.T, torch.outer(eye[0], eye[1]))
    one, _ = decorrelated(stacked({0: part, 1: part}), torch.tensor([0, 3]))  # different ones
    torch.testing.assert_close(one, eye[:, :2])
