"""The decorrelation of the kept components against a dense one."""

from __future__ import annotations

import pytest
import torch
from linalg.stacks import KINDS, dense_polar, size, stack

from samerge.linalg.decorrelation import decorrelated


def dense(X: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Columns of the polar factor, made orthonormal once more where the stack has not full column rank."""
    columns = dense_polar(X)[:, index]
    return columns if torch.linalg.matrix_rank(X, rtol=1e-6) == X.shape[1] else dense_polar(columns)


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_dense_one(kind):
    triplets = stack(kind)
    index = torch.tensor([0, 10, 5, 8, 14])  # of adapters 0, 3, 1, 2 and 4
    for X in (triplets.U, triplets.V):
        made = decorrelated(X, index)
        found, orthonormal = made.columns, made.full
        assert orthonormal
        assert size(found - dense(X, index)) < 1e-8
        torch.testing.assert_close(found.T @ found, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-8)


def test_orthogonal_adapters_are_left_as_they_are():
    eye = torch.eye(12, dtype=torch.float64)
    stack = eye[:, [3, 1, 7, 5]]
    torch.testing.assert_close(decorrelated(stack, torch.tensor([2, 0])).columns, eye[:, [7, 3]])


def test_both_copies_of_a_vector_share_one_direction():
    eye = torch.eye(4, dtype=torch.float64)
    stack = torch.cat([eye[:, :2], eye[:, :2]], dim=1)
    found = decorrelated(stack, torch.tensor([0, 2]))
    u, orthonormal = found.columns, found.full
    assert not orthonormal
    torch.testing.assert_close(u @ u.T, torch.outer(eye[0], eye[0]))
    found = decorrelated(stack, torch.tensor([0, 3]))  # different ones
    one, orthonormal = found.columns, found.full
    assert orthonormal
    torch.testing.assert_close(one, eye[:, :2])
