"""The core space is exact, and what runs in it neither knows the gauge nor the order of the adapters."""

from __future__ import annotations

import pytest
import torch
from samerge.methods.isotropic import iso_c

from methods.dense import SHAPES, close, regauged, through_core, updates
from samerge.linalg.core_space import core_space
from samerge.linalg.factors import LoraFactors
from samerge.methods.star import star
from samerge.methods.tsv import tsv
from samerge.methods.wudi import aswudi, wudi

#: name -> merged core from cores and weights
EXACT = {
    "wudi": wudi,
    "wudi-ridge": lambda cores, weights: wudi(cores, weights, mu=0.1),
    "aswudi": aswudi,
    "tsv": lambda cores, weights: tsv(cores, weights)[0],
    "iso-c": iso_c,
    "star": lambda cores, weights: star(cores, weights, len(cores))[0],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_cores_are_the_updates(shape):
    parts = updates(*shape)
    for space in (core_space(parts), core_space(parts).canonical()):
        close(space.left.T @ space.left, torch.eye(space.left.shape[1], dtype=torch.float64))
        close(space.right.T @ space.right, torch.eye(space.right.shape[1], dtype=torch.float64))
        for part, core in zip(parts, space.cores, strict=True):
            close(space.left @ core @ space.right.T, part.delta())
            lifted = space.lift(core, torch.float64)
            close(lifted.delta(), part.delta())
            assert lifted.rank == min(part.rank, *part.shape)


def test_the_canonical_cores_depend_on_the_updates_alone():
    parts = updates(11, 9, (2, 3))
    a = core_space(parts).canonical()
    b = core_space(regauged(parts[::-1])).canonical()
    for one, other in zip(a.cores, reversed(b.cores), strict=True):
        close(one.abs(), other.abs())


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("shape", SHAPES)
def test_neither_the_gauge_nor_the_order_matters(name, shape):
    parts = updates(*shape)
    weights = [1.0, -0.5, 2.0, 0.7][: len(parts)]
    merged = through_core(lambda cores: EXACT[name](cores, weights), parts)
    other = through_core(lambda cores: EXACT[name](cores, weights), regauged(parts))
    torch.testing.assert_close(merged, other, rtol=1e-7, atol=1e-7)
    turned = through_core(lambda cores: EXACT[name](cores, weights[::-1]), parts[::-1])
    torch.testing.assert_close(merged, turned, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["wudi", "wudi-ridge", "tsv"])
def test_one_adapter_is_itself_and_so_are_copies(name):
    parts = updates(11, 9, (3,))
    for count in (1, 2, 3):
        merged = through_core(lambda cores: EXACT[name](cores, [1.0] * len(cores)), parts * count)
        if name == "wudi-ridge" and count > 1:
            continue  # pulled towards the sum
        torch.testing.assert_close(merged, parts[0].delta(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", EXACT)
def test_zero_updates_are_zero(name):
    zero = LoraFactors(torch.ones(2, 5), torch.zeros(4, 2))
    assert not through_core(lambda cores: EXACT[name](cores, [1.0, 1.0]), [zero, zero]).any()
    one = updates(4, 5, (2,))[0]
    both = through_core(lambda cores: EXACT[name](cores, [1.0, 1.0]), [one, zero])
    assert torch.isfinite(both).all()
