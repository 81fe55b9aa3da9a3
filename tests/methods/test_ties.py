"""`ties` and `magnitude-prune` against an election in plain Python, against PEFT's functions, and through `merge`."""

from __future__ import annotations

import pytest
import torch
from alike import same_merge
from peft.utils import merge_utils
from tiny import chain, chain_factors, write_adapter

import samerge
from methods.dense import close
from methods.streams import dense, election, flat, layers, run, top
from samerge.methods import rows


@pytest.mark.parametrize("density", [0.05, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("trim", ["adapter", "layer"])
@pytest.mark.parametrize("vote", ["total", "frequency"])
@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_ties(density, trim, vote, aggregate, monkeypatch):
    monkeypatch.setattr(rows, "TILE_ELEMENTS", 22)  # tiles of two rows and more
    made = layers()
    updates = dense(made)
    limits = {}
    for n in range(3):
        whole = flat(updates, n).abs()
        limits[n] = whole.sort(descending=True).values[max(1, round(density * len(whole))) - 1]
    found = run("ties", made, density, trim=trim, majority_sign_method=vote, aggregate=aggregate)
    for update, merged in zip(updates, found, strict=True):
        trimmed = []
        for n, delta in update.items():
            count = max(1, round(density * delta.numel()))
            kept = delta.abs() >= limits[n] * (1 - 1e-12) if trim == "adapter" else top(delta.abs(), count)
            trimmed.append(delta * kept)
        close(merged, election(trimmed, vote, aggregate))


def test_magnitude_prune():
    made = layers()
    for update, merged in zip(dense(made), run("magnitude-prune", made, 0.3), strict=True):
        close(merged, sum(d * top(d.abs(), max(1, round(0.3 * d.numel()))) for d in update.values()))


def test_the_tiles_do_not_matter(monkeypatch):
    whole = run("ties", layers())
    monkeypatch.setattr(rows, "TILE_ELEMENTS", 1)
    for a, b in zip(whole, run("ties", layers()), strict=True):
        close(a, b)


@pytest.mark.parametrize("vote", ["total", "frequency"])
def test_as_in_peft(vote):
    """With trim="layer", equal weights and no draws; PEFT rounds the number down and lets plus win a draw."""
    made = layers(weights=dict.fromkeys(range(3), 1.0))[1:2]
    (update,) = dense(made)
    deltas, density = list(update.values()), 33 / 66
    (ours,) = run("ties", made, density, trim="layer", majority_sign_method=vote)
    theirs = merge_utils.ties(deltas, torch.ones(3, dtype=torch.float64), density, vote)
    draws = sum((d * top(d.abs(), 33)).sign() for d in deltas) == 0 if vote == "frequency" else torch.tensor(False)
    close(ours.masked_fill(draws, 0), theirs.masked_fill(draws, 0))
    assert not ours.masked_select(draws).any()
    (ours,) = run("magnitude-prune", made, density)
    close(ours, merge_utils.magnitude_prune(deltas, torch.ones(3, dtype=torch.float64), density))


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ties")
    base = chain([24, 30, 26])
    adapters, deltas = {}, []
    for n, rank in enumerate([2, 3, 2]):
        factors = chain_factors(base, rank, seed=n)
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", factors)
        deltas.append({m: B.double() @ A.double() for m, (A, B) in factors.items()})
    return adapters, deltas


def test_through_merge(case):
    """Truncated to the largest source rank, with the energy that this loses in the report."""
    adapters, deltas = case
    merged = samerge.merge(None, adapters, method="ties", svd_rank=30)
    small = samerge.merge(None, adapters, method="ties")
    assert small.settings["r"] == 3
    limits = []
    for expert in deltas:
        whole = torch.cat([delta.flatten() for delta in expert.values()]).abs()
        limits.append(whole.sort(descending=True).values[round(0.2 * len(whole)) - 1])
    for module in ("layers.0", "layers.1"):
        trimmed = [e[module] * (e[module].abs() >= limit * (1 - 1e-6)) for e, limit in zip(deltas, limits, strict=True)]
        expected = election(trimmed)
        torch.testing.assert_close(merged.delta(module).double(), expected, rtol=1e-4, atol=1e-4)
        s = torch.linalg.svdvals(expected)
        lost = float(s[3:].square().sum() / s.square().sum())
        layer = small.report.record.layers[module]
        assert layer.lost == pytest.approx(lost, abs=1e-3)
        share = layer.adapters["e0"]
        kept = trimmed[0].square().sum() / deltas[0][module].square().sum()
        assert share.energy_kept == pytest.approx(float(kept), abs=1e-4)
    assert any("lost over" in warning for warning in small.report.warnings)


@pytest.mark.parametrize("method", ["ties", "dare", "pcb"])
def test_large_layers_are_streamed_to_the_same(case, method, monkeypatch):
    adapters, _ = case
    held = samerge.merge(None, adapters, method=method, svd_rank=4)
    monkeypatch.setattr(rows, "HELD_ELEMENTS", 0)
    streamed = samerge.merge(None, adapters, method=method, svd_rank=4)
    same_merge(streamed, held)


def test_one_adapter_untrimmed_is_itself(case):
    adapters, deltas = case
    merged = samerge.merge(None, {"a": adapters["e1"]}, method="ties", density=1.0)
    torch.testing.assert_close(merged.delta("layers.0").double(), deltas[1]["layers.0"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["ties", "dare", "dare-ties", "della", "breadcrumbs", "pcb", "magnitude-prune"])
def test_the_order_of_the_adapters_does_not_matter(case, method):
    adapters, _ = case
    merged = samerge.merge(None, adapters, method=method, svd_rank=30)
    turned = samerge.merge(None, dict(reversed(adapters.items())), method=method, svd_rank=30)
    torch.testing.assert_close(merged.delta("layers.1"), turned.delta("layers.1"), rtol=1e-3, atol=1e-4)


def test_what_is_refused(case):
    adapters, _ = case
    for options, words in [
        ({"trim": "tensor"}, "trim='tensor' is not known; choose one of adapter, layer"),
        ({"majority_sign_method": "most"}, "majority_sign_method='most' is not known"),
        ({"aggregate": "max"}, "aggregate='max' is not known"),
    ]:
        with pytest.raises(samerge.OptionError, match=words):
            samerge.merge(None, adapters, method="ties", **options)
