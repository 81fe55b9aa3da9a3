"""Models and pipelines of diffusers: merged live, all components at once, at the strength that the weights say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from alike import same_values
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import save_file

import samerge
from samerge.adapters import live_pipeline

pytest.importorskip("diffusers")
from pipelines import dit, flux, painted, put_on, sd3, stable_diffusion, text_encoder, unet

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
MODELS: dict[str, tuple[Any, tuple[list[str], list[str]]]] = {
    "unet": (unet, (_ATTENTION, ["to_q", "conv1", "proj_in"])),
    "flux": (flux, (_ATTENTION, ["to_q", "proj_mlp"])),
    "sd3": (sd3, (_ATTENTION, ["to_q", "add_k_proj", "linear"])),
    "dit": (dit, (_ATTENTION, ["to_q", "net.2"])),
    "text encoder": (text_encoder, (["q_proj", "v_proj"], ["q_proj", "fc1"])),
}


@pytest.fixture(autouse=True)
def _peft_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.integrations.peft as integration

    if hasattr(integration, "check_peft_version"):  # asks for a PEFT that is not out yet
        monkeypatch.setattr(integration, "check_peft_version", lambda **given: None)


def two(kind: str) -> Any:
    make, (first, second) = MODELS[kind]
    model = make()
    put_on(model, "a", 1, first)
    put_on(model, "b", 2, second, r=2, use_rslora=True)
    return model


def active(model: Any, name: str) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(name)


def dense(model: Any, weights: dict[str, float]) -> Any:
    """The model with the weighted updates added to its weights."""
    plain = type(model).from_config(model.config) if hasattr(model, "from_config") else type(model)(model.config)
    base, state = {}, model.state_dict()
    for key, tensor in state.items():
        if "lora_" not in key:
            base[key.replace(".base_layer", "")] = tensor.clone()
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            for name, weight in weights.items():
                if name in module.lora_A:
                    base[f"{path}.weight"] += weight * module.get_delta_weight(name)
    plain.load_state_dict(base)
    return plain.eval()


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_live_model(kind: str) -> None:
    model = two(kind)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    merged = samerge.add_weighted_adapter(model, ["a", "b"], [1.0, -0.5], "m", "linear", progress=False)
    assert all(
        torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items() if key in model.state_dict()
    )
    assert {name for m in model.modules() if isinstance(m, LoraLayer) for name in m.active_adapters} == {"b"}
    assert set(model.peft_config) == {"a", "b", "m"}
    active(model, "m")
    same_values(painted(model), painted(dense(model, {"a": 1.0, "b": -0.5})), 1e-4)
    assert merged.report.record.method == "linear"


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_the_default_says_how_it_ranked(kind: str) -> None:
    model = two(kind)
    merged = samerge.merge(model, ["a", "b"], progress=False)
    if kind == "text encoder":
        assert merged.report.record.method == "saliency"
    else:
        assert merged.report.record.method == "even"
        assert any("no flow graph" in text for text in merged.report.record.notes)
        with pytest.raises(samerge.GraphError, match=f"{type(model).__name__}.*connectivity=.local"):
            samerge.merge(model, ["a", "b"], method="saliency", progress=False)
    local = samerge.merge(model, ["a", "b"], method="saliency", connectivity="local", progress=False)
    assert local.report.record.options["connectivity"] == "local"


@pytest.mark.parametrize("scale", [0.7, 0.0, -2.0])
def test_a_live_scale_is_seen_said_and_not_counted_twice(scale: float) -> None:
    pipe = stable_diffusion()
    put_on(pipe.unet, "a", 1, _ATTENTION)
    put_on(pipe.unet, "b", 2, _ATTENTION, use_rslora=True)
    plain = samerge.merge(pipe.unet, ["a", "b"], weights=[1.0, 0.7], method="linear", progress=False)
    assert not [text for text in plain.report.warnings if "strength on this model" in text]
    pipe.set_adapters(["a", "b"], [1.0, scale])
    found = samerge.merge(pipe.unet, ["a", "b"], weights=[1.0, 0.7], method="linear", progress=False)
    for module in plain.factors:
        same_values(found.delta(module), plain.delta(module), 1e-6, module)
    [told] = [text for text in found.report.warnings if "strength on this model" in text]
    assert told.startswith(f"the adapter b runs at {scale:g} of its strength on this model (set_adapters")


def test_scales_that_differ_by_block() -> None:
    pipe = stable_diffusion()
    put_on(pipe.unet, "a", 1, _ATTENTION)
    pipe.set_adapters("a", {"unet": {"down": 0.5, "up": 2.0}})
    found = samerge.merge(pipe.unet, ["a"], method="linear", progress=False)
    assert any("the adapter a runs at 0.5 to 2 of its strength" in text for text in found.report.warnings)


def test_a_whole_pipeline() -> None:
    """Each model gets what the adapters have for it; one of them has nothing for the text encoder."""
    pipe = stable_diffusion()
    put_on(pipe.unet, "a", 1, _ATTENTION)
    put_on(pipe.unet, "b", 2, ["to_q", "conv1"])
    put_on(pipe.text_encoder, "b", 3, ["q_proj", "v_proj"])
    found = samerge.add_weighted_adapter(pipe, ["a", "b"], [1.0, 0.5], "m", "linear", progress=False)
    assert {module.partition(".")[0] for module in found.factors} == {"text_encoder", "unet"}
    pipe.set_adapters("m")
    same_values(painted(pipe.unet), painted(dense(pipe.unet, {"a": 1.0, "b": 0.5})), 1e-4)
    same_values(painted(pipe.text_encoder), painted(dense(pipe.text_encoder, {"b": 0.5})), 1e-4)
    assert pipe.get_list_adapters() == {"unet": ["a", "b", "m"], "text_encoder": ["b", "m"]}
    with pytest.raises(samerge.AdapterError, match="no adapter 'x' in this StableDiffusionPipeline; it has"):
        samerge.add_weighted_adapter(pipe, ["a", "x"], None, "n")
    with pytest.raises(samerge.OptionError, match="adapters is empty"):
        samerge.add_weighted_adapter(pipe, [], None, "n")
    with pytest.raises(samerge.OutputExistsError):
        samerge.add_weighted_adapter(pipe, ["a", "b"], None, "m")


def test_all_of_a_pipeline_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = stable_diffusion()
    put_on(pipe.unet, "a", 1, _ATTENTION)
    put_on(pipe.text_encoder, "a", 3, ["q_proj"])
    before = [copy.deepcopy(one.state_dict()) for one in (pipe.unet, pipe.text_encoder)]
    install, calls = live_pipeline.install, []

    def fails(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise MemoryError
        install(*given)

    monkeypatch.setattr(live_pipeline, "install", fails)
    with pytest.raises(MemoryError):
        samerge.add_weighted_adapter(pipe, ["a"], None, "m", "linear", progress=False)
    for one, state in zip((pipe.unet, pipe.text_encoder), before, strict=True):
        assert set(one.peft_config) == {"a"}
        assert one.state_dict().keys() == state.keys()


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """A pipeline's folder, as `pipe.save_pretrained` writes it, the UNet in shards."""
    pipe = stable_diffusion()
    pipe.save_pretrained(tmp_path / "sd")
    pipe.unet.save_pretrained(tmp_path / "sd" / "unet", max_shard_size="20KB")
    assert (tmp_path / "sd" / "unet" / "diffusion_pytorch_model.safetensors.index.json").exists()
    return tmp_path / "sd"


def saved(model: Any, folder: Path, prefix: str = "") -> str:
    """An adapter of a live model as a PEFT folder."""
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name="a")
    tensors = {f"base_model.model.{prefix}{key}": tensor.contiguous() for key, tensor in state.items()}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_q"], "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_model_of_diffusers_on_disk_is_a_base(on_disk: Path, tmp_path: Path) -> None:
    model = unet()
    put_on(model, "a", 1, _ATTENTION)
    folder = saved(model, tmp_path / "a")
    merged = samerge.merge(on_disk / "unet", [folder], method="saliency", connectivity="local", progress=False)
    live = samerge.merge(model, ["a"], method="saliency", connectivity="local", progress=False)
    for module in live.factors:
        same_values(merged.delta(module), live.delta(module), 1e-5, module)
    assert merged.report.record.base.model_type == "UNet2DConditionModel"
    with pytest.raises(samerge.GraphError, match=r"for _class_name 'UNet2DConditionModel'.*connectivity=.local"):
        samerge.merge(on_disk / "unet", [folder], method="saliency", progress=False)
    active(model, "a")
    expected = painted(model)
    samerge.bake(on_disk / "unet", folder, progress=False).save(tmp_path / "baked", max_shard_size="20KB")
    baked = type(model).from_pretrained(tmp_path / "baked").eval()
    same_values(painted(baked), expected, 1e-5)
    extracted = samerge.extract_adapter(on_disk / "unet", tmp_path / "baked", rank=4, progress=False)
    for module in live.factors:
        same_values(extracted.delta(module), live.delta(module), 1e-4, module)
    plain = unet()
    samerge.bake(plain, folder, progress=False).save(tmp_path / "of-live")
    same_values(painted(type(model).from_pretrained(tmp_path / "of-live").eval()), expected, 1e-5)
    full = samerge.merge_full(
        on_disk / "unet", [tmp_path / "baked"], connectivity="local", density=1, scaling=1.0, progress=False
    )
    full.save(tmp_path / "full")
    same_values(painted(type(model).from_pretrained(tmp_path / "full").eval()), expected, 1e-4)


def test_a_pipelines_folder_is_a_base_of_all_its_models(on_disk: Path, tmp_path: Path) -> None:
    model = unet()
    put_on(model, "a", 1, _ATTENTION)
    folder = saved(model, tmp_path / "a", prefix="unet.")
    merged = samerge.merge(on_disk, [folder], method="linear", progress=False)
    live = samerge.merge(model, ["a"], method="linear", progress=False)
    assert set(merged.factors) == {f"unet.{module}" for module in live.factors}
    for module in live.factors:
        same_values(merged.delta(f"unet.{module}"), live.delta(module), 1e-6, module)
    with pytest.raises(samerge.OptionError, match=r"is a pipeline of several models.*such as .*unet"):
        samerge.bake(on_disk, folder, progress=False)


def test_folders_of_diffusers_that_are_broken(on_disk: Path, tmp_path: Path) -> None:
    model = unet()
    put_on(model, "a", 1, _ATTENTION)
    folder = saved(model, tmp_path / "a")
    index = on_disk / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["conv_in.weight"] = "../../secret.safetensors"
    index.write_text(json.dumps(table))
    with pytest.raises(samerge.BaseModelError, match=r"diffusion_pytorch_model.safetensors.index.json names"):
        samerge.merge(on_disk / "unet", [folder], method="linear")
    (on_disk / "model_index.json").write_text("{}")
    with pytest.raises(samerge.BaseModelError, match=r"model_index.json"):
        samerge.merge(on_disk, [folder], method="linear")
    (on_disk / "model_index.json").write_text('{"_class_name": "X", "nothing": ["a", "b"]}')
    with pytest.raises(samerge.BaseModelError, match=r"none of the models that model_index.json names has safetensors"):
        samerge.merge(on_disk, [folder], method="linear")
