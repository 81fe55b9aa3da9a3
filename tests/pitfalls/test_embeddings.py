"""Embeddings and output heads: tied weights, and the copies of base weights that PEFT saves along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import samerge
from pitfalls.lab import close, llama, output, quiet

EMBEDDINGS = {"target_modules": ["embed_tokens", "lm_head"]}


@pytest.mark.parametrize("ensured", [False, True], ids=["each by itself", "ensure_weight_tying"])
def test_tied_weights(bench, ensured: bool) -> None:
    """The checkpoint has no lm_head.weight; an adapter of it is one of the embedding's weight."""
    lab = bench(llama, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(Path(lab.base) / "model.safetensors")
    folders = [lab.train(name, ensure_weight_tying=ensured, **EMBEDDINGS) for name in ("a", "b")]
    # PEFT leaves the head of a second adapter with ensure_weight_tying out: the oracle has to name it
    both = [lab.altered(folder, ensure_weight_tying=False, **EMBEDDINGS) for folder in folders]
    expected = output(lab.with_adapters(*both))
    with quiet():
        close(output(lab.reloaded(lab.merge(*folders))), expected)
        model = lab.with_adapters(*both)
        samerge.add_weighted_adapter(
            model, ["first", "second"], None, "merged", combination_type="paper", density=1.0, scaling=1.0
        )
        model.set_adapter("merged")
        close(output(model), expected)


def test_copies_of_the_base_are_left_out(bench) -> None:
    lab = bench(llama)
    folders = [lab.train(name, **EMBEDDINGS) for name in ("a", "b")]
    assert any("base_layer.weight" in key for key in load_file(Path(folders[0]) / "adapter_model.safetensors"))
    merged = lab.merge(*folders)
    assert not [key for key in merged.tensors() if "lora_" not in key]
    with quiet():
        close(output(lab.reloaded(merged)), output(lab.with_adapters(*folders)))


def _changed(folder: str, key: str, change) -> None:
    file = Path(folder) / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[key] = change(tensors[key])
    save_file(tensors, file, metadata={"format": "pt"})


COPY = "base_model.model.model.embed_tokens.base_layer.weight"


def test_a_copy_that_differs_is_an_error(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", **EMBEDDINGS)
    _changed(folder, COPY, lambda weight: weight + 0.01)
    with pytest.raises(samerge.BaseModelError, match=r"'first'.*'model.embed_tokens.weight', which differs from") as e:
        lab.merge(folder)
    assert "save_embedding_layers=False" in str(e.value)


def test_a_resized_vocabulary_is_an_error(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", **EMBEDDINGS)
    _changed(folder, COPY, lambda weight: torch.cat([weight, weight[:2]]))
    with pytest.raises(samerge.BaseModelError, match=r"shape \(34, 16\).* is \(32, 16\): its vocabulary was resized"):
        lab.merge(folder)


def test_a_copy_without_a_base_to_compare_it_with_is_an_error(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", **EMBEDDINGS)
    with pytest.raises(samerge.AdapterError, match=r"only if it is a copy of the base's.*give base="):
        samerge.merge(None, [folder], method="linear")


def test_embeddings_saved_though_they_are_not_targeted(bench) -> None:
    """`save_pretrained(save_embedding_layers=True)`: accepted while they are the base's."""
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    file = Path(folder) / "adapter_model.safetensors"
    weight = lab.model.get_input_embeddings().weight.detach().clone()
    save_file({**load_file(file), "base_model.model.model.embed_tokens.weight": weight}, file)
    assert "model.embed_tokens" not in lab.merge(folder).factors
    _changed(folder, "base_model.model.model.embed_tokens.weight", lambda weight: weight * 2)
    with pytest.raises(samerge.BaseModelError, match="differs from"):
        lab.merge(folder)


def test_any_other_tensor_is_a_copy_or_an_error(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", target_modules=["q_proj"])
    file, key = Path(folder) / "adapter_model.safetensors", "base_model.model.model.norm.weight"
    save_file({**load_file(file), key: torch.ones(16)}, file)
    assert not [name for name in lab.merge(folder).tensors() if "norm" in name]  # the base's own
    _changed(folder, key, lambda weight: weight * 2)
    with pytest.raises(samerge.BaseModelError, match=r"'first'.*'model.norm.weight', which differs from"):
        lab.merge(folder)
    with pytest.raises(samerge.AdapterError, match=r"also holds 'model.norm.weight', which is no LoRA factor"):
        samerge.merge(None, [folder], method="linear")
    save_file({**load_file(file), "base_model.model.magic": torch.ones(3)}, file)
    with pytest.raises(samerge.BaseModelError, match=r"also holds 'magic' \(3,\), which is no LoRA factor"):
        lab.merge(lab.altered(_without(folder, key)))


def _without(folder: str, key: str) -> str:
    file = Path(folder) / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != key}, file)
    return folder


def test_untied_by_the_configuration_is_not_tied(bench) -> None:
    lab = bench(llama, tie_word_embeddings=True)
    folder = lab.train("a", target_modules=["lm_head"])
    config = Path(lab.base) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": False}))
    with pytest.raises(samerge.BaseModelError, match="its module 'lm_head' has no weight there"):
        samerge.merge(lab.base, [folder], method="paper")
