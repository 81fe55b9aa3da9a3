"""Kinds that are no update of the base: refused, in words that say what to do instead."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import peft
import pytest
import torch
from alike import same_merge
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import samerge
from pitfalls.lab import Convolutions, close, hash_of, llama, output, quiet, randomise
from samerge.adapters import checks, read_adapter

INITS = ["pissa", "pissa_niter_4", "olora"]


def converted(lab, name: str, init: str, **settings: object) -> tuple[str, torch.Tensor]:
    """An adapter of a mutating initialisation, trained, converted as PEFT documents it; and what it says."""
    with quiet():
        settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **settings}
        config = LoraConfig(init_lora_weights=init, **settings)
        model = get_peft_model(lab.fresh(), config)
        before = lab.folder / f"{name}-before"
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(before)
        model.peft_config["default"].init_lora_weights = init
        generator = torch.Generator().manual_seed(hash_of(name))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        said = output(model.eval())
        model.save_pretrained(lab.folder / f"{name}-raw")
        model.save_pretrained(lab.folder / name, path_initial_model_for_weight_conversion=str(before))
    return str(lab.folder / name), said


@pytest.mark.parametrize("init", INITS)
def test_a_mutating_initialisation_is_refused_and_its_conversion_merges(bench, init: str) -> None:
    lab = bench(llama)
    lab.base  # noqa: B018 - written before PEFT changes any weight
    folder, said = converted(lab, "a", init)
    raw = str(lab.folder / "a-raw")
    with pytest.raises(samerge.AdapterError, match=rf"'first': it was initialised with '{init}', which changed") as e:
        lab.merge(raw)
    assert "path_initial_model_for_weight_conversion" in str(e.value)
    with quiet():
        model = lab.with_adapters(raw)
    with pytest.raises(samerge.AdapterError, match="path_initial_model_for_weight_conversion"):
        samerge.add_weighted_adapter(model, ["first"], combination_type="paper")
    merged = lab.merge(folder)
    with quiet():
        close(output(lab.reloaded(merged)), said)
        other = lab.train("b", target_modules=["q_proj", "v_proj"])
        close(output(lab.reloaded(lab.merge(folder, other))), output(lab.with_adapters(folder, other)))


def test_a_converted_adapter_of_rslora(bench) -> None:
    lab = bench(llama)
    lab.base  # noqa: B018
    folder, said = converted(lab, "a", "pissa", use_rslora=True)
    with quiet():
        close(output(lab.reloaded(lab.merge(folder))), said)


@pytest.mark.parametrize("init", ["corda", "lora_ga", "PiSSA"])
def test_other_mutating_initialisations(bench, init: str) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), init_lora_weights=init)
    with pytest.raises(samerge.AdapterError, match=rf"initialised with '{init}'.*path_initial_model_for"):
        lab.merge(folder)


def test_loftq(bench) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), init_lora_weights="loftq")
    with pytest.raises(samerge.AdapterError, match=r"'loftq'.*quantised base.*Give that base"):
        lab.merge(folder)


@pytest.mark.parametrize("init", [False, "gaussian", "orthogonal", "eva", "mica"])
def test_initialisations_that_leave_the_base_alone(bench, init) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), init_lora_weights=init)
    plain = lab.merge(str(lab.folder / "a"))
    merged = lab.merge(folder)
    same_merge(merged, plain)


TYPES = {
    "VERA": (peft.VeraConfig, "save_as_lora"),
    "IA3": (peft.IA3Config, "merge_and_unload"),
    "OFT": (peft.OFTConfig, "merge_and_unload"),
}


@pytest.mark.parametrize("kind", TYPES)
def test_other_types_of_peft(bench, kind: str) -> None:
    config, way_out = TYPES[kind]
    lab = bench(llama)
    more = {"feedforward_modules": []} if kind == "IA3" else {}
    with quiet():
        if kind == "OFT":
            more = {"r": 0, "oft_block_size": 4}
        model = get_peft_model(lab.fresh(), config(target_modules=["q_proj"], **more))
        model.save_pretrained(lab.folder / "a")
    for merge in (
        lambda: lab.merge(str(lab.folder / "a")),
        lambda: samerge.add_weighted_adapter(model, ["default"], combination_type="paper"),
    ):
        with pytest.raises(samerge.AdapterError, match=rf"it is a {kind} adapter.*{way_out}"):
            merge()


def test_kinds_that_are_read_from_their_folder_alone(bench) -> None:
    lab = bench(llama)
    with quiet():
        model = get_peft_model(lab.fresh(), peft.LoHaConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(samerge.AdapterError, match=r"it is a LOHA adapter.*Saved, it is read from its folder"):
        samerge.add_weighted_adapter(model, ["default"], combination_type="paper")


def test_prompts_are_no_weights(bench) -> None:
    lab = bench(llama)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with quiet():
        get_peft_model(lab.fresh(), config).save_pretrained(lab.folder / "a")
    with pytest.raises(samerge.AdapterError, match=r"PROMPT_TUNING.*changes the prompt and no weight"):
        lab.merge(str(lab.folder / "a"))


def test_a_conversion_to_lora_merges(bench) -> None:
    """The way out that the message names."""
    lab = bench(llama)
    with quiet():
        model = get_peft_model(lab.fresh(), peft.LoHaConfig(target_modules=["q_proj"], r=2, init_weights=False))
        randomise(model, 1)
        model.eval()
        peft.save_as_lora(lab.folder / "a", model, rank=16)
        close(output(lab.reloaded(lab.merge(str(lab.folder / "a")))), output(model), tolerance=1e-4)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("alora_invocation_tokens", [1, 2], "activated LoRA"),
        ("kasa_config", {"beta": 1.0}, "KaSA changes the base weights"),
        ("use_qalora", True, "QA-LoRA pools the input"),
        ("use_bdlora", {"nblocks": 2}, "block-diagonal"),
        ("arrow_config", {"top_k": 2}, "routes between other adapters"),
        ("monteclora_config", {"num_samples": 2}, "drawn from a distribution"),
        ("megatron_config", {"a": 1}, "Megatron"),
    ],
)
def test_variants(bench, setting: str, value, words: str) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), **{setting: value})
    with pytest.raises(samerge.AdapterError, match=rf"'first': its configuration sets {setting}=.*{words}"):
        lab.merge(folder)


def test_a_grouped_convolution(bench) -> None:
    lab = bench(Convolutions, groups=2)
    folder = lab.train("a", target_modules=["one", "two"])
    with pytest.raises(samerge.AdapterError, match=r"'first', module 'one'.*groups=2.*leave this module out"):
        lab.merge(folder)
    with quiet():
        model = lab.with_adapters(folder)
    with pytest.raises(samerge.AdapterError, match="groups=2"):
        samerge.add_weighted_adapter(model, ["first"], combination_type="paper")


def test_shards_that_were_not_gathered(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    file = Path(folder) / "adapter_model.safetensors"
    save_file({key: tensor.reshape(-1)[:0] for key, tensor in load_file(file).items()}, file)
    with pytest.raises(samerge.AdapterError, match=r"shards of DeepSpeed ZeRO-3 or FSDP.*GatheredParameters"):
        lab.merge(folder)


def test_a_file_without_any_tensor(bench) -> None:
    """What ZeRO-3 leaves of an adapter that was not gathered: 40 bytes."""
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    save_file({}, Path(folder) / "adapter_model.safetensors")
    with pytest.raises(samerge.AdapterError, match=r"holds no tensors at all.*ZeRO-3 or FSDP.*GatheredParameters"):
        lab.merge(folder)
    save_file({"model.norm.weight": torch.ones(3)}, Path(folder) / "adapter_model.safetensors")
    with pytest.raises(samerge.AdapterError, match=r"holds no LoRA tensors: none of 'model.norm.weight' is a lora_A"):
        lab.merge(folder)


def test_a_trained_module_that_was_not_gathered(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"], modules_to_save=["lm_head"])
    file = Path(folder) / "adapter_model.safetensors"
    save_file({key: tensor if "lora_" in key else tensor[:0, 0] for key, tensor in load_file(file).items()}, file)
    with pytest.raises(samerge.AdapterError, match=r"'lm_head.weight' has shape \(0,\); these are shards of DeepSpeed"):
        lab.merge(folder, modules_to_save="average")


def test_the_share_of_one_process(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    file = Path(folder) / "adapter_model.safetensors"
    save_file({key: tensor[: len(tensor) // 2].clone() for key, tensor in load_file(file).items()}, file)
    with pytest.raises(samerge.AdapterError, match=r"lora_A has shape \(1, 16\).*share of one process under FSDP"):
        lab.merge(folder)


def test_ranks_that_are_not_those_of_the_configuration(bench) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), r=3)
    with pytest.raises(samerge.AdapterError, match=r"configuration says rank 3, but lora_A has shape \(2, 16\)"):
        lab.merge(folder)


def test_half_a_pair(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    file = Path(folder) / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(file).items() if "layers.1" not in key or "_A" in key}, file)
    with pytest.raises(samerge.AdapterError, match=r"'model.layers.1.self_attn.q_proj' has \['lora_A'\].*incomplete"):
        lab.merge(folder)


def test_values_that_are_not_finite(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    file = Path(folder) / "adapter_model.safetensors"
    save_file({key: tensor / (0 if "layers.1" in key else 1) for key, tensor in load_file(file).items()}, file)
    with pytest.raises(samerge.AdapterError, match=r"'first', module 'model.layers.1.self_attn.q_proj': lora_A"):
        lab.merge(folder)


def test_reading_alone_refuses_too(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    config = Path(folder) / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": "LOHA"}))
    with pytest.raises(samerge.AdapterError, match="it is a LOHA adapter"):
        read_adapter(folder, "a")


def test_a_field_that_peft_does_not_know_is_told_and_ignored_as_peft_does(bench) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), trained_by={"tool": "x"})
    merged = samerge.merge(lab.base, {"first": folder}, method="linear", progress=False)
    assert [w for w in merged.report.warnings if "trained_by, which PEFT does not know" in w]


def test_a_field_of_a_newer_peft_is_refused(bench) -> None:
    lab = bench(llama)
    folder = lab.altered(lab.train("a", target_modules=["q_proj"]), use_magic=True, peft_version="0.97.1.dev0")
    with pytest.raises(samerge.AdapterError, match="use_magic=True: this field of PEFT 0"):
        samerge.merge(lab.base, {"first": folder}, method="linear", progress=False)


def test_every_field_of_this_peft_is_known() -> None:
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields - checks._KNOWN - set(checks._VARIANTS) == set()


def test_an_unknown_name_on_a_live_model(bench) -> None:
    lab = bench(llama)
    model: PeftModel = lab.with_adapters(lab.train("a", target_modules=["q_proj"]))
    with pytest.raises(samerge.AdapterError, match=r"no adapter 'nobody' in this PeftModel; it has \['first'\]"):
        samerge.add_weighted_adapter(model, ["nobody"], combination_type="paper")
