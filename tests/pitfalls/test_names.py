"""Adapters whose names are not those of the base: wrappers around the model, other releases of transformers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

import samerge
from pitfalls.lab import bert, close, llama, mixtral, output, quiet


def renamed(folder: str, change: Callable[[str], str]) -> str:
    file = Path(folder) / "adapter_model.safetensors"
    save_file({change(key): tensor for key, tensor in load_file(file).items()}, file)
    return folder


WRAPPERS = {
    "torch.compile": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "torch.compile around PEFT": lambda key: f"_orig_mod.{key}",
    "torch.compile of every layer": lambda key: re.sub(r"(layers\.\d+)", r"\1._orig_mod", key),
    "FSDP": lambda key: "_fsdp_wrapped_module." + re.sub(r"(layers\.\d+)", r"\1._fsdp_wrapped_module", key),
    "DDP": lambda key: f"module.{key}",
    "activation checkpointing": lambda key: re.sub(r"(layers\.\d+)", r"\1._checkpoint_wrapped_module", key),
    "a state dict with the adapter's name": lambda key: key.replace(".weight", ".default.weight"),
    "a name that the trainer gave it": lambda key: key.replace(".weight", ".policy.weight"),
    "a pipeline's name": lambda key: key.replace(".weight", ".default_0.default.weight"),
    "no prefix": lambda key: key.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(bench, wrapper: str) -> None:
    lab = bench(llama)
    settings = {"target_modules": ["q_proj", "down_proj"]}
    plain, wrapped = lab.train("a", **settings), renamed(lab.train("b", **settings), WRAPPERS[wrapper])
    expected = output(lab.with_adapters(plain, lab.train("c", lambda model: _same_as(model, wrapped), **settings)))
    merged = lab.merge(plain, wrapped)
    assert set(merged.factors) == set(lab.merge(plain).factors)
    with quiet():
        close(output(lab.reloaded(merged)), expected)


def _same_as(model, folder: str) -> None:
    found = {
        re.sub(r"\.default_0|\.default|\.policy|_\w+_module\.|_orig_mod\.", "", k): v for k, v in _load(folder).items()
    }
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            key = name.replace(".default", "").removeprefix("base_model.model.")
            parameter.data.copy_(next(v for k, v in found.items() if k.endswith(key)))


def _load(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def test_the_same_tensor_twice(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    file = Path(folder) / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, **{f"_orig_mod.{key}": tensor.clone() for key, tensor in tensors.items()}}, file)
    with pytest.raises(samerge.AdapterError, match="mean the same tensor"):
        lab.merge(folder)


@pytest.mark.parametrize("name", ["default", "policy"])
def test_a_state_dict_that_was_saved_as_it_is(bench, name: str) -> None:
    """With the adapter's name behind all that PEFT keeps by adapter, trained modules and rows among it."""
    lab = bench(llama)
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "trainable_token_indices": [3, 5]}
    plain, raw = lab.train("a", **settings), lab.train("b", **settings)
    with quiet():
        state = lab.with_adapters(plain, names=[name]).state_dict()
    kept = {key: tensor.clone() for key, tensor in state.items() if f".{name}" in key}
    assert {key.split(".")[-3] for key in kept} >= {"lora_A", "modules_to_save"}
    save_file(kept, Path(raw) / "adapter_model.safetensors")
    one, other = (lab.merge(folder, modules_to_save="average") for folder in (plain, raw))
    assert {*one.factors, *one.extras} == {*other.factors, *other.extras}
    for module in one.factors:
        close(other.delta(module), one.delta(module))
    for key in one.extras:
        close(other.extras[key], one.extras[key])


def test_several_adapters_in_one_file(bench) -> None:
    """Of a state dict of two adapters, or of a mixture of LoRAs, which has several B behind one A."""
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    tensors = _load(folder)
    for names in (("default", "policy"), ("0", "1")):
        both = {k.replace(".weight", f".{name}.weight"): v.clone() for k, v in tensors.items() for name in names}
        save_file(both, Path(folder) / "adapter_model.safetensors")
        with pytest.raises(samerge.AdapterError, match=rf"several adapters \({', '.join(names)}\), or of a mixture"):
            lab.merge(folder)


def test_a_live_compiled_model(bench) -> None:
    lab = bench(llama)
    folders = [lab.train(name, target_modules=["q_proj"]) for name in ("a", "b")]
    model = lab.with_adapters(*folders)
    expected = output(model)
    for number, layer in enumerate(model.get_base_model().model.layers):
        model.get_base_model().model.layers[number] = torch.compile(layer, backend="eager")
    merged = samerge.merge(model, ["first", "second"], method="paper", density=1.0, scaling=1.0)
    assert "model.layers.0.self_attn.q_proj" in merged.factors
    with quiet():
        close(output(lab.reloaded(merged)), expected)


def test_unsloth(bench) -> None:
    """Its adapters are PEFT's: a regex of targets, a mark in auto_mapping, and a 4-bit base by name."""
    lab = bench(llama)
    folder = lab.train("a", target_modules=r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|up_proj))", task_type="CAUSAL_LM")
    folder = lab.altered(
        folder,
        auto_mapping={"unsloth_fixed": True},
        base_model_name_or_path="unsloth/tiny-bnb-4bit",
        unsloth_fixed=None,
    )
    merged = lab.merge(folder)
    assert merged.settings["target_modules"] == ["gate_proj", "q_proj", "up_proj", "v_proj"]  # with their partners
    with quiet():
        close(output(lab.reloaded(merged)), output(lab.with_adapters(folder)))


def test_unslothed_experts_are_shown_beside_the_nearest(bench) -> None:
    """Its 4-bit gpt-oss keeps every expert's projection as a module of its own."""
    lab = bench(mixtral)
    folder = renamed(
        lab.train("a", target_modules=["q_proj"]),
        lambda key: key.replace("self_attn.q_proj", "mlp.experts.gate_up_projs.0"),
    )
    with pytest.raises(samerge.BaseModelError, match=r"experts.gate_up_projs.0' has no weight there"):
        lab.merge(folder)


def test_unmatched_modules_are_shown_beside_the_nearest(bench) -> None:
    lab = bench(llama)
    folder = renamed(
        lab.train("a", target_modules=["q_proj"]), lambda key: key.replace("self_attn.q_proj", "attention.wq")
    )
    with pytest.raises(samerge.BaseModelError) as caught:
        lab.merge(folder)
    for words in (
        "'first' does not fit",
        "its module 'model.layers.0.attention.wq' has no weight there (nearest: ['model.layers.0.",
        "its module 'model.layers.1.attention.wq' has no weight there (nearest: ['model.layers.1.",
    ):
        assert words in str(caught.value)


def test_an_adapter_of_another_family(bench, tmp_path) -> None:
    lab = bench(llama)
    other = bert()
    other.save_pretrained(tmp_path / "bert")
    folder = lab.train("a", target_modules=["q_proj", "up_proj"])
    with pytest.raises(samerge.BaseModelError, match=r"; and 1 more modules\. Is it an adapter of another base model"):
        samerge.merge(str(tmp_path / "bert"), [folder], method="paper")


def test_an_adapter_of_a_wider_model(bench, tmp_path) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    llama(hidden_size=32).save_pretrained(tmp_path / "wide")
    with pytest.raises(samerge.BaseModelError, match=r"updates a weight of 16 x 16 .*q_proj.weight is \(32, 32\)"):
        samerge.merge(str(tmp_path / "wide"), [folder], method="paper")


def test_other_names_alone_are_a_warning(bench) -> None:
    lab = bench(llama)
    folders = [lab.train(name, target_modules=["q_proj"]) for name in ("a", "b")]
    named = [
        lab.altered(folder, base_model_name_or_path=f"ada/{base}") for folder, base in zip(folders, "xy", strict=True)
    ]
    for source in (lab.base, None):
        with pytest.warns(UserWarning, match=r"on different bases: a-altered on x; b-altered on y\..* was not checked"):
            merged = samerge.merge(source, named, method="linear", progress=False)
        assert any("different bases" in text for text in merged.report.warnings)


def test_a_copy_of_the_base_may_have_any_name(bench) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), base_model_name_or_path="ada/llama")
    assert not [text for text in lab.merge(folder).report.warnings if "base" in text]
    assert not [text for text in samerge.merge(lab.model, [folder]).report.warnings if "trained on" in text]


@pytest.mark.parametrize("repository", ["ada--llama", "grace--other"])
def test_a_base_of_the_hub_has_a_name(bench, tmp_path: Path, repository: str) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), base_model_name_or_path="ada/llama")
    base = tmp_path / f"models--{repository}" / "snapshots" / "4d5c"
    shutil.copytree(lab.base, base)
    if repository == "ada--llama":
        samerge.merge(str(base), [folder], method="linear", progress=False)
    else:
        with pytest.warns(UserWarning, match="another base than other: a-altered on llama"):
            samerge.merge(str(base), [folder], method="linear", progress=False)


def llava() -> LlavaForConditionalGeneration:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=LlamaConfig(**sizes, vocab_size=32),
            vision_config=CLIPVisionConfig(**sizes, image_size=8, patch_size=4),
            image_token_index=31,
        )
    )


NEW_TO_OLD = (
    ("model.language_model.", "language_model.model."),
    ("lm_head", "language_model.lm_head"),
    ("model.vision_tower.", "vision_tower."),
)


def older(name: str) -> str:
    for new, old in NEW_TO_OLD:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


BY_NAME = pytest.mark.filterwarnings("ignore:by name these adapters")  # the model in memory has no name


@BY_NAME
@pytest.mark.parametrize("which", ["old adapter", "old checkpoint"])
def test_a_vision_language_model_of_another_release(bench, which: str) -> None:
    """`language_model.model.layers` in older releases, `model.language_model.layers` in newer ones."""
    lab = bench(llava)
    settings = {"target_modules": r".*language_model.*(q_proj|down_proj)|.*vision_tower.*k_proj|lm_head"}
    folder = lab.train("a", **settings)
    plain = samerge.merge(lab.model, [folder], method="paper", connectivity="local", density=1.0, scaling=1.0)
    base = lab.model
    if which == "old adapter":
        prefix = "base_model.model."
        renamed(folder, lambda key: prefix + older(key.removeprefix(prefix)))
    else:
        base = Path(lab.base)
        file = base / "model.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in lab.model.state_dict().items()}
        save_file({older(name): tensor for name, tensor in tensors.items()}, file)
        assert "language_model.model.layers.0.self_attn.q_proj.weight" in load_file(file)
        base = str(base)
    merged = samerge.merge(base, [folder], method="paper", connectivity="local", density=1.0, scaling=1.0)
    assert len(merged.factors) == len(plain.factors)
    for name, factors in plain.factors.items():
        close(merged.factors[name].delta(), factors.delta())


@BY_NAME
def test_names_that_transformers_5_changed(bench, tmp_path) -> None:
    """In memory the layers of a ViT are named otherwise than in its checkpoint."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    lab = bench(lambda: ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)))
    folders = [lab.train(name, target_modules=["q_proj", "fc1"]) for name in ("a", "b")]
    in_file = load_file(Path(lab.base) / "model.safetensors")
    assert set(in_file) != set(lab.model.state_dict())  # or this test shows nothing
    options = {"method": "paper", "density": 0.5, "scaling": 1.0, "progress": False}
    on_disk = samerge.merge(lab.base, folders, **options)
    live = samerge.merge(lab.model, folders, **options)
    assert set(on_disk.factors) == set(live.factors)
    for name in live.factors:
        close(on_disk.delta(name), live.delta(name))


@BY_NAME
def test_experts_that_were_modules_on_a_base_that_has_them_stacked(bench) -> None:
    lab = bench(mixtral)
    folder = lab.train("a", target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    file = Path(folder) / "adapter_model.safetensors"
    tensors = {key: tensor for key, tensor in load_file(file).items() if "experts" not in key}
    stem = "base_model.model.model.layers.0.block_sparse_moe.experts.0.w2.lora_"
    save_file({**tensors, f"{stem}A.weight": torch.ones(2, 24), f"{stem}B.weight": torch.ones(16, 2)}, file)
    folder = lab.altered(folder, target_parameters=None, target_modules=["q_proj", "w2"])
    merged = lab.merge(folder)  # the checkpoint has every expert apart
    assert "model.layers.0.block_sparse_moe.experts.0.w2" in merged.factors
    on_live = samerge.merge(lab.model, [folder], method="linear", progress=False)
    stack = "model.layers.0.mlp.experts.down_proj"
    assert {f"{stack}[{expert}]" for expert in range(3)} < set(on_live.factors)
    close(on_live.factors[f"{stack}[0]"].delta(), torch.full((16, 24), 4.0))
    close(on_live.factors[f"{stack}[1]"].delta(), torch.zeros(16, 24))
