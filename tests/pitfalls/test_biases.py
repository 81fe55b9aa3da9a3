"""Biases of the base that an adapter trained (`bias="all"`, "lora_only"), and those of lora_B (`lora_bias`)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from alike import same_tensors
from peft import PeftModel
from peft_faults import saves_biases
from safetensors.torch import load_file

import samerge
from pitfalls.lab import EXACT, bert, close, llama, output, quiet


def change_biases(model: PeftModel) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") and parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def dense_sum(lab, *folders: str) -> torch.nn.Module:
    """The base with the change of every tensor that each adapter makes, added up."""
    base = lab.fresh()
    start = copy.deepcopy(base.state_dict())
    total = copy.deepcopy(start)
    for folder in folders:
        changed = lab.with_adapters(folder).merge_and_unload().state_dict()
        total = {name: total[name] + changed[name] - start[name] for name in start}
    base.load_state_dict(total)
    return base


@saves_biases
@pytest.mark.parametrize(("one", "two"), [("lora_only", "lora_only"), ("all", "lora_only"), ("all", "none")])
def test_what_changed_against_the_base_is_added(bench, one: str, two: str) -> None:
    lab = bench(bert)
    first = lab.train("a", change_biases, target_modules=["query"], bias=one)
    second = lab.train("b", change_biases, target_modules=["query", "output.dense"], bias=two)
    assert any("bias" in key for key in load_file(Path(first) / "adapter_model.safetensors"))
    for folders in ([first], [first, second]):
        merged = lab.merge(*folders)
        assert merged.settings["bias"] == ("all" if "all" in (one, two) else "lora_only")
        assert any("vLLM will not serve it" in warning for warning in merged.report.warnings)
        with quiet():
            close(output(lab.reloaded(merged)), output(dense_sum(lab, *folders)))


@saves_biases
def test_weights_and_scaling_apply_to_biases(bench) -> None:
    lab = bench(bert)
    folder = lab.train("a", change_biases, target_modules=["query"], bias="lora_only")
    key = "base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.bias"
    base = lab.model.bert.encoder.layer[0].attention.self.query.bias.detach()
    trained = load_file(Path(folder) / "adapter_model.safetensors")[key]
    for options, factor in (
        ({"scaling": 0.5}, 1.0),  # 0.5 * 2
        ({"scaling": "auto"}, 2.0),  # one adapter alone keeps its own strength times its weight
    ):
        merged = samerge.merge(lab.base, [folder], method="paper", weights=[2.0], density=1.0, **options)
        close(merged.tensors()[key], base + factor * (trained - base))


def test_a_live_model_keeps_them_in_its_base(bench) -> None:
    lab = bench(bert)
    folder = lab.train("a", change_biases, target_modules=["query"], bias="all")
    with pytest.raises(samerge.AdapterError, match=r"'first' of a live model: it trained biases.*merge the folders"):
        samerge.add_weighted_adapter(lab.with_adapters(folder), ["first"], combination_type="paper")


def test_without_a_base_there_is_nothing_to_compare_with(bench) -> None:
    lab = bench(bert)
    folder = lab.train("a", change_biases, target_modules=["query"], bias="all")
    with pytest.raises(samerge.AdapterError, match=r"bias='all'.*give base="):
        samerge.merge(None, [folder], method="cat")


def test_lora_bias_under_the_norm_rule_and_weights(bench) -> None:
    lab = bench(llama, attention_bias=True)
    folders = [lab.train(name, target_modules=["q_proj"], lora_bias=True) for name in ("a", "b")]
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias"
    one, two = (load_file(Path(folder) / "adapter_model.safetensors")[key] * 2 for folder in folders)  # alpha / r
    exact = samerge.merge(lab.base, folders, weights=[1.0, -0.5], **EXACT)
    close(exact.tensors()[key], one - 0.5 * two)
    auto = samerge.merge(lab.base, folders, method="linear", weights=[1.0, -0.5], scaling="auto")
    close(auto.tensors()[key], (one - 0.5 * two) / 2)


def test_lora_bias_beside_modules_that_cannot_have_one(bench) -> None:
    lab = bench(llama, attention_bias=True)
    first = lab.train("a", target_modules=["q_proj"], lora_bias=True)
    second = lab.train("b", target_modules=["embed_tokens"])
    with pytest.raises(samerge.AdapterError, match=r"lora_bias and others that adapt 'model.embed_tokens'"):
        lab.merge(first, second)


@saves_biases
def test_auto_does_not_scale_biases_of_one_adapter(bench) -> None:
    lab = bench(bert)
    folder = lab.train("a", change_biases, target_modules=["query"], bias="lora_only")
    one, other = (
        samerge.merge(lab.base, [folder], method="paper", density=1.0, scaling=s).tensors()
        for s in ("auto", "auto:1.6")
    )
    same_tensors(one, other)  # one adapter keeps its own norm
