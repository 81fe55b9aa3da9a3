"""`doge` against its formula: autograd on dense updates, and torch's own Adam."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge
from methods.dense import svd
from methods.streams import WEIGHTS, dense, flat, layers, top
from samerge.methods import rows
from samerge.methods.doge import DogeOptions, change, prepare
from samerge.methods.rows import merged_with_shares


def dense_change(taus, loads, shared, steps, rate):
    """D, the loss by its definition, its gradient by autograd, the descent by torch's Adam."""
    lefts = torch.cat([svd(tau)[0] for tau in taus], dim=1)
    u, s, _ = svd(lefts)
    count = int(shared * len(s))
    common = u[:, : int((s > s[count - 1] - 1e-6).sum()) if count else 0]
    change = torch.nn.Parameter(torch.zeros_like(taus[0]))
    adam = torch.optim.Adam([change], lr=rate)
    for _ in range(steps):
        adam.zero_grad()
        total = sum(load * (tau + change) for load, tau in zip(loads, taus, strict=True))
        sum(((tau * (tau - total)).sum(dim=1) ** 2).sum() for tau in taus).backward()
        change.grad -= common @ common.T @ change.grad
        adam.step()
    return change.detach()


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 30, "rate": 0.02, "shared": 0.5, "density": 0.4, "eta": 0.5},
        {"steps": 3, "rate": 0.02, "shared": 0.9, "density": 1.0, "eta": 2.0},
        {"steps": 0},
        {"steps": 7, "density": 0.3, "eta": 0.07, "shared": 1 / 6, "rate": 1e-4},  # but for steps the defaults
    ],
)
def test_doge(options, monkeypatch):
    monkeypatch.setattr(rows, "TILE_ELEMENTS", 20)
    made = layers()
    weights = {layer.module: [WEIGHTS[n] for n in range(3)] for layer in made}
    given = {"density": 0.3, "eta": 0.07, "shared": 1 / 6, "steps": 400, "rate": 1e-4} | options
    defaults = {"steps": options["steps"]} if options.get("rate") == 1e-4 else options
    combine = prepare(made, DogeOptions(**defaults), weights)
    limits = {}
    for n in WEIGHTS:
        whole = flat(dense(made), n).abs()
        limits[n] = float(whole[top(whole, max(1, round(given["density"] * len(whole))))].min())
    for layer, update in zip(made, dense(made), strict=True):
        taus = {n: v / WEIGHTS[n] for n, v in update.items()}
        loads = {n: given["eta"] * WEIGHTS[n] / float(tau.norm()) for n, tau in taus.items()}
        moved = dense_change(list(taus.values()), list(loads.values()), given["shared"], given["steps"], given["rate"])
        expected = sum(loads[n] * (taus[n] + moved) * (update[n].abs() >= limits[n]) for n in taus)
        merged, _ = merged_with_shares(layer, combine, [1.0] * 3)
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)
        assert (float(moved.abs().max()) > 0) == (given["steps"] > 0)


def test_where_all_directions_are_shared_nothing_changes():
    """What is left of the gradient would be rounding, which Adam makes as large as anything."""
    layer = layers()[1]  # nine components, six rows
    found = change(list(layer.parts.values()), [1.0] * 3, DogeOptions(shared=1.0))
    assert torch.equal(found, torch.zeros(6, 11, dtype=torch.float64))


def test_whole_merges_use_the_weights_of_every_layer(tmp_path):
    """Weights scale what each adapter brings, not what it is brought to."""
    base = chain([12, 10, 11])
    tables = [chain_factors(base, 3, seed=n) for n in range(2)]
    adapters = {f"e{n}": write_adapter(tmp_path / f"e{n}", table) for n, table in enumerate(tables)}
    merged = samerge.merge(
        None, adapters, method="doge", weights=[1.0, -0.5], density=1.0, steps=0, eta=0.3, rank=6, progress=False
    )
    for module in merged.factors:
        taus = [(B @ A).double() for A, B in (table[module] for table in tables)]
        expected = sum(0.3 * w * tau / tau.norm() for w, tau in zip([1.0, -0.5], taus, strict=True))
        torch.testing.assert_close(merged.delta(module).double(), expected, rtol=1e-4, atol=1e-5)
