"""`pcb` against its formulas on flat vectors."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge
from methods.dense import close
from methods.streams import dense, layers, run, top
from samerge.linalg.factors import LoraFactors
from samerge.methods import pcb, rows
from samerge.methods.pcb import clipping_ranks
from samerge.methods.rows import Layer


def between(values, low, high):
    """The places `low` and `high` of their ascending order."""
    ordered = values.sort().values
    return ordered[low], ordered[high]


def naive(vectors, density, quantile):
    """(N, n) flat vectors, nan where an expert has no such layer."""
    has = ~vectors.isnan()
    values = vectors.nan_to_num()
    clipped, scores, s = (torch.zeros_like(values) for _ in range(3))
    for i, row in enumerate(values):
        a = row[has[i]].abs()
        low, high = between(a, math.floor(len(a) * quantile), math.floor(len(a) * (1 - quantile) - 1))
        a = a.clamp(low, high)
        clipped[i, has[i]] = row[has[i]].sign() * a
        intra = torch.exp(len(values) * ((a - low) / (high - low)) ** 2)
        scores[i, has[i]] = intra * torch.tanh(row * values.sum(0))[has[i]]
    for i, row in enumerate(scores):
        own = row[has[i]]
        limit, most = between(own, math.floor(len(own) * (1 - density)), len(own) - 1)
        s[i, has[i]] = ((own - limit) / (most - limit)).clamp_min(0)
    total = s.sum(0)
    return (s * clipped).sum(0) / torch.where(total > 0, total, 1)


@pytest.mark.parametrize(("density", "quantile"), [(0.1, 1e-4), (0.5, 0.0), (1.0, 0.1)])
def test_pcb(density, quantile, monkeypatch):
    monkeypatch.setattr(rows, "TILE_ELEMENTS", 20)
    made = layers()
    updates = dense(made)
    vectors = torch.stack(
        [
            torch.cat(
                [u.get(n, torch.full(layer.shape, torch.nan)).flatten() for layer, u in zip(made, updates, strict=True)]
            )
            for n in range(3)
        ]
    )
    expected = naive(vectors, density, quantile)
    if quantile != 1e-4:  # which is that of the product
        monkeypatch.setattr(pcb, "_QUANTILE", quantile)
    found = run("pcb", made, density)
    close(torch.cat([merged.flatten() for merged in found]), expected)


def test_a_zero_adapter_has_no_share(monkeypatch):
    """All its scores are 0, and so equal; it counts as one of the N, and no more."""
    (layer,) = layers()[:1]
    part = layer.parts[1]
    zero = LoraFactors(part.A, part.B * 0)
    made = [Layer(layer.module, layer.shape, layer.names, {0: layer.parts[0], 1: zero})]
    monkeypatch.setattr(pcb, "_QUANTILE", 0.0)
    (found,) = run("pcb", made, 0.3)
    own = layer.parts[0].delta()
    kept = top(own.abs(), math.ceil(0.3 * own.numel()) - 1)  # the least one that is kept has share 0
    close(found, own * kept)


@pytest.mark.parametrize("quantile", [0.0, 1e-4, 0.3, 0.499])
def test_the_ends_of_few_values_do_not_cross(quantile):
    for size in range(1, 40):
        high, low = clipping_ranks(size, quantile)
        assert 1 <= high <= low <= size


def test_what_is_clipped_is_merged(monkeypatch):
    """One adapter, all of it kept: its values without its outliers."""
    (layer,) = layers()[:1]
    made = [Layer(layer.module, layer.shape, layer.names, {0: layer.parts[0]})]
    monkeypatch.setattr(pcb, "_QUANTILE", 0.1)
    (found,) = run("pcb", made, 1.0)
    own = layer.parts[0].delta()
    low, high = between(own.abs().flatten(), 6, 55)  # of 63
    least = own.abs().flatten().argmin()  # has the least score, and no share
    expected = own.sign() * own.abs().clamp(low, high)
    expected.view(-1)[least] = 0
    close(found, expected)


def test_equal_values_are_all_kept():
    """There is nothing between the ends, neither of magnitudes nor of scores."""
    part = LoraFactors(torch.ones(1, 5, dtype=torch.float64), torch.full((4, 1), -2.0, dtype=torch.float64))
    made = [Layer("one", (4, 5), {0: "zero", 1: "one"}, {0: part, 1: part})]
    (found,) = run("pcb", made, 0.2)
    close(found, part.delta())


def test_more_adapters_than_float32_can_score(tmp_path):
    base = chain([4, 5])
    adapters = {f"e{n}": write_adapter(tmp_path / f"e{n}", chain_factors(base, 1, seed=n)) for n in range(89)}
    with pytest.raises(samerge.OptionError, match="89 adapters is beyond the range of float32; it merges 88 at most"):
        samerge.merge(None, adapters, method="pcb")
    del adapters["e88"]
    merged = samerge.merge(None, adapters, method="pcb")
    assert all(bool(f.A.isfinite().all()) for f in merged.factors.values())
