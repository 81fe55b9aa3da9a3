"""What is a function of triplets knows neither the gauge nor the order of the adapters; the core space is exact."""

from __future__ import annotations

import pytest
import torch

from methods.dense import SHAPES, close, combined, regauged, triplets, updates
from samerge.linalg.core_space import core_space
from samerge.linalg.factors import LoraFactors

#: name -> the method, its options.
EXACT = {
    "wudi": ("wudi", {}),
    "wudi-ridge": ("wudi", {"mu": 0.1}),
    "aswudi": ("aswudi", {}),
    "tsv": ("tsv", {}),
    "iso-c": ("iso-c", {}),
    "star": ("star", {}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_cores_are_the_updates(shape):
    parts = updates(*shape)
    space = core_space(list(triplets(parts).values()))
    for basis in (space.left, space.right):
        close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    for part, core in zip(parts, space.cores, strict=True):
        close(space.left @ core.delta() @ space.right.T, part.delta())
        assert core.rank == part.rank


def test_the_cores_depend_on_the_updates_alone():
    parts = updates(11, 9, (2, 3))
    a = core_space(list(triplets(parts).values()))
    b = core_space(list(triplets(regauged(parts[::-1])).values()))
    for one, other in zip(a.cores, reversed(b.cores), strict=True):
        close(one.delta().abs(), other.delta().abs())


def test_directions_that_no_update_has_are_in_no_core_space():
    first, other = updates(20, 15, (3, 2))
    space = core_space(list(triplets([first, other, *regauged([first]), *regauged([other], 3)]).values()))
    assert (space.left.shape[1], space.right.shape[1]) == (5, 5)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shape", SHAPES)
def test_neither_the_gauge_nor_the_order_matters(name, shape):
    method, own = EXACT[name]
    parts = updates(*shape)
    weights = [1.0, -0.5, 2.0, 0.7][: len(parts)]
    merged = combined(method, parts, weights, **own)
    other = combined(method, regauged(parts), weights, **own)
    torch.testing.assert_close(merged, other, rtol=1e-7, atol=1e-7)
    turned = combined(method, parts[::-1], weights[::-1], **own)
    torch.testing.assert_close(merged, turned, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["wudi", "wudi-ridge", "tsv"])
def test_one_adapter_is_itself_and_so_are_copies(name):
    method, own = EXACT[name]
    parts = updates(11, 9, (3,))
    for count in (1, 2, 3):
        if name == "wudi-ridge" and count > 1:
            continue  # pulled towards the sum
        merged = combined(method, parts * count, [1.0] * count, **own)
        torch.testing.assert_close(merged, parts[0].delta(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", EXACT)
def test_a_zero_update_takes_no_part(name):
    method, own = EXACT[name]
    one = updates(4, 5, (2,))[0]
    both = combined(method, [one, LoraFactors(torch.ones(2, 5), torch.zeros(4, 2))], [1.0, 1.0], **own)
    alone = combined(method, [one], [1.0], **own)
    close(both, alone / 2 if name == "star" else alone)


@pytest.mark.parametrize("name", [name for name in EXACT if name not in ("wudi", "aswudi")])
def test_updates_that_cancel_give_zero(name):
    """However they are written. The ridge of `wudi` is towards the sum; without it two targets for one input meet."""
    method, own = EXACT[name]
    parts = updates(11, 9, (3, 2))
    minus = regauged([LoraFactors(part.A, -part.B, part.scale) for part in parts])
    merged = combined(method, [*parts, *minus], [1.0] * 4, **own)
    assert merged.norm() < 1e-9 * parts[0].delta().norm()
    again = combined(method, [*parts, *regauged(parts)], [1.0, 1.0, -1.0, -1.0], **own)
    assert again.norm() < 1e-9 * parts[0].delta().norm()
