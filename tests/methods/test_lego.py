"""`lora-lego`: k-means from inner products against k-means on the vectors, and the best of all partitions."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge
from methods.dense import close, updates
from samerge.linalg.factors import LoraFactors, concatenate
from samerge.methods.lora_lego import centroids, cluster


def vectors(units: LoraFactors) -> torch.Tensor:
    return torch.cat([units.A, units.B.T], dim=1)


def cost(points, labels):
    return sum(float((points[labels == c] - points[labels == c].mean(0)).square().sum()) for c in set(labels.tolist()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_best_partition_is_found(seed, count):
    points = vectors(concatenate(updates(4, 3, (3, 4), seed=seed)))
    labels = cluster(points @ points.T, count, seed=0, restarts=30)
    assert set(labels.tolist()) == set(range(count))
    best = min(
        cost(points, torch.tensor(choice))
        for choice in product(range(count), repeat=len(points))
        if len(set(choice)) == count
    )
    assert cost(points, labels) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_points_does_not_matter(seed):
    """Also where the starts do not find the best partition."""
    points = torch.randn(24, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    turned = torch.randperm(24, generator=torch.Generator().manual_seed(seed + 9))
    labels = cluster(points @ points.T, 8, seed=0, restarts=2)[turned]
    other = cluster(points[turned] @ points[turned].T, 8, seed=0, restarts=2)
    assert torch.equal(labels[:, None] == labels, other[:, None] == other)


def test_centroids():
    units = concatenate(updates(5, 4, (3, 3)))
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    merged = centroids(units, labels)
    points = vectors(units)
    for c in range(3):
        own = points[labels == c]
        mean = own.mean(0)
        close(vectors(merged)[c], mean / mean.norm() * own.norm(dim=1).mean())


def test_coinciding_units():
    points = torch.ones(5, 3, dtype=torch.float64)
    assert set(cluster(points @ points.T, 3, seed=0, restarts=2).tolist()) == {0, 1, 2}


def test_through_merge(tmp_path):
    """Two adapters that differ by little: each unit meets its twin."""
    base = chain([8, 9])
    factors = chain_factors(base, 3, seed=0)
    near = {m: (A + 1e-3, B - 1e-3) for m, (A, B) in factors.items()}
    adapters = {"a": write_adapter(tmp_path / "a", factors), "b": write_adapter(tmp_path / "b", near)}
    merged = samerge.merge(None, adapters, method="lora-lego")
    assert merged.settings["r"] == 3
    (A, B) = factors["layers.0"]
    torch.testing.assert_close(merged.delta("layers.0"), B @ A, rtol=1e-2, atol=1e-2)
    whole = samerge.merge(None, adapters, method="lora-lego", rank=6)
    torch.testing.assert_close(
        whole.delta("layers.0"), samerge.merge(None, adapters, method="linear").delta("layers.0")
    )
