"""`samerge.merge` from end to end, against PEFT itself, and the words of every refusal."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from alike import same_files, same_merge, same_record
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import NAMES, Beast, chain, chain_factors, randomise, write_adapter, write_base

import samerge

EXACT = [{"method": "paper", "density": 1.0, "scaling": 1.0}, {"method": "cat"}, {"method": "linear"}]
HALF = {"method": "saliency", "density": 0.5, "scaling": 1.0}


@pytest.mark.parametrize("options", EXACT, ids=lambda options: options["method"])
def test_all_components_equal_all_adapters_active_together(beast: Beast, tmp_path, options):
    """Ranks 8, 8 and 20, other target modules, rsLoRA, rank and alpha patterns; saved and loaded by PEFT."""
    merged = samerge.merge(beast.base, beast.adapters, **options)
    together = beast.peft_model()
    together.base_model.set_adapter(list(NAMES))
    expected = beast.logits(together)
    loaded = PeftModel.from_pretrained(beast.model(), merged.save(tmp_path / "merged")).eval()
    torch.testing.assert_close(beast.logits(loaded), expected, atol=1e-5, rtol=1e-5)
    assert (expected - beast.logits(beast.model())).abs().max() > 1e-2  # the adapters do something


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scaling", [1.0, "auto"])
def test_one_adapter_alone_is_itself(beast: Beast, tmp_path, name, scaling):
    merged = samerge.merge(beast.base, {name: beast.adapters[name]}, method="saliency", density=1.0, scaling=scaling)
    alone = beast.peft_model()
    alone.set_adapter(name)
    loaded = PeftModel.from_pretrained(beast.model(), merged.save(tmp_path / "merged")).eval()
    torch.testing.assert_close(beast.logits(loaded), beast.logits(alone), atol=1e-5, rtol=1e-5)


def test_the_merge_by_default_loads_and_equals_its_own_deltas(beast: Beast, tmp_path):
    merged = samerge.merge(
        beast.base, beast.adapters, method="saliency", weights={"talk": 0.5, "math": -1.0, "code": 1.0}
    )
    loaded = PeftModel.from_pretrained(beast.model(), merged.save(tmp_path / "merged")).eval()
    dense = beast.model()
    for module in merged.factors:
        dense.get_submodule(module).weight.data += merged.delta(module)
    torch.testing.assert_close(beast.logits(loaded), beast.logits(dense), atol=1e-5, rtol=1e-5)
    assert merged.settings["r"] == 20
    assert {f.rank for f in merged.factors.values()} == {20}


@pytest.mark.filterwarnings(
    "ignore:fan_in_fan_out is set to:UserWarning", "ignore:Model has .tie_word_embe:UserWarning"
)
@pytest.mark.parametrize("targets", [["c_attn", "attn.c_proj", "lm_head"], ["attn.c_proj", "lm_head"]])
def test_conv1d_beside_linear_layers(zoo, tmp_path, targets):
    """PEFT writes `fan_in_fan_out` as the last module has it; GPT-2's square c_proj does not show how it is stored."""
    gpt2 = zoo("gpt2")
    model = get_peft_model(gpt2.model(), LoraConfig(r=4, target_modules=targets, fan_in_fan_out=True)).eval()
    randomise(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights
        model.save_pretrained(tmp_path / "adapter")
    merged = samerge.merge(gpt2.base, [tmp_path / "adapter"], method="saliency", density=1.0)
    live = samerge.merge(model, ["default"], method="saliency", density=1.0)
    layers = model.get_base_model()
    for module in merged.factors:
        expected = layers.get_submodule(module).get_delta_weight("default").detach()
        torch.testing.assert_close(merged.delta(module), expected)
        torch.testing.assert_close(live.delta(module), expected)
    loaded = PeftModel.from_pretrained(gpt2.model(), merged.save(tmp_path / "merged")).eval()
    torch.testing.assert_close(gpt2.logits(loaded), gpt2.logits(model), atol=1e-5, rtol=1e-5)


def test_weights_go_by_name(llama: Beast):
    merged = samerge.merge(llama.base, llama.adapters, weights={"talk": 0.0, "math": 2.0, "code": 0.0}, method="cat")
    alone = samerge.merge(llama.base, {"math": llama.adapters["math"]}, method="cat")
    for module in alone.factors:
        torch.testing.assert_close(merged.delta(module), 2 * alone.delta(module))


def test_adapters_may_be_a_list_of_folders(llama: Beast):
    merged = samerge.merge(llama.base, [Path(path) for path in llama.adapters.values()], **HALF)
    assert list(merged.report.adapters) == list(NAMES)
    named = samerge.merge(llama.base, llama.adapters, **HALF)
    same_merge(merged, named)


def test_a_loaded_model_and_its_folder_are_the_same_base(llama: Beast):
    folder = samerge.merge(llama.base, llama.adapters, **HALF)
    live = samerge.merge(llama.model(), llama.adapters, **HALF)
    same_merge(live, folder)


def test_adapters_of_a_live_model_may_be_renamed(llama: Beast):
    model = llama.peft_model()
    merged = samerge.merge(model, {"sums": "math", "words": "talk"}, weights={"sums": 1.0, "words": 0.5}, method="cat")
    assert list(merged.report.adapters) == ["sums", "words"]
    twice = samerge.merge(model, {"one": "math", "two": "math"}, weights={"one": 0.5, "two": 0.5}, method="cat")
    alone = samerge.merge(model, ["math"], method="cat")
    for module in alone.factors:
        torch.testing.assert_close(twice.delta(module), alone.delta(module))


def test_the_files_are_the_same_on_every_run(llama: Beast, tmp_path):
    written = [
        samerge.merge(llama.base, llama.adapters, method="saliency").save(tmp_path / name) for name in ("one", "two")
    ]
    same_files(*written)
    records = [json.loads((folder / "samerge.json").read_text()) for folder in written]
    for record in records:
        del record["created"], record["timings"], record["files"]
    same_record(*records)


def test_the_servable_profile(llama: Beast, tmp_path):
    """Uniform rank, alpha equal to it, no patterns, every layer of a type, sorted targets, contiguous tensors."""
    only_first = tmp_path / "first"
    shutil.copytree(llama.adapters["math"], only_first)
    tensors = load_file(only_first / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.0" in k}, only_first / "adapter_model.safetensors")
    merged = samerge.merge(llama.base, {"math": only_first}, method="linear", rank=4)
    folder = merged.save(tmp_path / "out")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert not any(config.get(key) for key in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora"))
    written = load_file(folder / "adapter_model.safetensors")
    assert len(written) == 8
    assert not any(tensor.any() for name, tensor in written.items() if "layers.1" in name and "lora_B" in name)
    PeftModel.from_pretrained(llama.model(), folder)


@pytest.mark.parametrize(
    ("dtype", "expected"), [(None, torch.bfloat16), ("float16", torch.float16), (torch.float32,) * 2]
)
def test_the_dtype_written(llama: Beast, tmp_path, dtype, expected):
    for name in ("math", "code"):
        shutil.copytree(llama.adapters[name], tmp_path / name)
        file = tmp_path / name / "adapter_model.safetensors"
        save_file({key: tensor.bfloat16() for key, tensor in load_file(file).items()}, file)
    merged = samerge.merge(llama.base, [tmp_path / "math", tmp_path / "code"], dtype=dtype, **HALF)
    assert {tensor.dtype for tensor in merged.tensors().values()} == {expected}
    assert merged.report.record.output.dtype == str(expected).removeprefix("torch.")


def test_the_state_of_torch_is_untouched(llama: Beast):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    samerge.merge(llama.base, llama.adapters, method="saliency")
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_truncation_afterwards(llama: Beast):
    merged = samerge.merge(llama.base, llama.adapters, method="svd", svd_rank=3)
    whole = samerge.merge(llama.base, llama.adapters, method="cat")
    assert merged.settings["r"] == 3
    for module, layer in merged.report.record.layers.items():
        u, s, vh = torch.linalg.svd(whole.delta(module), full_matrices=False)
        torch.testing.assert_close(merged.delta(module), u[:, :3] * s[:3] @ vh[:3], atol=1e-5, rtol=1e-4)
        assert layer.lost == pytest.approx(float(s[3:].square().sum() / s.square().sum()), rel=1e-3)
    assert any("truncation to the rank lost over" in warning for warning in merged.report.warnings)


# ---- what is refused, in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"adapters": {}}, "adapters is empty"),
        ({"adapters": "math"}, "adapters='math' is a single one; give a list"),
        ({"weights": [1.0]}, r"1 weights for 3 adapters \['math', 'code', 'talk'\]; give one for each"),
        ({"weights": {"math": 1.0}}, r"weights must name every adapter .* none given for \['code', 'talk'\]"),
        ({"weights": dict.fromkeys((*NAMES, "x"), 1.0)}, r"no adapter is called \['x'\]"),
        ({"weights": [1.0, float("inf"), 1.0]}, r"weights\[1\]=inf must be a finite number"),
        ({"density": 0}, r"density=0 must lie in \(0, 1\]"),
        ({"density": 1.5}, r"density=1.5 must lie in \(0, 1\]"),
        ({"density": float("nan")}, r"density=nan must lie in \(0, 1\]"),
        ({"iterations": 0}, "iterations=0 must be a whole number from 1 to 1000"),
        ({"rank": 4, "density": 0.5}, "rank=4 and density=0.5 together"),
        ({"method": "magic"}, "method='magic' is not known. Methods: saliency"),
        ({"recipe": "ours"}, "method 'saliency' has no option 'recipe'"),
        ({"dtype": 32}, "dtype=32 is not one to write in; choose one of float32"),
        ({"mu": 1}, "method 'saliency' has no option 'mu'"),
        ({"dtype": "float99"}, "dtype='float99' is not one to write in; choose one of float32"),
        ({"base": None}, "this method reads the base model; give base"),
        ({"device": "gpu"}, "device='gpu' cannot be computed on here"),
        ({"device": "meta"}, "device='meta' cannot be computed on here .it holds no values."),
    ],
)
def test_arguments_out_of_range(llama: Beast, arguments, words):
    with pytest.raises(samerge.OptionError, match=words):
        samerge.merge(**({"base": llama.base, "adapters": llama.adapters, "method": "saliency"} | arguments))


def test_a_device_that_fails_without_a_word(llama: Beast, monkeypatch):
    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(samerge.OptionError, match=r"cannot be computed on here .NotImplementedError.; leave it out"):
        samerge.merge(llama.base, llama.adapters, device="cpu")


def test_the_same_name_twice(llama: Beast):
    with pytest.raises(
        samerge.OptionError, match=r"the adapter name 'math' occurs more than once; give different names"
    ):
        samerge.merge(llama.base, [llama.adapters["math"], llama.adapters["math"]], method="saliency")


def test_an_adapter_that_is_not_there(llama: Beast, tmp_path):
    with pytest.raises(samerge.SamergeError, match="nowhere"):
        samerge.merge(llama.base, {"math": str(tmp_path / "nowhere")}, method="saliency")
    with pytest.raises(samerge.AdapterError, match=r"no adapter_config\.json"):
        samerge.merge(llama.base, {"math": tmp_path}, method="saliency")
    with pytest.raises(
        samerge.AdapterError,
        match=r"no adapter 'poetry' in this PeftModel.*; it has \['code'",
    ):
        samerge.merge(llama.peft_model(), ["math", "poetry"], method="saliency")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_an_adapter_with_values_that_are_none(llama: Beast, tmp_path, value):
    shutil.copytree(llama.adapters["code"], tmp_path / "code")
    file = tmp_path / "code" / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "layers.1.self_attn.k_proj.lora_B" in key)
    tensors[key][2, 1] = value
    save_file(tensors, file)
    with pytest.raises(samerge.AdapterError, match="NaN or infinite") as caught:
        samerge.merge(llama.base, {"math": llama.adapters["math"], "code": tmp_path / "code"}, method="saliency")
    assert "'code'" in str(caught.value)
    assert "layers.1.self_attn.k_proj" in str(caught.value)


def test_a_shape_that_does_not_fit(tmp_path):
    folder = write_base(tmp_path / "base", chain([6, 8, 5]), model_type="chain")
    wrong = write_adapter(tmp_path / "wrong", chain_factors(chain([6, 9]), 2, 1))
    with pytest.raises(
        samerge.BaseModelError, match=r"'wrong' does not fit .*'layers.0' updates a weight of 9 x 6"
    ) as e:
        samerge.merge(folder, [wrong], method="saliency", connectivity="local")
    assert "(8, 6)" in str(e.value)
    assert "another base model" in str(e.value)


def test_a_module_that_the_base_does_not_have(llama: Beast, zoo):
    with pytest.raises(
        samerge.BaseModelError, match=r"adapter 'code' does not fit the base model .* has no weight there"
    ):
        samerge.merge(
            llama.base, {"math": llama.adapters["math"], "code": zoo("bert").adapters["code"]}, method="saliency"
        )


def test_adapters_that_do_not_fit_each_other(tmp_path):
    one = write_adapter(tmp_path / "one", chain_factors(chain([6, 9]), 2, 1))
    two = write_adapter(tmp_path / "two", chain_factors(chain([6, 8]), 2, 1))
    with pytest.raises(samerge.BaseModelError, match=r"'layers.0' does not match between adapters: 'one' .* 'two'"):
        samerge.merge(None, [one, two], method="cat")


def test_an_unknown_architecture_shows_the_ways_on(tmp_path):
    base = chain([6, 8, 5])
    folder = write_base(tmp_path / "base", base, model_type="chain", architectures=["ChainModel"])
    adapter = write_adapter(tmp_path / "math", chain_factors(base, 3, 1))
    with pytest.raises(
        samerge.GraphError, match=r"model_type 'chain' .*ChainModel.*layers.0.weight.*connectivity=\"local\""
    ):
        samerge.merge(folder, [adapter], method="saliency")
    assert samerge.merge(folder, [adapter], method="saliency", connectivity="local").settings["r"] == 3
    other = samerge.FlowGraph([samerge.Weight("x", "y", "elsewhere.weight")], ["x"], ["y"])
    with pytest.raises(samerge.GraphError, match="none of the adapted weights is in the given flow graph"):
        samerge.merge(folder, [adapter], method="saliency", connectivity=other)


def test_another_base_by_name_alone_is_a_warning_and_a_line_in_the_report(llama: Beast, tmp_path):
    shutil.copytree(llama.adapters["code"], tmp_path / "code")
    file = tmp_path / "code" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "someone/other-llama"}))
    adapters = {"math": llama.adapters["math"], "code": tmp_path / "code"}
    with pytest.warns(UserWarning, match="code on other-llama"):
        merged = samerge.merge(llama.base, adapters, **HALF)
    assert any("code on other-llama" in warning for warning in merged.report.warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert samerge.merge(llama.base, llama.adapters, **HALF).report.warnings == []
