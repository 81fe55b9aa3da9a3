"""PEFT's combination types on a live model, against PEFT itself where both are deterministic."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft_faults import counts_scales_once
from tiny import Beast, randomise

import samerge
from samerge.methods.other_names import OTHER_NAMES

NAMES = ["math", "code", "talk"]


def square_model():
    """Square layers, so that PEFT can truncate to full rank, which is no truncation."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    configs = [LoraConfig(r=r, lora_alpha=2 * r, target_modules=["0", "1"]) for r in (3, 4, 3)]
    model = get_peft_model(net, configs[0], adapter_name="math")
    for name, config in zip(NAMES[1:], configs[1:], strict=True):
        model.add_adapter(name, config)
    randomise(model)
    return model


@counts_scales_once
@pytest.mark.parametrize("name", ["ties_svd", "magnitude_prune_svd"])
@pytest.mark.parametrize("vote", ["total", "frequency"])
def test_as_peft_has_it(name, vote):
    """Equal weights: the dense merges agree but for draws of the vote, which PEFT gives to plus."""
    model = square_model()
    options = {"density": 0.5, "majority_sign_method": vote}
    model.add_weighted_adapter(NAMES, [1.0] * 3, "theirs", name, svd_rank=16, **options)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        samerge.add_weighted_adapter(model, NAMES, [1.0] * 3, "ours", name, 16, progress=False, **options)
    unused = name.startswith("magnitude") and vote == "frequency"
    assert any("ignores majority_sign_method='frequency'" in str(w.message) for w in heard) == unused
    for number in (0, 1):
        layer = model.base_model.model[number]
        ours, theirs = layer.get_delta_weight("ours"), layer.get_delta_weight("theirs")
        nearly = 1e-4 * float(theirs.abs().max())
        same, draws = (ours - theirs).abs() < nearly, ours.abs() < nearly
        assert bool((same | draws).all())
        assert bool(same.all()) or vote == "frequency"
        assert same.sum() > 0.6 * same.numel()


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_every_name_merges(llama: Beast, name):
    model = llama.peft_model()
    merged = samerge.add_weighted_adapter(model, ["math", "code"], None, "merged", name, progress=False)
    assert merged.report.record.method == OTHER_NAMES[name][0]
    model.set_adapter("merged")
    assert torch.isfinite(llama.logits(model)).all()


def test_an_explicit_option_wins():
    model = square_model()
    merged = samerge.add_weighted_adapter(model, NAMES, None, "ours", "ties_svd", trim="adapter", progress=False)
    assert merged.report.record.options["trim"] == "adapter"
