"""`layer_replication`: adapters of layers that share the weights of another."""

from __future__ import annotations

import pytest
from peft import PeftModel

import samerge
from pitfalls.lab import EXACT_LIVE, Bench, assert_untouched, close, llama, output, quiet, snapshot

MAP = [[0, 2], [1, 2]]
SETTINGS = {"target_modules": ["q_proj", "up_proj"], "layer_replication": MAP}


def both_active(lab: Bench, first: str, second: str) -> PeftModel:
    """PEFT replicates the layers again for every adapter that says so: the second one has to come without a word."""
    return lab.with_adapters(first, lab.altered(second, layer_replication=None))


def test_from_files(bench) -> None:
    lab = bench(llama)
    first, second = lab.train("a", **SETTINGS), lab.train("b", **SETTINGS, r=3)
    with quiet():
        close(output(lab.reloaded(lab.merge(first))), output(lab.with_adapters(first)))
        merged = lab.merge(first, second)
        close(output(lab.reloaded(merged)), output(both_active(lab, first, second)))
    assert merged.settings["layer_replication"] == MAP
    assert {name.split(".")[2] for name in merged.factors} == {"0", "1", "2"}


def test_the_flow_goes_through_the_replicated_layers(bench) -> None:
    lab = bench(llama)
    first, second = lab.train("a", **SETTINGS), lab.train("b", **SETTINGS)
    options = {"method": "paper", "density": 0.5, "scaling": 1.0, "progress": False}
    merged = lab.merge(first, second, **options)
    live = samerge.merge(both_active(lab, first, second), ["first", "second"], **options)
    assert merged.report.record.layers == live.report.record.layers
    assert not any(layer.outside for layer in merged.report.record.layers.values())


def test_live(bench) -> None:
    lab = bench(llama)
    first, second = lab.train("a", **SETTINGS), lab.train("b", **SETTINGS)
    model = both_active(lab, first, second)
    expected, before = output(model), snapshot(model)
    with quiet():
        samerge.add_weighted_adapter(model, ["first", "second"], None, "merged", **EXACT_LIVE)
        assert_untouched(before, model, "merged")  # PEFT would replicate the layers once more
        model.base_model.set_adapter(["merged"])
        close(output(model), expected)
        assert len(model.get_base_model().model.layers) == 3
        model.save_pretrained(str(lab.folder / "live"), selected_adapters=["merged"])
        close(output(lab.with_adapters(str(lab.folder / "live" / "merged"))), expected)


def test_adapters_that_do_not_agree(bench) -> None:
    lab = bench(llama)
    first, second = lab.train("a", **SETTINGS), lab.train("b", target_modules=["q_proj"])
    with pytest.raises(samerge.AdapterError, match=r"different layer_replication: 'first' has \[\(0, 2\), \(1, 2\)\]"):
        lab.merge(first, second)


def test_another_base(bench, tmp_path) -> None:
    lab = bench(llama)
    first = lab.train("a", **SETTINGS)
    other = llama(num_hidden_layers=1)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(samerge.BaseModelError, match=r"names the layers \[1\], which it does not have"):
        samerge.merge(str(tmp_path / "other"), [first], method="paper")
