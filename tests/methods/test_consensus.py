"""`consensus` and `localize-and-stitch`, element by element."""

from __future__ import annotations

import pytest
import torch
from tiny import write_adapter

import samerge
from methods.dense import close, held
from methods.streams import dense, flat, layers, run, top
from samerge.methods import consensus, rows
from samerge.methods.rows import Layer, merged_with_shares
from samerge.options.option import Options


@pytest.mark.parametrize(("threshold", "used_by"), [(0.4, 2), (2.0, 1), (0.5, 3), (0.0, 2)])
def test_consensus(threshold, used_by, monkeypatch):
    monkeypatch.setattr(rows, "TILE_ELEMENTS", 20)
    made = layers()
    if (threshold, used_by) != (0.4, 2):  # which are those of the product
        monkeypatch.setattr(consensus, "_THRESHOLD", threshold)
        monkeypatch.setattr(consensus, "_USED_BY", used_by)
    stays = 0
    for update, merged in zip(dense(made), run("consensus", made), strict=True):
        values = list(update.values())
        expected = torch.zeros_like(values[0])
        for place in range(expected.numel()):
            own = [float(v.flatten()[place]) for v in values]
            users = sum(abs(x) > threshold * abs(sum(own) - x) for x in own)
            if users >= min(used_by, len(own)):
                expected.view(-1)[place] = sum(own)
        close(merged, expected)
        stays += int((expected != 0).sum())
    assert stays > 0
    assert stays < sum(layer.size for layer in made) or threshold == 0


def test_what_one_alone_uses_is_left_out():
    big, small = torch.tensor([[5.0, 1.0]]), torch.tensor([[0.1, 1.0]])
    made = [Layer("one", (1, 2), {0: "a", 1: "b"}, {0: held(big.double()), 1: held(small.double())})]
    (merged,) = run("consensus", made)
    close(merged, torch.tensor([[0.0, 2.0]], dtype=torch.float64))
    alone = [Layer("one", (1, 2), {0: "a"}, {0: held(big.double())})]
    close(run("consensus", alone)[0], big.double())


def test_what_consensus_leaves_of_each_adapter():
    made = layers()[1:2]
    merged, shares = merged_with_shares(made[0], consensus.prepare(made, Options()), [1.0] * 3)
    for n, own in dense(made)[0].items():
        left = own * (merged != 0)
        assert shares[n].energy == pytest.approx(float(left.square().sum() / own.square().sum()))
        assert shares[n].elements == (int((merged != 0).sum()), own.numel())


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_localize_and_stitch(density, monkeypatch):
    monkeypatch.setattr(rows, "TILE_ELEMENTS", 20)
    made = layers()
    updates = dense(made)
    limits = {}
    for n in range(3):
        whole = flat(updates, n).abs()
        limits[n] = float(whole[top(whole, max(1, round(density * len(whole))))].min())
    found = run("localize-and-stitch", made, None if density == 0.05 else density)  # which is the default
    for update, merged in zip(updates, found, strict=True):
        expected = torch.zeros_like(merged)
        for place in range(merged.numel()):
            own = [float(v.flatten()[place]) for n, v in update.items() if abs(v.flatten()[place]) >= limits[n]]
            if own:
                expected.view(-1)[place] = sum(own) / len(own)
        close(merged, expected)


@pytest.mark.parametrize("method", ["consensus", "pico"])
def test_an_adapter_whose_update_is_zero_in_a_layer_does_not_change_it(method, tmp_path):
    draw = torch.Generator().manual_seed(0)
    one = {m: (torch.randn(2, 8, generator=draw), torch.randn(8, 2, generator=draw)) for m in ("m.q_proj", "m.k_proj")}
    other = {"m.q_proj": (torch.randn(2, 8, generator=draw), torch.randn(8, 2, generator=draw))}
    untrained = {**other, "m.k_proj": (torch.randn(2, 8, generator=draw), torch.zeros(8, 2))}
    folders = {n: write_adapter(tmp_path / n, f) for n, f in (("a", one), ("b", other), ("c", untrained))}
    without, beside = (
        samerge.merge(None, {"a": folders["a"], "b": folders[name]}, method=method, progress=False) for name in "bc"
    )
    for module in one:
        expected = without.delta(module)
        assert expected.norm() > 0
        torch.testing.assert_close(beside.delta(module), expected, rtol=1e-5, atol=1e-6)
    nothing = {m: (A, torch.zeros_like(B)) for m, (A, B) in one.items()}
    zeros = {n: write_adapter(tmp_path / n, nothing) for n in ("x", "y")}
    with pytest.warns(UserWarning, match="the merged update is zero in every layer"):
        merged = samerge.merge(None, zeros, method=method, progress=False)
    assert not any(merged.delta(module).any() for module in one)
