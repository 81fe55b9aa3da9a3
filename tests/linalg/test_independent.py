"""Which components bring something new, against projections one by one."""

from __future__ import annotations

import pytest
import torch
from linalg.stacks import KINDS, stack
from methods.dense_chain import held as dense_held

from samerge.linalg.independent import HELD, held, independent


def mixed(count: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held_is_what_projections_say(kind):
    triplets = stack(kind)
    order = mixed(triplets.rank)
    U, V = triplets.U[:, order], triplets.V[:, order]
    expected = torch.tensor(dense_held(list(zip(U.T, V.T, strict=True))), dtype=torch.float64)
    torch.testing.assert_close(held(U, V), expected, rtol=0, atol=1e-2 if kind == "nearly copies" else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 4, 9, 16, 99])
def test_those_that_are_held_come_last(kind, count):
    triplets = stack(kind)
    order = mixed(triplets.rank)
    shares = dense_held([(triplets.U[:, k], triplets.V[:, k]) for k in order.tolist()])
    new = [k for k, share in zip(order.tolist(), shares, strict=True) if share <= HELD]
    late = [k for k, share in zip(order.tolist(), shares, strict=True) if share > HELD]
    expected = ([*new, *late] if count < len(order) else order.tolist())[:count]
    assert independent(triplets, order, count).tolist() == expected


def test_a_copy_takes_no_place():
    one = stack("distinct").select(torch.arange(3))
    twice = one.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    assert independent(twice, torch.arange(6), 3).tolist() == [0, 2, 4]
    assert independent(twice, torch.arange(6), 5).tolist() == [0, 2, 4, 1, 3]
