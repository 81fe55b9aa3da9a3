"""Every method of the registry from adapters on disk to a model that PEFT loads."""

from __future__ import annotations

import json

import pytest
import torch
from alike import same_merge
from peft import PeftModel

import samerge
from samerge.methods.registry import available_methods, find

METHODS = list(available_methods())


@pytest.mark.parametrize("species", ["llama", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_saved_is_what_was_merged(zoo, species, method, tmp_path):
    """Also for layers that are stored transposed, adapters of different ranks and layers, and layers of one adapter."""
    beast = zoo(species)
    merged = samerge.merge(beast.base, beast.adapters, method=method, weights=[1.0, 0.5, -1.0])
    folder = merged.save(tmp_path / "out")
    loaded = PeftModel.from_pretrained(beast.model(), folder).eval()
    model = beast.model()
    for module in merged.factors:
        weight = model.get_submodule(module).weight
        weight.data += merged.delta(module).view_as(weight)
    torch.testing.assert_close(beast.logits(loaded), beast.logits(model), rtol=1e-3, atol=1e-3)
    record = json.loads((tmp_path / "out" / "samerge.json").read_text())
    for layer in record["layers"].values():
        assert 0 <= layer["lost"] <= 1
        # columns and rows as trained are not orthogonal: some of them may hold more energy than all together
        assert all(
            0 <= one["energy_kept"] <= (2 if method == "paper" else 1 + 1e-6) for one in layer["adapters"].values()
        )
    merged.report.table()


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_and_rank(zoo, method):
    beast = zoo("bert")
    base = beast.base if find(method).base == "needed" else None
    merged = samerge.merge(base, beast.adapters, method=method, rank=4, dtype="bfloat16", scaling="auto")
    assert merged.settings["r"] <= 4
    assert all(f.A.dtype == torch.bfloat16 and torch.isfinite(f.A).all() for f in merged.factors.values())


@pytest.mark.parametrize("method", METHODS)
def test_inputs_stay_as_they_are(zoo, method):
    """A run repeats itself, and leaves the global random numbers alone."""
    beast = zoo("llama")
    before = torch.get_rng_state()
    base = beast.base if find(method).base == "needed" else None
    one, other = (samerge.merge(base, beast.adapters, method=method) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    same_merge(one, other)
