"""`ace` against its formula on dense updates."""

from __future__ import annotations

import pytest
import torch

from methods.dense import SHAPES, close, combined, svd, updates
from samerge.linalg.factors import LoraFactors
from samerge.methods import ace

WEIGHTS = [1.0, -0.5, 2.0, 0.7]


def dense_ace(taus, weights, eps=0.01, leading=0.3):
    """The merge, and whether the layer is uneven."""
    width = taus[0].shape[1]
    squares = torch.stack([torch.trace(tau.T @ tau) for tau in taus])
    logs = squares.log()
    uneven = len(taus) > 1 and bool(logs.var() / logs.mean() ** 2 > 0.3)
    covariances, ridged, total = [], [], 0
    for w, tau in zip(weights, taus, strict=False):
        centred = tau - tau.mean(0)
        h = torch.trace(centred.T @ centred) if uneven else 1.0
        covariances.append(centred.T @ centred / h)
        ridged.append(covariances[-1] + eps / h * torch.eye(width, dtype=tau.dtype))
        total = total + w * centred @ ridged[-1]
    shared = sum(covariances).mean(0)
    if uneven:
        shared = shared / squares.mean()
    merged = total @ torch.linalg.inv(sum(ridged) + torch.ones(width, 1, dtype=shared.dtype) * shared)
    if uneven:
        mean = sum(ridged) / len(ridged)
        moved = [w * tau @ (C - mean) for w, tau, C in zip(weights, taus, covariances, strict=False)]
        u, s, v = svd(merged + sum(moved))
        k = max(1, int(leading * len(s)))
        merged = merged + s[:k].mean() * u[:, :k] @ v[:, :k].T
    return merged, uneven


def louder(part: LoraFactors, factor: float) -> LoraFactors:
    return LoraFactors(part.A, part.B * factor, part.scale)


@pytest.mark.parametrize("leading", [0.3, 1.0])
@pytest.mark.parametrize("sizes", [(1.0, 1.0, 1.0, 1.0), (0.03, 5.0, 0.1, 2.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_ace(shape, sizes, leading, monkeypatch):
    monkeypatch.setattr(ace, "_EPS", 0.02)
    monkeypatch.setattr(ace, "_LEADING", leading)
    parts = [louder(part, size) for part, size in zip(updates(*shape), sizes, strict=False)]
    weights = WEIGHTS[: len(parts)]
    expected, uneven = dense_ace([p.delta() for p in parts], weights, 0.02, leading)
    if len(parts) < 4:  # both kinds are there; four of them are uneven as they are
        assert uneven == (sizes[0] != 1.0 and len(parts) > 1)
    size = float(expected.norm())
    close(combined("ace", parts, weights) / size, expected / size)


def test_the_defaults_are_the_authors():
    parts = [louder(part, size) for part, size in zip(updates(11, 9, (2, 3, 2)), (0.03, 5.0, 0.1), strict=True)]
    close(combined("ace", parts, [1.0] * 3), dense_ace([p.delta() for p in parts], [1.0] * 3)[0])


def test_it_depends_on_the_axes():
    """Unlike the other methods by triplets: another basis of the outputs gives another merge."""
    parts = updates(11, 9, (2, 3, 2))
    turn = torch.linalg.qr(torch.randn(11, 11, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    turned = [LoraFactors(part.A, turn @ part.B, part.scale) for part in parts]
    merged, other = combined("ace", parts, [1.0] * 3), combined("ace", turned, [1.0] * 3)
    assert float((turn @ merged - other).norm()) > 0.01 * float(merged.norm())


def test_rows_all_alike():
    """What is left without the mean of the rows is nothing, and divides nothing."""
    flat = LoraFactors(torch.randn(1, 9, dtype=torch.float64), torch.full((11, 1), 1e-3, dtype=torch.float64))
    merged = combined("ace", [flat, *updates(11, 9, (2,))], [1.0, 1.0])
    assert bool(merged.isfinite().all())
