"""Bases offloaded by accelerate, on several devices, or on the meta device with their checkpoint known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import accelerate
import pytest
import torch
import transformers
from peft import PeftModel
from test_unmerged import assert_same, everything

import samerge
from samerge.weights import ModelSource
from samerge.weights.stored import InFile, InMemory, InRawFile

# accelerate hands out tied weights under each of their names once they are offloaded
FAMILIES = ["llama", "bert", "vit"]


def offload(model: torch.nn.Module, where: str, folder: Path) -> torch.nn.Module:
    if where == "cpu":
        return accelerate.cpu_offload(model, torch.device("cpu"))
    return accelerate.disk_offload(model, str(folder), torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_reads_offloaded_weights(zoo, family, where, tmp_path):
    beast = zoo(family)
    model = offload(beast.model(), where, tmp_path)
    assert all(parameter.is_meta for parameter in model.parameters())
    source = ModelSource(model)
    assert_same(everything(source), everything(ModelSource(beast.model())), 0)
    kinds = {type(source.stored(name)) for name in source.shapes}
    assert kinds == ({InMemory} if where == "cpu" else {InRawFile})
    assert source.device == torch.device("cpu")


def test_reads_half_precision_from_disk(llama, tmp_path):
    model = llama.model().to(torch.bfloat16)
    expected = everything(ModelSource(model))
    found = everything(ModelSource(offload(model, "disk", tmp_path)))
    assert_same(found, expected, 0)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def device_map(layers: int = 2) -> dict[str, str]:
    whole = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
    return dict.fromkeys(whole, "cpu") | {"model.layers.1": "disk"}


def spread_out(llama, tmp_path) -> torch.nn.Module:
    return transformers.LlamaForCausalLM.from_pretrained(
        llama.folder, device_map=device_map(), offload_folder=str(tmp_path)
    ).eval()


def test_reads_the_rows_of_a_shard_that_a_layer_was_left_in(llama, tmp_path):
    source = ModelSource(spread_out(llama, tmp_path))
    assert_same(everything(source), everything(ModelSource(llama.model())), 0)
    assert isinstance(source.stored("model.layers.1.mlp.up_proj.weight"), InFile)
    assert isinstance(source.stored("model.layers.0.mlp.up_proj.weight"), InMemory)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_add_weighted_adapter_on_an_offloaded_model(zoo, family, where, tmp_path):
    beast = zoo(family)
    plain = beast.peft_model()
    samerge.add_weighted_adapter(plain, ["math", "code"], combination_type="saliency", progress=False)
    plain.set_adapter("merged")
    model = offload(beast.peft_model(), where, tmp_path)
    merged = samerge.add_weighted_adapter(model, ["math", "code"], combination_type="saliency", progress=False)
    held = [p for name, p in model.named_parameters() if ".merged." in name]
    assert len(held) == 2 * len(merged.factors)
    assert {p.device for p in held} == {torch.device("cpu")}
    assert not any(p.requires_grad for p in held)
    assert all(p.is_meta for name, p in model.named_parameters() if ".merged." not in name)
    model.set_adapter("merged")
    torch.testing.assert_close(beast.logits(model), beast.logits(plain))


def test_adapters_from_folders_onto_a_spread_out_model(llama, tmp_path):
    expected = samerge.merge(
        str(llama.folder), {n: llama.adapters[n] for n in ("math", "code")}, method="saliency", progress=False
    )
    model = spread_out(llama, tmp_path)
    merged = samerge.merge(model, {n: llama.adapters[n] for n in ("math", "code")}, method="saliency", progress=False)
    for module in expected.factors:
        torch.testing.assert_close(merged.delta(module), expected.delta(module))


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_an_adapter_whose_values_peft_dropped(llama, tmp_path):
    model = offload(llama.model(), "cpu", tmp_path)
    model = PeftModel.from_pretrained(model, llama.adapters["math"], adapter_name="math")
    model.load_adapter(llama.adapters["code"], adapter_name="code")
    with pytest.raises(samerge.AdapterError, match=r"meta device and have no values.*give the adapter's folder"):
        samerge.merge(model, ["code"], method="saliency", progress=False)
    merged = samerge.merge(model, {"code": llama.adapters["code"]}, method="saliency", progress=False)
    merged.apply_to(model, "kept")
    model.set_adapter("kept")
    plain = llama.peft_model()
    plain.set_adapter("code")
    torch.testing.assert_close(llama.logits(model), llama.logits(plain), rtol=1e-4, atol=1e-5)


def on_meta(folder: Path, name_or_path: str, kind: str = "LlamaForCausalLM") -> torch.nn.Module:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.name_or_path = name_or_path
    with torch.device("meta"):
        return getattr(transformers, kind)(config)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_a_model_on_the_meta_device_is_read_from_its_checkpoint(zoo, family):
    beast = zoo(family)
    source = ModelSource(on_meta(beast.folder, str(beast.folder), beast.species.model))
    assert_same(everything(source), everything(ModelSource(beast.model())), 0)
    assert source.device == torch.device("cpu")


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_adapters_are_merged_into_a_meta_model(llama):
    expected = samerge.merge(
        str(llama.folder), {n: llama.adapters[n] for n in ("math", "code")}, method="saliency", progress=False
    )
    model = on_meta(llama.folder, str(llama.folder))
    model = PeftModel.from_pretrained(model, llama.adapters["math"], adapter_name="math")
    merged = samerge.merge(model, {n: llama.adapters[n] for n in ("math", "code")}, method="saliency", progress=False)
    merged.apply_to(model, "both")
    for module in expected.factors:
        torch.testing.assert_close(merged.delta(module), expected.delta(module))
        held = model.base_model.model.get_submodule(module).lora_A["both"].weight
        assert held.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", r"does not name its checkpoint \(name_or_path\)"),
        ("nowhere/at-all", r"its checkpoint 'nowhere/at-all' cannot be read"),
    ],
)
def test_a_meta_model_without_a_checkpoint(llama, path, says, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(samerge.BaseModelError, match=rf"on the meta device and has no values.*{says}.*give the check"):
        ModelSource(on_meta(llama.folder, path))


def test_a_checkpoint_that_does_not_fit(llama, tmp_path):
    shutil.copytree(llama.folder, tmp_path / "other")
    config = json.loads((llama.folder / "config.json").read_text())
    (tmp_path / "narrow").mkdir()
    (tmp_path / "narrow" / "config.json").write_text(json.dumps(config | {"intermediate_size": 20}))
    source = ModelSource(on_meta(tmp_path / "narrow", str(tmp_path / "other")))
    assert source.read("model.norm.weight", 0, 9).shape == (9,)  # what fits can be read
    with pytest.raises(samerge.BaseModelError, match=r"no weight of that name and shape \(32, 20\).*give the checkp"):
        source.read("model.layers.0.mlp.down_proj.weight", 0, 1)
