"""`dc-merge` and `iso-cts` against their formulas on dense updates."""

from __future__ import annotations

import pytest
import torch

from methods.dense import SHAPES, close, combined, svd, updates
from samerge.methods import iso_cts

WEIGHTS = [1.0, -0.5, 2.0, 0.7]
#: Layers that hold all components, where the polar factors are orthonormal columns.
THIN = [(24, 22, (2, 3, 2)), (20, 20, (4, 4, 4, 4)), (18, 30, (5,))]


def polar(columns):
    x, s, yh = torch.linalg.svd(columns, full_matrices=False)
    alive = s > 1e-9 * s[0]
    return x[:, alive] @ yh[alive]


def dense_dc(deltas, weights, density, aggregate):
    found = [svd(delta) for delta in deltas]
    ranks = [len(s) for _, s, _ in found]
    P, Q = polar(torch.cat([u for u, _, _ in found], 1)), polar(torch.cat([v for _, _, v in found], 1))
    kept = []
    for w, (u, s, v) in zip(weights, found, strict=False):
        even = torch.ones_like(s) * s.sum() / len(s)
        M = w * P.T @ (u @ torch.diag(even) @ v.T) @ Q
        count = max(1, int(density * M.numel()))
        least = M.abs().flatten().sort(descending=True).values[count - 1]
        kept.append(torch.where(M.abs() >= least * (1 - 1e-6), M, 0.0))
    total = sum(kept)
    merged = torch.zeros_like(total)
    owner = [n for n, rank in enumerate(ranks) for _ in range(rank)]
    for k in range(len(total)):
        for m in range(len(total)):
            if owner[k] != owner[m]:
                continue
            voices = [float(M[k, m]) for M in kept if float(M[k, m]) * float(total[k, m]) > 0]
            mean = sum(voices) / len(voices) if voices else 0.0
            merged[k, m] = total[k, m] if aggregate == "sum" else mean
    return P @ merged @ Q.T


@pytest.mark.parametrize("aggregate", ["ties", "sum"])
@pytest.mark.parametrize("density", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_dc_merge(shape, density, aggregate):
    parts = updates(*shape)
    weights = WEIGHTS[: len(parts)]
    own = {"density": density, "aggregate": aggregate}
    close(combined("dc-merge", parts, weights, **own), dense_dc([p.delta() for p in parts], weights, **own))


def test_dc_merge_of_one_adapter_keeps_its_nuclear_norm():
    (part,) = updates(12, 9, (5,))
    merged = combined("dc-merge", [part], [1.0], density=1.0)
    u, s, v = svd(part.delta())
    close(merged, s.mean() * u @ v.T)


def dense_cts(deltas, weights, common):
    found = [svd(delta) for delta in deltas]
    total, count = sum(len(s) for _, s, _ in found), len(deltas)
    own = round((1 - common) * total / count)
    u, s, v = svd(sum(w * delta for w, delta in zip(weights, deltas, strict=False)))
    c = total - own * count
    lefts, values, rights = [], [], []
    for w, delta in zip(weights, deltas, strict=False):
        rest = w * delta - u[:, :c] @ u[:, :c].T @ (w * delta)
        if own and float(rest.norm()) > 1e-9 * float(delta.norm()):
            x, t, y = svd(rest)
            lefts.append(x[:, :own]), values.append(t[:own]), rights.append(y[:, :own])
    lefts.append(u[:, :c]), values.append(s[:c]), rights.append(v[:, :c])
    return torch.cat(values).mean() * polar(torch.cat(lefts, 1)) @ polar(torch.cat(rights, 1)).T


@pytest.mark.parametrize("common", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", THIN)
def test_iso_cts(shape, common, monkeypatch):
    if common != 0.8:  # which is that of the product
        monkeypatch.setattr(iso_cts, "_COMMON", common)
    parts = updates(*shape)
    weights = WEIGHTS[: len(parts)]
    close(combined("iso-cts", parts, weights), dense_cts([p.delta() for p in parts], weights, common))


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_cts_of_a_common_space_alone_is_iso_c(shape, monkeypatch):
    monkeypatch.setattr(iso_cts, "_COMMON", 1.0)
    parts = updates(*shape)
    weights = WEIGHTS[: len(parts)]
    close(combined("iso-cts", parts, weights), combined("iso-c", parts, weights))


def test_updates_that_cancel():
    (part,) = updates(12, 9, (5,))
    for method in ("iso-cts", "dc-merge"):
        assert float(combined(method, [part, part], [1.0, -1.0]).abs().max()) < 1e-6
