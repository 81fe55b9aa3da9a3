"""Laws of the default's chain on signs of weights and of updates, by no formula of the method."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge

BASE = chain([40, 44, 36])
A, B = chain_factors(BASE, 6, 1), chain_factors(BASE, 6, 2)


def negative(table: dict) -> dict:
    return {m: (A, -B) for m, (A, B) in table.items()}


def merged(folder, tables, weights, rank) -> dict[str, torch.Tensor]:
    """By module the merged update of `even`."""
    adapters = [write_adapter(folder / f"{weights}{rank}{n}", table) for n, table in enumerate(tables)]
    made = samerge.merge(None, adapters, method="even", weights=list(weights), rank=rank, progress=False)
    return {module: made.delta(module).double() for module in made.factors}


def near(one, other, tolerance=1e-3) -> bool:
    return all(float((one[m] - other[m]).norm()) <= tolerance * float(one[m].norm()) for m in one)


@pytest.mark.parametrize("rank", [3, 6, 12, 40])
@pytest.mark.parametrize(
    ("tables", "weights"),
    [((A, B), (1.0, 1.0)), ((A, B), (0.5, -0.8)), ((A, A, B), (1.0, -1.0, 1.0)), ((A, A, B), (1.0, 1.0, 1.0))],
    ids=["two", "two unequal", "less its copy", "copies"],
)
def test_minus_an_update_at_minus_its_weight_is_the_update(tmp_path, tables, weights, rank):
    turned = [tables[0], negative(tables[1]), *tables[2:]]
    signs = [weights[0], -weights[1], *weights[2:]]
    assert near(merged(tmp_path / "a", tables, weights, rank), merged(tmp_path / "b", turned, signs, rank))


@pytest.mark.parametrize("rank", [3, 6, 12, 40])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_what_is_taken_back_leaves_the_others_alone(tmp_path, rank, order):
    """A, A at -1, and B: whatever the order, only B speaks, as loud as it is."""
    tables, weights = [[(A, A, B)[n] for n in order], [(1.0, -1.0, 1.0)[n] for n in order]]
    found = merged(tmp_path, tables, weights, rank)
    for module, delta in found.items():
        tau, taken = (t[module][1].double() @ t[module][0].double() for t in (B, A))
        own = torch.linalg.svdvals(tau)[: min(rank, 6)].norm()
        assert float((delta * tau).sum() / delta.norm() / tau.norm()) > 0.7
        assert abs(float((delta * taken).sum() / delta.norm() / taken.norm())) < 0.1
        mean = sum(float((t[module][1] @ t[module][0]).norm()) for t in (A, A, B)) / 3  # the balance
        assert float(delta.norm()) == pytest.approx(float(own) * mean / float(tau.norm()), rel=0.01)


@pytest.mark.parametrize("weight", [0.1, 0.3, 0.5])
def test_a_negative_weight_is_not_a_positive_one(tmp_path, weight):
    """Also for an adapter that has much in common with the other."""
    mixed = {m: tuple(0.6 * x + 0.4 * y for x, y in zip(A[m], B[m], strict=True)) for m in A}
    plus, minus = (merged(tmp_path / f"{w}", (A, mixed), (1.0, w), 12) for w in (weight, -weight))
    for module in plus:
        tau = mixed[module][1].double() @ mixed[module][0].double()
        difference = plus[module] - minus[module]
        assert float((difference * tau).sum()) > 0
        assert float(difference.norm()) > weight * float(plus[module].norm())


@pytest.mark.parametrize("rank", [6, 12, 40])
@pytest.mark.parametrize("weight", [1.0, 0.5, -0.25, -0.5, -0.9])
def test_a_copy_at_another_weight(tmp_path, weight, rank):
    """One voice: no louder than the louder of the two, and no louder than their sum."""
    found = merged(tmp_path, (A, A), (1.0, weight), rank)
    for module, delta in found.items():
        tau = A[module][1].double() @ A[module][0].double()
        assert float(delta.norm()) == pytest.approx(min(1.0, 1.0 + weight) * float(tau.norm()), rel=1e-3)
        assert float((delta * tau).sum() / delta.norm() / tau.norm()) > 0.7
