"""The servable profile: names of modules, checked against PEFT's own matching, and values that the dtype can hold."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from tiny import Beast, chain, chain_factors, write_adapter

import samerge
from samerge.adapters.servable import check_finite, siblings, target_modules
from samerge.options.module_names import module_type


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("model.layers.3.mlp.up_proj", "model.layers.*.mlp.up_proj"),
        ("h.0.mlp.experts.11.w1", "h.*.mlp.experts.*.w1"),
        ("0.weights", "*.weights"),
        ("block2.conv1", "block2.conv1"),
        ("layers.10", "layers.*"),
        ("a.1.2.b", "a.*.*.b"),
    ],
)
def test_module_type(module, kind):
    assert module_type(module) == kind


def test_siblings():
    stems = [f"model.layers.{i}.{name}" for i in range(3) for name in ("q", "k")] + ["model.embed"]
    assert siblings(["model.layers.1.q"], stems) == ["model.layers.0.q", "model.layers.2.q"]
    assert siblings([], stems) == []


def test_an_encoder_is_no_sibling_of_a_decoder():
    stems = [f"{side}.block.{i}.q" for side in ("encoder", "decoder") for i in range(2)]
    assert siblings(["decoder.block.0.q"], stems) == ["decoder.block.1.q"]


def test_the_shortest_names_that_will_do():
    assert target_modules(["h.0.q", "h.1.q"], ["h.0.k"]) == ["q"]
    assert target_modules(["h.0.out.dense"], ["h.0.up.dense", "pooler.dense"]) == ["out.dense"]
    assert target_modules(["h.0.q"], ["h.1.q"]) == ["h.0.q"]
    assert target_modules(["lm_head"], []) == ["lm_head"]
    assert target_modules(["0"], ["1"]) == ["0"]


PARTS = st.lists(st.sampled_from(["a", "b", "0", "1", "dense", "q"]), min_size=1, max_size=4).map(".".join)


@given(st.sets(PARTS, min_size=1, max_size=8), st.data())
def test_peft_finds_exactly_the_adapted_modules(names, data):
    adapted = data.draw(st.sets(st.sampled_from(sorted(names)), min_size=1))
    others = names - adapted
    config = LoraConfig(target_modules=target_modules(adapted, others))
    assert all(check_target_module_exists(config, name) for name in adapted)
    wrong = {name for name in others if check_target_module_exists(config, name)}
    assert all(any(name.endswith(f".{module}") for module in adapted) for name in wrong)  # only where no name can tell


@pytest.fixture
def large(tmp_path) -> list[str]:
    """Two adapters whose updates are about 1e7 in the largest element: too much for float16, whatever the balance."""
    tables = [chain_factors(chain([9, 8, 7]), 3, seed) for seed in range(2)]
    return [
        write_adapter(tmp_path / f"e{n}", {m: (A * 3e5, B * 3e5) for m, (A, B) in table.items()})
        for n, table in enumerate(tables)
    ]


TOO_LARGE = (
    r"^making the adapter: layers\.0\.lora_A \(6, 9\) holds values that are not finite in torch\.float16; use "
    r"dtype='float32' or 'bfloat16', or choose smaller weights or a smaller scaling"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_wide_dtype_is_not_answered_with_another_one(dtype):
    with pytest.raises(samerge.AdapterError) as told:
        check_finite("layers.0.lora_A", torch.tensor([1.0, float("inf")], dtype=dtype))
    assert f"not finite in {dtype}; choose smaller weights or a smaller scaling" in str(told.value)


def test_what_float16_cannot_hold_is_refused_before_anyone_has_it(large):
    with pytest.raises(samerge.AdapterError, match=TOO_LARGE):
        samerge.merge(None, large, method="linear", dtype="float16")
    for fits in ({"dtype": "bfloat16"}, {"dtype": "float16", "scaling": 1e-6}):
        merged = samerge.merge(None, large, method="linear", **fits)
        assert all(torch.isfinite(tensor).all() for tensor in merged.tensors().values())


def test_so_is_an_adapter_that_is_compressed(large):
    with pytest.raises(samerge.AdapterError, match=r"layers\.0\.lora_A .* not finite in torch\.float16"):
        samerge.compress_adapter(large[0], 2, dtype="float16")


def test_so_is_what_an_adapter_carries_beside_its_factors(tmp_path):
    table = chain_factors(chain([9, 8, 7]), 3, 0)
    folder = write_adapter(tmp_path / "e", table, modules_to_save=["head"])
    file = tmp_path / "e" / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.head.weight": torch.full((2, 7), 1e6)}, file)
    with pytest.raises(samerge.AdapterError, match=r"head\.weight \(2, 7\) holds values that are not finite in"):
        samerge.merge(None, [folder], method="linear", dtype="float16", modules_to_save="average")


def test_so_is_a_trial_of_a_search(large):
    pytest.importorskip("optuna")
    search = {"scaling": [1.0]}  # the untuned merge, the first trial, has another
    fixed = {"method": "linear", "dtype": "float16", "scaling": 1e-6}
    found = samerge.tune(None, large, lambda merged: 1.0, search=search, trials=2, progress=False, **fixed)
    failed = [trial for trial in found.trials if trial.state != "complete"]
    assert [trial.options for trial in failed] == [{"scaling": 1.0}]
    assert "float16" in str(failed[0].error)


def test_a_live_model_gets_nothing_of_it(llama: Beast):
    model = llama.peft_model()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.mul_(1e7)
    with pytest.raises(samerge.AdapterError, match=r"not finite in torch\.float16"):
        samerge.add_weighted_adapter(model, ["math", "code"], None, "merged", "cat", dtype="float16")
    assert "merged" not in model.peft_config
