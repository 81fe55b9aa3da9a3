"""`compress_adapter` against the dense SVD, from folders and on live models."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import Beast, write_adapter

import samerge


def dense_svd(delta: torch.Tensor):
    return torch.linalg.svd(delta.double().reshape(delta.shape[0], -1), full_matrices=False)


@pytest.mark.parametrize("size", [{"rank": 4}, {"rank": 1}, {"energy": 0.9}, {"rank": 5, "energy": 0.95}, {"rank": 64}])
def test_the_best_approximation_in_every_layer(beast: Beast, size):
    """Of an adapter with rank and alpha patterns, and Conv1D where the family has it."""
    source = beast.adapters["talk"]
    whole = samerge.merge(None, [source], method="cat")
    small = samerge.compress_adapter(source, **size)
    assert sorted(small.factors) == sorted(whole.factors)
    ranks = []
    for module, layer in small.report.record.layers.items():
        u, s, vh = dense_svd(whole.delta(module))
        limit = min(size.get("rank", 64), layer.adapters["talk"].components)
        shares = s.square().cumsum(0) / s.square().sum()
        wanted = int((shares < size.get("energy", 1.0) - 1e-9).sum()) + 1
        rank = min(limit, wanted) if "energy" in size else limit
        assert layer.rank == rank
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(
            small.delta(module).double().reshape(best.shape), best, rtol=0, atol=1e-6 * float(s[0])
        )
        assert layer.lost == pytest.approx(float(s[rank:].square().sum() / s.square().sum()), abs=1e-6)
        ranks.append(rank)
    assert small.settings["r"] == small.settings["lora_alpha"] == max(ranks)
    assert {factors.rank for factors in small.factors.values()} == {max(ranks)}  # the servable profile


def test_what_is_saved_loads_with_peft(llama: Beast, tmp_path):
    small = samerge.compress_adapter(llama.adapters["code"], energy=0.8, dtype="bfloat16")
    folder = small.save(tmp_path / "small")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert "rank_pattern" not in config
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(folder / "adapter_model.safetensors").values())
    record = json.loads((folder / "samerge.json").read_text())
    assert record["method"] == "compress"
    assert (record["options"]["energy"], record["options"]["rank"]) == (0.8, None)
    assert all({"rank", "lost"} <= set(layer) for layer in record["layers"].values())
    assert "# Compressed: code" in (folder / "README.md").read_text()
    model = PeftModel.from_pretrained(llama.model(), folder)
    assert torch.isfinite(llama.logits(model)).all()


def test_on_a_live_model(beast: Beast):
    model = beast.peft_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = samerge.compress_adapter("talk", rank=64, base=model, adapter_name="small")
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in before)
    assert model.active_adapter == "math"
    model.set_adapter("talk")
    expected = beast.logits(model)
    model.set_adapter("small")
    torch.testing.assert_close(beast.logits(model), expected, rtol=1e-4, atol=1e-4)
    assert small.settings["r"] == 20  # no larger than it was


def test_the_name_on_a_live_model(llama: Beast):
    model = llama.peft_model()
    with pytest.raises(samerge.OutputExistsError, match="already has an adapter 'math'"):
        samerge.compress_adapter("talk", 2, base=model, adapter_name="math")
    with pytest.raises(samerge.OptionError, match="give the PeftModel as base"):
        samerge.compress_adapter(llama.adapters["talk"], 2, base=llama.base, adapter_name="small")


def test_half_of_it_gone_is_said_in_words(llama: Beast):
    small = samerge.compress_adapter(llama.adapters["math"], rank=1)
    assert any("truncation to the rank lost over 20% of the energy in" in warning for warning in small.report.warnings)
    assert not samerge.compress_adapter(llama.adapters["math"], energy=0.95).report.warnings


def test_a_zero_layer(tmp_path):
    generator = torch.Generator().manual_seed(0)
    factors = {
        "a": (torch.randn(4, 8, generator=generator), torch.randn(6, 4, generator=generator)),
        "b": (torch.randn(4, 8, generator=generator), torch.zeros(6, 4)),
    }
    small = samerge.compress_adapter(write_adapter(tmp_path / "x", factors), energy=0.5)
    assert not small.delta("b").any()
    assert small.report.record.layers["b"].lost == 0.0


def test_trained_modules_are_kept_and_can_be_dropped(llama: Beast, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = get_peft_model(llama.model(), config)
    model.save_pretrained(tmp_path / "x")
    kept = samerge.compress_adapter(tmp_path / "x", 2)
    assert any("lm_head" in name for name in kept.tensors())
    dropped = samerge.compress_adapter(tmp_path / "x", 2, modules_to_save="drop")
    assert not any("lm_head" in name for name in dropped.tensors())


def test_dora_is_refused_or_converted(llama: Beast, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    get_peft_model(llama.model(), config).save_pretrained(tmp_path / "x")
    with pytest.raises(samerge.AdapterError, match="DoRA"):
        samerge.compress_adapter(tmp_path / "x", 2)
    small = samerge.compress_adapter(tmp_path / "x", 2, base=llama.base, dora="exact:8")
    assert small.settings["r"] == 2


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({}, "compressing an adapter needs a size: give rank="),
        ({"rank": 0}, "rank=0 must be a whole number"),
        ({"energy": 0.0}, r"energy=0.0 must lie in \(0, 1\]"),
        ({"energy": 1.1}, r"energy=1.1 must lie in \(0, 1\]"),
        ({"energy": True}, r"energy=True must lie in \(0, 1\]"),
    ],
)
def test_sizes_that_are_none(llama: Beast, size, message):
    with pytest.raises(samerge.OptionError, match=message):
        samerge.compress_adapter(llama.adapters["math"], **size)
