"""Tiny random models and adapters, written to disk: two layers, width 16 to 32, every B non-zero."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor

_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
_SIZES = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class Species:
    """How to make one family: the model class, its configuration, and what each of three adapters targets."""

    model: str
    config: str
    settings: Mapping[str, Any] = field(repr=False)
    targets: tuple[list[str], list[str], list[str]]
    fan_in_fan_out: bool = False


SPECIES: dict[str, Species] = {
    "llama": Species(
        "LlamaForCausalLM",
        "LlamaConfig",
        _SIZES | _TOKENS | {"vocab_size": 40, "num_key_value_heads": 2},
        (["q_proj", "v_proj"], ["q_proj", "k_proj", "o_proj", "down_proj"], ["gate_proj", "up_proj", "q_proj"]),
    ),
    "gpt2": Species(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 24, "vocab_size": 40} | _TOKENS,
        (["c_attn"], ["c_attn", "mlp.c_proj"], ["attn.c_proj", "c_fc"]),
        fan_in_fan_out=True,
    ),
    "bert": Species(
        "BertForSequenceClassification",
        "BertConfig",
        _SIZES | _TOKENS | {"vocab_size": 40, "num_labels": 3},
        (
            ["query", "value"],
            ["query", "key", "attention.output.dense"],
            ["intermediate.dense", "query", "pooler.dense"],
        ),
    ),
    "t5": Species(
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
        | {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
        (["q", "v"], ["q", "v"], ["q", "v", "wo"]),
    ),
    "vit": Species(
        "ViTForImageClassification",
        "ViTConfig",
        _SIZES | {"image_size": 8, "patch_size": 4, "num_labels": 3, "initializer_range": 0.3},
        (["q_proj", "v_proj"], ["q_proj", "k_proj"], ["fc1", "fc2", "q_proj"]),
    ),
}
NAMES = ("math", "code", "talk")


@dataclass(frozen=True)
class Beast:
    """One base model on disk and its adapters: ranks 8, 8 (rsLoRA) and 20 (rank and alpha patterns)."""

    species: Species
    folder: Path
    adapters: dict[str, str]

    @property
    def base(self) -> str:
        return str(self.folder)

    def model(self) -> transformers.PreTrainedModel:
        """The base as it is loaded from its folder."""
        return copy.deepcopy(_model(self.species.model, self.folder))

    def peft_model(self) -> PeftModel:
        """All adapters loaded, the first one active."""
        return copy.deepcopy(_peft_model(self.species.model, self.folder, tuple(self.adapters.items())))

    def logits(self, model: torch.nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            if "ViT" in self.species.model:
                return model(pixel_values=torch.randn(2, 3, 8, 8, generator=generator)).logits
            ids = torch.randint(3, 40, (2, 7), generator=generator)
            more = {"decoder_input_ids": ids.flip(1)} if "T5" in self.species.model else {}
            return model(input_ids=ids, **more).logits


@cache
def _model(kind: str, folder: Path) -> transformers.PreTrainedModel:
    return getattr(transformers, kind).from_pretrained(folder).eval()


@cache
def _peft_model(kind: str, folder: Path, adapters: tuple[tuple[str, str], ...]) -> PeftModel:
    (name, path), *others = adapters
    model = PeftModel.from_pretrained(copy.deepcopy(_model(kind, folder)), path, adapter_name=name)
    for name, path in others:
        model.load_adapter(path, adapter_name=name)
    return model.eval()


def make(name: str, folder: Path) -> Beast:
    """Build, randomise and save a base model and its adapters."""
    transformers.utils.logging.disable_progress_bar()
    species = SPECIES[name]
    torch.manual_seed(len(name))
    config = getattr(transformers, species.config)(**species.settings)
    getattr(transformers, species.model)(config).save_pretrained(folder / "base")
    beast = Beast(species, folder / "base", {n: str(folder / n) for n in NAMES})
    model = get_peft_model(beast.model(), lora(species, 0), adapter_name=NAMES[0])
    for number, adapter in enumerate(NAMES[1:], start=1):
        model.add_adapter(adapter, lora(species, number))
    randomise(model)
    model.save_pretrained(folder)
    return beast


def lora(species: Species, number: int) -> LoraConfig:
    """The three adapters' configurations: plain, rsLoRA, and patterns."""
    targets = species.targets[number]
    variant: dict[str, Any] = (
        {"r": 8, "lora_alpha": 16},
        {"r": 8, "lora_alpha": 6, "use_rslora": True, "alpha_pattern": {targets[0]: 4}},
        {"r": 20, "lora_alpha": 20, "rank_pattern": {targets[-1]: 6}, "alpha_pattern": {targets[0]: 30}},
    )[number]
    return LoraConfig(target_modules=targets, fan_in_fan_out=species.fan_in_fan_out, **variant)


def randomise(model: PeftModel, seed: int = 3) -> None:
    """Give every LoRA factor random values; PEFT starts B at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def write_base(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> str:
    """A base of any shape: a config.json and one safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def write_adapter(folder: Path, factors: Mapping[str, tuple[Tensor, Tensor]], alpha: float | None = None, **more: Any):
    """An adapter in PEFT's format from (A, B) by module; alpha = r unless given. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {module: A.shape[0] for module, (A, _) in factors.items()}
    rank = max(ranks.values())
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank if alpha is None else alpha}
    pattern = {module: r for module, r in ranks.items() if r != rank}
    if pattern:
        config |= {"rank_pattern": pattern, "alpha_pattern": dict(pattern) if alpha is None else {}}
    config |= {"target_modules": sorted(factors), "base_model_name_or_path": None} | more
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for module, (A, B) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = A.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = B.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def words(folder: Path, count: int = 40) -> None:
    """A tokenizer beside a tiny model: one word, w3, for each number."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=own, unk_token="w0").save_pretrained(folder)


def chain(widths: list[int], seed: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    """Weights of a plain chain, `layers.<i>.weight` (widths[i+1], widths[i])."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"layers.{i}.weight": scale * torch.randn(widths[i + 1], widths[i], generator=generator)
        for i in range(len(widths) - 1)
    }


def chain_factors(
    weights: Mapping[str, Tensor], rank: int, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, tuple[Tensor, Tensor]]:
    """Random (A, B) for every weight, by module."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name.removesuffix(".weight"): (
            torch.randn(rank, weight.shape[1], generator=generator, dtype=dtype),
            torch.randn(weight.shape[0], rank, generator=generator, dtype=dtype) * 0.3,
        )
        for name, weight in weights.items()
    }
