"""`pcb` against its formulas on flat vectors."""

from __future__ import annotations

import pytest
import torch

from methods.dense import close
from methods.streams import dense, layers, run, top
from samerge.factors import LoraFactors
from samerge.methods import rows
from samerge.methods.pcb import prepare_pcb
from samerge.methods.rows import Layer


def naive(vectors, density, quantile):
    """(N, n) flat vectors, 0 where an expert has no such layer (nan in `vectors`)."""
    has = ~vectors.isnan()
    shares = torch.zeros_like(vectors)
    for i, row in enumerate(vectors):
        a = row[has[i]].abs()
        ordered = a.sort().values
        cut = round(quantile * (len(a) - 1))
        low, high = ordered[cut], ordered[len(a) - 1 - cut]
        shares[i, has[i]] = (a.clamp(low, high) - low) / (high - low)
    signed = shares * vectors.nan_to_num().sign()
    inter = sum(torch.tanh(signed * other) for other in signed)
    scores = torch.exp(len(vectors) * shares**2) * inter
    s = torch.zeros_like(scores)
    for i, row in enumerate(scores):
        own = row[has[i]]
        limit = own.sort(descending=True).values[max(1, round(density * len(own))) - 1]
        s[i, has[i]] = ((own - limit) / (own.max() - limit)).clamp_min(0)
    total = s.sum(0)
    return (s * vectors.nan_to_num()).sum(0) / torch.where(total > 0, total, 1)


@pytest.mark.parametrize(("density", "quantile"), [(0.1, 0.01), (0.5, 0.0), (1.0, 0.1)])
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
    found = run("pcb", prepare_pcb, made, density, quantile=quantile)
    close(torch.cat([merged.flatten() for merged in found]), expected)


def test_a_zero_adapter_has_no_share():
    """All its scores are 0, and so equal; it counts as one of the N, and no more."""
    (layer,) = layers()[:1]
    part = layer.parts[1]
    zero = LoraFactors(part.A, part.B * 0)
    made = [Layer(layer.module, layer.shape, layer.names, {0: layer.parts[0], 1: zero})]
    (found,) = run("pcb", prepare_pcb, made, 0.3)
    own = layer.parts[0].delta()
    kept = top(own.abs(), max(1, round(0.3 * own.numel())) - 1)  # the least one that is kept has share 0
    close(found, own * kept)
