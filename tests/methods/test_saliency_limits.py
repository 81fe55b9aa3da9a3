"""`saliency` where there is nothing to rank: weights of zero, updates of zero, a dead or a broken base."""

from __future__ import annotations

import pytest
import torch
from tiny import Beast, chain, chain_factors, write_adapter, write_base

import samerge
from samerge.graph import FlowGraph, Weight


def chain_graph(base) -> FlowGraph:
    names = sorted(base)
    return FlowGraph([Weight(f"s{i}", f"s{i + 1}", name) for i, name in enumerate(names)], ["s0"], [f"s{len(names)}"])


def kept(merged, module: str) -> dict[str, list[int]]:
    return {
        name: None if share.kept is None else list(share.kept)
        for name, share in merged.report.record.layers[module].adapters.items()
    }


def test_a_site_whose_adapters_all_weigh_zero(tmp_path):
    base = chain([6, 5, 4])
    both, first = chain_factors(base, 3, 1), chain_factors(base, 2, 2)
    del first["layers.1"]
    adapters = {"a": write_adapter(tmp_path / "a", first), "b": write_adapter(tmp_path / "b", both)}
    merged = samerge.merge(
        write_base(tmp_path / "base", base),
        adapters,
        method="saliency",
        weights={"a": 1.0, "b": 0.0},
        density=0.5,
        connectivity=chain_graph(base),
    )
    assert not merged.delta("layers.1").any()  # filled in
    assert list(merged.report.record.layers) == ["layers.0"]
    assert list(merged.report.record.layers["layers.0"].adapters) == ["a"]


def test_an_adapter_of_zeros_merges_to_nothing(tmp_path):
    base = chain([6, 5])
    zeros = {"layers.0": (torch.randn(3, 6), torch.zeros(5, 3))}
    folder = write_base(tmp_path / "base", base)
    one = write_adapter(tmp_path / "a", zeros)
    real = write_adapter(tmp_path / "b", chain_factors(base, 3, 1))
    for options in (
        {"method": "saliency", "density": 0.5},
        {"method": "saliency", "rank": 2},
        {"method": "saliency", "density": 1.0},
        {"method": "paper", "density": 0.5},
        {"method": "paper", "density": 0.5, "basis": "svd"},
        {"method": "paper", "density": 1.0},
    ):
        with pytest.warns(UserWarning, match="every update that went in is zero already"):
            alone = samerge.merge(folder, [one], connectivity=chain_graph(base), **options)
        assert not alone.delta("layers.0").any()
        both = samerge.merge(folder, [one, real], connectivity=chain_graph(base), **options)
        only = samerge.merge(folder, [real], connectivity=chain_graph(base), **options)
        torch.testing.assert_close(both.delta("layers.0"), only.delta("layers.0"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["saliency", "paper"])
def test_a_broken_base_is_an_error_and_no_arbitrary_choice(tmp_path, method, bad):
    base = chain([6, 5, 4])
    base["layers.1.weight"][2, 1] = bad
    folder = write_base(tmp_path / "base", base)
    adapter = write_adapter(tmp_path / "a", {"layers.0": chain_factors(base, 4, 1)["layers.0"]})
    with pytest.raises(
        samerge.BaseModelError, match=r"adapter 'a' .* log R = (nan|inf); a weight of the base holds NaN"
    ):
        samerge.merge(folder, [adapter], method=method, density=0.5, connectivity=chain_graph(base))


def test_a_dead_network_is_ranked_by_agreement_alone(tmp_path):
    """R = 0 makes every gamma zero: nothing to rank by, and no NaN."""
    base = chain([6, 5, 4])
    base["layers.1.weight"].zero_()
    folder = write_base(tmp_path / "base", base)
    factors = {"layers.0": (torch.eye(6)[:2], torch.eye(5)[:, :2] * torch.tensor([1.0, 3.0]))}
    adapter = write_adapter(tmp_path / "a", factors)
    merged = samerge.merge(folder, [adapter], method="paper", density=0.5, iterations=1, connectivity=chain_graph(base))
    assert kept(merged, "layers.0") == {"a": [1]}
    other = write_adapter(tmp_path / "b", {"layers.0": (torch.eye(6)[3:5], torch.eye(5)[:, 3:] * 2.0)})
    both = samerge.merge(folder, [adapter, other], rank=2, connectivity=chain_graph(base))
    assert torch.isfinite(both.delta("layers.0")).all()
    assert kept(both, "layers.0") == {"a": [0], "b": [0]}


@pytest.mark.parametrize("options", [{}, {"density": 0.3}, {"method": "paper"}, {"method": "even"}, {"rank": 3}])
def test_all_weights_zero(bert: Beast, options):
    told = "the merged update is zero in every layer, so that the adapter does nothing: all weights are 0"
    with pytest.warns(UserWarning, match=told):
        merged = samerge.merge(bert.base, bert.adapters, weights=[0, 0, 0], **options)
    assert not any(merged.delta(module).any() for module in merged.factors)
    assert [text[: len(told)] for text in merged.report.warnings] == [told]


@pytest.mark.parametrize("method", ["saliency", "even", "paper"])
def test_an_adapter_less_itself_is_nothing(bert: Beast, method):
    """Rounding is not blown up to the adapters' norm."""
    twice = {"one": bert.adapters["math"], "other": bert.adapters["math"]}
    with pytest.warns(UserWarning, match="the weighted updates cancel"):
        merged = samerge.merge(bert.base, twice, method=method, weights=[1.0, -1.0], density=1.0)
    for module in merged.factors:
        assert merged.delta(module).abs().max() < 1e-5
