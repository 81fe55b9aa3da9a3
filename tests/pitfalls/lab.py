"""A bench for adapters of every kind: tiny random bases, adapters that PEFT writes, and PEFT as the oracle."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import samerge

#: For `merge` and `add_weighted_adapter`, which both have a selection.
EXACT = {"method": "paper", "density": 1.0, "scaling": 1.0, "progress": False}
#: The same for `add_weighted_adapter`.
EXACT_LIVE = {"combination_type": "paper", "density": 1.0, "scaling": 1.0, "progress": False}
_SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_EXPERTS = {"num_experts_per_tok": 2, "head_dim": 4}


def llama(**settings: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**{**_SIZES, **_HEADS, **_TOKENS, "tie_word_embeddings": False, **settings}))


def mixtral() -> PreTrainedModel:
    return MixtralForCausalLM(MixtralConfig(**_SIZES, **_HEADS, **_TOKENS, **_EXPERTS, num_local_experts=3))


def qwen3_moe() -> PreTrainedModel:
    settings = {**_SIZES, **_HEADS, **_TOKENS, **_EXPERTS, "moe_intermediate_size": 12, "num_experts": 3}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings))


def gpt_oss() -> PreTrainedModel:
    """As wide as its experts: nothing in the shapes tells that they are stored (in, out)."""
    settings = {**_SIZES, **_HEADS, **_TOKENS, **_EXPERTS, "intermediate_size": 16, "num_local_experts": 3}
    return GptOssForCausalLM(GptOssConfig(**settings))


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=16, **_TOKENS))


def bert() -> PreTrainedModel:
    return with_biases(
        BertForSequenceClassification(
            BertConfig(**_SIZES, num_attention_heads=2, num_labels=3, initializer_range=0.3, pad_token_id=0)
        )
    )


def with_biases(model: PreTrainedModel) -> PreTrainedModel:
    """Transformers starts biases at zero, where what changed cannot be told from what is."""
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.normal_(parameter, std=0.3)
    return model


class Convolutions(nn.Module):
    """A convolution of each dimension, one behind the other."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 6, 3, padding=1, groups=groups)
        self.two = nn.Conv2d(4, 6, (3, 2))
        self.three = nn.Conv3d(2, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.two(x.reshape(2, 4, 5, 5)).flatten(1)
        cube = self.three(x.reshape(2, 2, 5, 5, 2)).flatten(1)
        return torch.cat([self.one(x.reshape(2, 4, 25)).flatten(1), seen, cube], dim=1)


class Attentive(nn.Module):
    """An `nn.MultiheadAttention` between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 16)
        self.mha = nn.MultiheadAttention(16, 2, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.enter(x)
        return self.last(self.mha(hidden, hidden, hidden, need_weights=False)[0])


@dataclass(frozen=True)
class Bench:
    """A base model, on disk if it is one of transformers', and where its adapters go.

    Args:
        model: the base; never changed.
        folder: where everything is written.
    """

    model: nn.Module
    folder: Path
    made: list[str] = field(default_factory=list)
    loaded: list[nn.Module] = field(default_factory=list)

    @property
    def base(self) -> str | nn.Module:
        """What to merge on: the folder, or a copy of the model when it is not transformers'."""
        if not isinstance(self.model, PreTrainedModel):
            return copy.deepcopy(self.model)
        folder = self.folder / "base"
        if not folder.exists():
            self.model.save_pretrained(folder)
        return str(folder)

    def fresh(self) -> nn.Module:
        """The base as it is loaded from its folder."""
        if not isinstance(self.model, PreTrainedModel):
            return copy.deepcopy(self.model).eval()
        if not self.loaded:
            self.loaded.append(type(self.model).from_pretrained(self.base, dtype=self.model.dtype).eval())
        return copy.deepcopy(self.loaded[0])

    def train(self, name: str, change: Callable[[PeftModel], None] | None = None, **settings: Any) -> str:
        """An adapter as PEFT writes it, with random values wherever training would have left any."""
        settings = {"r": 2, "lora_alpha": 4, **settings}
        with quiet():
            model = get_peft_model(self.fresh(), LoraConfig(**settings))
            randomise(model, seed=hash_of(name))
            if change is not None:
                change(model)
            model.save_pretrained(self.folder / name)
        self.made.append(name)
        return str(self.folder / name)

    def with_adapters(self, *folders: str, names: Sequence[str] = ("first", "second", "third")) -> PeftModel:
        """A fresh model with adapters loaded, all of them active."""
        with quiet():
            model = PeftModel.from_pretrained(self.fresh(), folders[0], adapter_name=names[0])
            for folder, name in zip(folders[1:], names[1:], strict=False):
                model.load_adapter(folder, adapter_name=name)
            model.base_model.set_adapter(list(names[: len(folders)]))
        return model.eval()

    def altered(self, folder: str, **changes: Any) -> str:
        """A copy of an adapter whose configuration says something else."""
        copied = self.folder / f"{Path(folder).name}-altered"
        shutil.copytree(folder, copied)
        config = copied / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
        return str(copied)

    def merge(self, *folders: str, **options: Any) -> samerge.MergedAdapter:
        """All of the folders into one, exactly unless the options say otherwise."""
        names = ("first", "second", "third")
        return samerge.merge(self.base, dict(zip(names, folders, strict=False)), **{**EXACT, **options})

    def reloaded(self, merged: samerge.MergedAdapter, name: str = "out") -> PeftModel:
        """The merged adapter, saved and loaded by PEFT on a fresh base."""
        return self.with_adapters(str(merged.save(self.folder / name, overwrite=True)))


def output(model: nn.Module) -> Tensor:
    """What a model says to a fixed input."""
    generator = torch.Generator().manual_seed(7)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad(), quiet():
        if isinstance(inner, Convolutions):
            return model(torch.randn(2, 100, generator=generator))
        if isinstance(inner, Attentive):
            return model(torch.randn(2, 5, 8, generator=generator))
        return model(input_ids=torch.randint(3, 32, (2, 7), generator=generator)).logits.float()


def snapshot(model: PeftModel, without: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that a merge on a live model shall leave alone: all but the adapters named."""

    def kept(name: str) -> bool:
        return not any(f".{adapter}." in f"{name}." for adapter in without)

    named = list(model.named_parameters())
    inner = model.get_base_model()
    return {
        "values": {name.replace(".base_layer.", "."): p.detach().clone() for name, p in named if kept(name)},
        "trained": {name.replace(".base_layer.", ".") for name, p in named if p.requires_grad and kept(name)},
        "active": (model.active_adapters, [m.active_adapters for m in inner.modules() if hasattr(m, "lora_A")][:1]),
        "random": torch.get_rng_state().tolist(),
        "training": model.training,
    }


def assert_untouched(before: dict[str, Any], model: PeftModel, *added: str) -> None:
    """Nothing but the adapters `added` has changed."""
    after = snapshot(model, added)
    assert before["values"].keys() == after["values"].keys()
    for name, value in before["values"].items():
        assert torch.equal(value, after["values"][name]), name
    for part in ("trained", "active", "random", "training"):
        assert before[part] == after[part], part


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within a share of the largest value: every output is a sum of all that went before, in some order."""
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * max(1.0, largest))


def randomise(model: nn.Module, seed: int, scale: float = 0.1) -> None:
    """Random values for everything of LoRA's; DoRA's magnitudes stay near what they are."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * scale
        if "magnitude" in name:
            parameter.data.mul_((1 + noise).to(parameter.dtype))
        elif "lora_" in name:
            parameter.data.copy_(noise)


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 10_000


class quiet(warnings.catch_warnings):  # noqa: N801 - it reads as a statement
    """PEFT and transformers warn about what these tests do on purpose."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        return found
