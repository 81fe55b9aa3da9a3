"""Models whose output head is their embedding: PEFT saves both when the vocabulary was resized, or on demand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import samerge
from pitfalls.lab import close, quiet, randomise

#: T5 does not scale its attention, so that random weights make more of a rounding than the 1e-5 asked elsewhere.
AMPLIFIED = 3e-5
EXACT: dict[str, Any] = {"method": "linear", "progress": False}
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32}
_T5 = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "initializer_factor": 2.0}

#: Family -> a tied model, what to train, the embedding, the head.
FAMILIES: dict[str, tuple[Any, list[str], str, str]] = {
    "llama": (
        lambda: LlamaForCausalLM(
            LlamaConfig(**_SIZES, intermediate_size=24, initializer_range=0.3, tie_word_embeddings=True)
        ),
        ["q_proj"],
        "model.embed_tokens",
        "lm_head",
    ),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)),
        ["c_attn"],
        "transformer.wte",
        "lm_head",
    ),
    "opt": (
        lambda: OPTForCausalLM(
            OPTConfig(**_SIZES, ffn_dim=24, max_position_embeddings=32, word_embed_proj_dim=16, init_std=0.3)
        ),
        ["q_proj"],
        "model.decoder.embed_tokens",
        "lm_head",
    ),
    "t5": (
        lambda: T5ForConditionalGeneration(T5Config(**_T5, vocab_size=32, decoder_start_token_id=0)),
        ["q"],
        "shared",
        "lm_head",
    ),
    "bert": (
        lambda: BertForMaskedLM(BertConfig(**_SIZES, intermediate_size=24, initializer_range=0.3)),
        ["query"],
        "bert.embeddings.word_embeddings",
        "cls.predictions.decoder",
    ),
}


def said(model: nn.Module) -> Tensor:
    ids = torch.tensor([[5, 6, 7, 30, 31]])
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    more = {"decoder_input_ids": ids} if isinstance(inner, T5ForConditionalGeneration) else {}
    with torch.no_grad(), quiet():
        return model(input_ids=ids, **more).logits


class Tied:
    """A tied model in memory and on disk, smaller and as large as its adapters have it."""

    def __init__(self, family: str, folder: Path, resized: bool) -> None:
        make, self.targets, self.embedding, self.head = FAMILIES[family]
        self.folder = folder
        torch.manual_seed(0)
        make().save_pretrained(folder / "hub")
        kind = type(make())
        model = kind.from_pretrained(folder / "hub").eval()
        self.base = str(folder / "hub")
        self.trained_on = model
        if resized:
            model.resize_token_embeddings(35)
            model.save_pretrained(folder / "resized")
            self.base = str(folder / "resized")
        self.model = kind.from_pretrained(self.base).eval()

    def train(self, name: str, saving: dict[str, Any] | None = None, **settings: Any) -> str:
        with quiet():
            model = get_peft_model(
                copy.deepcopy(self.trained_on), LoraConfig(r=2, lora_alpha=4, target_modules=self.targets, **settings)
            )
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            randomise(model, sum(map(ord, name)))
            for path, parameter in model.named_parameters():
                if "modules_to_save" in path or "trainable_tokens_delta" in path:
                    parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
            model.save_pretrained(self.folder / name, **(saving or {}))
        return str(self.folder / name)

    def loaded(self, *folders: str) -> PeftModel:
        with quiet():
            model = PeftModel.from_pretrained(copy.deepcopy(self.model), folders[0], adapter_name="a")
            for number, folder in enumerate(folders[1:]):
                model.load_adapter(folder, adapter_name="bc"[number])
            model.base_model.set_adapter(["a", "b", "c"][: len(folders)])
        return model.eval()

    def assert_itself(self, folder: str, live: bool = True) -> samerge.MergedAdapter:
        """One adapter of weight 1 is itself, by file and live."""
        expected = said(self.loaded(folder))
        assert not torch.allclose(said(self.model), expected)
        merged = samerge.merge(self.base, {"a": folder}, modules_to_save="average", **EXACT)
        with quiet():
            close(said(self.loaded(str(merged.save(self.folder / "out", overwrite=True)))), expected, AMPLIFIED)
        on_model = samerge.merge(copy.deepcopy(self.model), {"a": folder}, modules_to_save="average", **EXACT)
        with quiet():
            close(said(self.loaded(str(on_model.save(self.folder / "out", overwrite=True)))), expected, AMPLIFIED)
        if live:
            model = self.loaded(folder)
            with quiet():
                samerge.add_weighted_adapter(
                    model, ["a"], None, "m", "linear", modules_to_save="average", progress=False
                )
                model.set_adapter("m")
            close(said(model), expected, AMPLIFIED)
        return merged


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def in_file(folder: str) -> set[str]:
    keys = load_file(Path(folder) / "adapter_model.safetensors")
    return {key.removeprefix("base_model.model.") for key in keys if "lora_" not in key}


def test_the_checkpoint_has_no_head(family: str, tmp_path: Path) -> None:
    tied = Tied(family, tmp_path, resized=False)
    assert f"{tied.head}.weight" not in load_file(Path(tied.base) / "model.safetensors")
    assert tied.model.get_parameter(f"{tied.head}.weight") is tied.model.get_parameter(f"{tied.embedding}.weight")


def test_a_resized_vocabulary(family: str, tmp_path: Path) -> None:
    tied = Tied(family, tmp_path, resized=True)
    folder, other = tied.train("x"), tied.train("y")
    assert f"{tied.head}.weight" in in_file(folder)
    merged = tied.assert_itself(folder)
    assert not [key for key in merged.tensors() if "lora_" not in key]
    both = samerge.merge(tied.base, [folder, other], **EXACT)
    with quiet():
        close(said(tied.loaded(str(both.save(tmp_path / "both")))), said(tied.loaded(folder, other)), AMPLIFIED)
    with pytest.raises(samerge.BaseModelError, match="its vocabulary was resized"):
        samerge.merge(str(tmp_path / "hub"), [folder], **EXACT)


def test_embeddings_saved_on_demand(family: str, tmp_path: Path) -> None:
    tied = Tied(family, tmp_path, resized=False)
    folder = tied.train("x", {"save_embedding_layers": True})
    assert {f"{tied.head}.weight", f"{tied.embedding}.weight"} <= in_file(folder)
    tied.assert_itself(folder)
    file = Path(folder) / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"base_model.model.{tied.head}.weight"] += 0.1
    save_file(tensors, file)
    with pytest.raises(samerge.BaseModelError, match=rf"{tied.head}.weight', which differs from"):
        samerge.merge(tied.base, [folder], **EXACT)


@pytest.mark.parametrize("resized", [False, True], ids=["", "resized"])
def test_trained_rows(family: str, tmp_path: Path, resized: bool) -> None:
    tied = Tied(family, tmp_path, resized)
    if family == "t5":
        pytest.skip("PEFT has no trained rows for an embedding that several models share")
    entry = {tied.embedding.rpartition(".")[2]: [30, 31]}
    folder = tied.train("x", trainable_token_indices=entry)
    merged = tied.assert_itself(folder)
    assert list(merged.settings["trainable_token_indices"]) == [tied.embedding]


@pytest.mark.parametrize("resized", [False, True], ids=["", "resized"])
def test_both_trained_whole(family: str, tmp_path: Path, resized: bool) -> None:
    if family in ("t5", "bert"):
        pytest.skip("PEFT does not load such an adapter itself")
    tied = Tied(family, tmp_path, resized)
    entries = [tied.embedding.rpartition(".")[2], tied.head]
    tied.assert_itself(tied.train("x", modules_to_save=entries))


def test_trained_together(family: str, tmp_path: Path) -> None:
    """`ensure_weight_tying`: the trained embedding is in the file twice, and once in `modules_to_save`."""
    if family in ("t5", "bert"):
        pytest.skip("PEFT does not load such an adapter itself")
    tied = Tied(family, tmp_path, resized=False)
    entries = [tied.embedding.rpartition(".")[2]]
    folder = tied.train("x", modules_to_save=entries, ensure_weight_tying=True)
    assert f"{tied.embedding}.weight" in in_file(folder)
    tied.assert_itself(folder)
    expected = said(tied.loaded(folder))
    alone = samerge.merge(None, [folder], modules_to_save="average", **EXACT)
    with quiet():
        close(said(tied.loaded(str(alone.save(tmp_path / "alone")))), expected, AMPLIFIED)


def test_a_head_that_is_adapted(family: str, tmp_path: Path) -> None:
    tied = Tied(family, tmp_path, resized=False)
    tied.targets = [*tied.targets, tied.head.rpartition(".")[2]]
    if family == "bert":
        tied.targets = ["query", "predictions.decoder"]
    folders = [tied.train("x"), tied.train("y")]
    merged = samerge.merge(tied.base, folders, **EXACT)
    assert tied.head in merged.factors
    with quiet():
        close(said(tied.loaded(str(merged.save(tmp_path / "out")))), said(tied.loaded(*folders)), AMPLIFIED)
