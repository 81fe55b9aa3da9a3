"""Heads that are trained whole beside the LoRA: with trained biases, of old releases, on bases that have no head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

import samerge
from pitfalls.lab import Bench, close, quiet, with_biases

EXACT: dict[str, Any] = {"method": "linear", "progress": False}
_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_BERT = BertConfig(**_SIZES, vocab_size=32, num_labels=3, initializer_range=0.3, pad_token_id=0)
_QUESTIONS = BertConfig(**_SIZES, vocab_size=32, num_labels=2, initializer_range=0.3, pad_token_id=0)
_LLAMA = LlamaConfig(**_SIZES, vocab_size=32, num_labels=3, initializer_range=0.3, pad_token_id=0)

#: Task -> the model, its head, what to train of it.
TASKS: dict[str, tuple[str, Any, str, list[str]]] = {
    "token": ("TOKEN_CLS", lambda: with_biases(BertForTokenClassification(_BERT)), "classifier", ["query", "value"]),
    "sequence": ("SEQ_CLS", lambda: with_biases(BertForSequenceClassification(_BERT)), "classifier", ["query", "key"]),
    "questions": ("QUESTION_ANS", lambda: with_biases(BertForQuestionAnswering(_QUESTIONS)), "qa_outputs", ["query"]),
    "decoder": ("SEQ_CLS", lambda: LlamaForSequenceClassification(_LLAMA), "score", ["q_proj", "v_proj"]),
}


def said(model: nn.Module) -> Tensor:
    with torch.no_grad(), quiet():
        found = model(input_ids=torch.tensor([[5, 6, 7, 8, 2], [9, 4, 3, 2, 1]]))
    return found.start_logits if "start_logits" in found else found.logits


def train(lab: Bench, name: str, task: str, targets: list[str], **settings: Any) -> str:
    seed = sum(map(ord, name))

    def change(model: PeftModel) -> None:
        generator = torch.Generator().manual_seed(seed)
        for path, parameter in model.named_parameters():
            biased = settings.get("bias", "none") != "none" and path.endswith(".bias") and "original" not in path
            if "modules_to_save" in path or biased:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)

    return lab.train(name, change, task_type=task, target_modules=targets, **settings)


def loaded(lab: Bench, merged: samerge.MergedAdapter) -> PeftModel:
    return lab.with_adapters(str(merged.save(lab.folder / "out", overwrite=True)))


def truth(lab: Bench, head: str, *folders: str) -> nn.Module:
    """The base with every adapter's dense change added, and the mean of their heads."""
    model = lab.fresh()
    with quiet():
        states = [lab.with_adapters(folder).merge_and_unload().state_dict() for folder in folders]
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, tensor in model.state_dict().items():
        if name.startswith(f"{head}."):
            tensor.copy_(torch.stack([state[name] for state in states]).mean(0))
        elif tensor.is_floating_point():
            tensor.copy_(base[name] + sum(state[name] - base[name] for state in states))
    return model


@pytest.mark.parametrize("choice", ["average", "take:a"])
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("kind", TASKS)
def test_one_adapter_is_itself(bench, kind: str, bias: str, choice: str) -> None:
    task, make, head, targets = TASKS[kind]
    if kind == "decoder" and bias != "none":
        pytest.skip("it has no biases")
    lab = bench(make)
    folder = train(lab, "a", task, targets, bias=bias)
    expected = said(lab.with_adapters(folder))
    assert not torch.allclose(said(lab.fresh()), expected)
    merged = samerge.merge(lab.base, {"a": folder}, modules_to_save=choice, **EXACT)
    close(said(loaded(lab, merged)), expected)
    trained = load_file(Path(folder) / "adapter_model.safetensors")
    heads = {key for key in merged.tensors() if head in key}
    assert heads == {f"base_model.model.{head}.{part}" for part in ("weight", "bias")[: 1 if kind == "decoder" else 2]}
    for key in heads:
        close(merged.tensors()[key], trained[key])
    if bias == "none":
        alone = samerge.merge(None, {"a": folder}, modules_to_save=choice, **EXACT)
        close(said(loaded(lab, alone)), expected)
        live = lab.with_adapters(folder)
        samerge.add_weighted_adapter(
            live, ["first"], None, "m", "linear", modules_to_save=choice.replace(":a", ":first"), progress=False
        )
        live.set_adapter("m")
        close(said(live), expected)


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_two_heads_and_their_biases(bench, kind: str) -> None:
    """The head's bias is the mean of the heads', the base's biases are summed as updates."""
    task, make, head, targets = TASKS[kind]
    lab = bench(make)
    folders = [train(lab, name, task, targets, bias="all") for name in ("a", "b")]
    merged = samerge.merge(lab.base, folders, modules_to_save="average", **EXACT)
    one, two = (load_file(Path(folder) / "adapter_model.safetensors") for folder in folders)
    for part in ("weight", "bias"):
        key = f"base_model.model.{head}.{part}"
        close(merged.tensors()[key], (one[key] + two[key]) / 2)
    key = "base_model.model.bert.encoder.layer.0.output.dense.bias"
    base = lab.model.get_parameter(key.removeprefix("base_model.model."))
    close(merged.tensors()[key], one[key] + two[key] - base)
    close(said(loaded(lab, merged)), said(truth(lab, head, *folders)))


@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_head_that_is_dropped_leaves_nothing(bench, bias: str) -> None:
    task, make, head, targets = TASKS["token"]
    lab = bench(make)
    merged = samerge.merge(lab.base, [train(lab, "a", task, targets, bias=bias)], modules_to_save="drop", **EXACT)
    assert not [key for key in merged.tensors() if head in key]
    assert any(f"{head}.bias" in text for text in merged.report.warnings)
    loaded(lab, merged)


@pytest.mark.parametrize("bias", ["none", "all"])
def test_a_base_without_the_head(bench, tmp_path: Path, bias: str) -> None:
    """As bases on the Hub are."""
    task, make, _head, targets = TASKS["token"]
    lab = bench(make)
    folder = train(lab, "a", task, targets, bias=bias)
    plain = BertForMaskedLM(_BERT)
    plain.bert.load_state_dict(lab.model.bert.state_dict(), strict=False)
    plain.save_pretrained(tmp_path / "hub")
    merged = samerge.merge(str(tmp_path / "hub"), [folder], modules_to_save="average", **EXACT)
    close(said(loaded(lab, merged)), said(lab.with_adapters(folder)))


@pytest.mark.parametrize("kind", TASKS)
def test_adapters_of_peft_0_10(bench, kind: str) -> None:
    """The head is in the file and `modules_to_save` is null."""
    task, make, head, targets = TASKS[kind]
    lab = bench(make)
    new = train(lab, "a", task, targets)
    old = lab.altered(train(lab, "b", task, targets), modules_to_save=None, peft_version=None)
    assert json.loads((Path(old) / "adapter_config.json").read_text())["modules_to_save"] is None
    expected = said(lab.with_adapters(old))
    for source in (lab.base, None, lab.model):
        merged = samerge.merge(source, [old], modules_to_save="average", **EXACT)
        assert merged.settings["modules_to_save"] == [head]
        close(said(loaded(lab, merged)), expected)
    with pytest.raises(samerge.AdapterError, match=rf"b-altered: {head}"):
        samerge.merge(lab.base, [old], **EXACT)
    taken = samerge.merge(lab.base, {"a": new, "b": old}, weights=[0.0, 1.0], modules_to_save="take:b", **EXACT)
    close(said(loaded(lab, taken)), expected)
    both = samerge.merge(lab.base, {"a": new, "b": old}, modules_to_save="average", **EXACT)
    close(said(loaded(lab, both)), said(truth(lab, head, new, old)))
