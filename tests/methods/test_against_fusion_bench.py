"""The comparators against FusionBench's merges of the same updates (benchmarks/peers.py).

It has no weights: every update counts once. Its `ties` and what is built on it trims whole flattened models, as is done
here; its threshold is the next smaller value, so that it keeps one element more than density asks for.
"""

from __future__ import annotations

import pytest
import torch

from methods.dense import close, combined, held, svd
from methods.peers import CHANCES, FOUND, RECORD, UPDATES, layer
from methods.streams import run
from samerge.methods import dare, wudi
from samerge.methods.rows import Layer

OPTIONS = RECORD["fusion-bench"]["options"]
EQUAL = [1.0] * 3
PARTS = [held(tau) for tau in UPDATES]


def one_more(size: int) -> float:
    """The density that keeps as many elements as FusionBench does."""
    return (int(OPTIONS["ties"]["density"] * size) + 1) / size


@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_ties(aggregate):
    (ours,) = run("ties", [layer(EQUAL)], one_more(UPDATES[0].numel()), aggregate=aggregate)
    close(ours, FOUND[f"fusion_bench.ties_{aggregate}"])


def test_knots_ties():
    """Its alignment and its ties: the singular vectors' signs are its own, and do not matter."""
    u, s, v = svd(torch.cat(UPDATES, dim=1))
    values = [s[:, None] * block for block in v.T.split(UPDATES[0].shape[1], dim=1)]
    aligned = Layer("w", tuple(values[0].shape), dict.fromkeys(range(3), "x"), dict(enumerate(map(held, values))))
    (merged,) = run("ties", [aligned], one_more(values[0].numel()))
    close(u @ merged, FOUND["fusion_bench.knots_ties"])


def test_iso_c():
    """Its mean is over all 20 singular values; here over the 18 that are not 0. M differs by that factor alone."""
    ours = combined("iso-c", PARTS, EQUAL)
    rank = int(torch.linalg.matrix_rank(sum(UPDATES)))
    assert (rank, min(ours.shape)) == (18, 20)
    u, s, v = svd(sum(UPDATES))
    close(ours, s.mean() * u @ v.T)
    # outside the 18 directions its U V^T is what the SVD makes of nothing
    close((u @ u.T @ FOUND["fusion_bench.iso_c"] @ v @ v.T) * min(ours.shape) / rank, ours)


def test_tsv():
    """The same where its share of triplets, 1/N of the smaller side, is each update's rank, as it is here."""
    close(combined("tsv", PARTS, EQUAL), FOUND["fusion_bench.tsv"])


def test_dare(monkeypatch):
    monkeypatch.setattr(dare, "uniform", lambda layer, start, tiles, seed: CHANCES[:1])
    (ours,) = run("dare", [layer([1.0], UPDATES[:1])], OPTIONS["dare"]["density"])
    torch.testing.assert_close(ours, FOUND["fusion_bench.dare"], rtol=1e-6, atol=1e-9)


def loss(merged, taus=UPDATES):
    """WUDI's."""
    return sum(((merged - tau) @ tau.T).square().sum() / tau.square().sum() for tau in taus)


def test_wudi(monkeypatch):
    """Published are 300 steps of Adam from the sum: they are on the way to our M, and 20 000 are nearer."""
    monkeypatch.setattr(wudi, "_CUTOFF", 1e-12)
    ours = combined("wudi", PARTS, EQUAL)
    early, late = (FOUND[f"fusion_bench.wudi_{steps}"] for steps in OPTIONS["wudi"]["steps"])
    start = sum(UPDATES)
    assert loss(ours) <= loss(late) < loss(early) < loss(start)
    assert loss(ours) < 1e-20 * loss(start)
    far = [float((M - ours).norm() / ours.norm()) for M in (late, early, start)]
    assert far == sorted(far)


@pytest.mark.parametrize("columns", [20, 8])
def test_wudi_descends_to_the_same_minimum(columns, monkeypatch):
    """Conjugate gradients on FusionBench's loss, in float64, from the sum that it starts from: within 1e-6.

    Of eight columns the three updates want different things, and the minimum is not 0.
    """
    taus = [tau[:, :columns] for tau in UPDATES]
    C = sum(tau.T @ tau / tau.square().sum() for tau in taus)
    M = sum(taus)
    residual = sum(tau @ tau.T @ tau / tau.square().sum() for tau in taus) - M @ C  # minus half of the gradient
    step, start = residual, float(residual.norm())
    for _ in range(500):
        if float(residual.norm()) < 1e-13 * start:
            break
        energy = residual.square().sum()
        length = energy / (step * (step @ C)).sum()
        M, residual = M + length * step, residual - length * (step @ C)
        step = residual + residual.square().sum() / energy * step
    M.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(M, taus), M)
    assert float(gradient.norm()) < 1e-10 * start
    found = M.detach()
    monkeypatch.setattr(wudi, "_CUTOFF", 1e-14)
    ours = combined("wudi", [held(tau) for tau in taus], EQUAL)
    assert float((found - ours).norm()) < 1e-6 * float(ours.norm())
    assert (float(loss(ours, taus)) > 1e-3 * float(loss(sum(taus), taus))) == (columns == 8)
