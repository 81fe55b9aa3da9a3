"""Models of real shapes with random weights, and adapters for them, written to disk as real files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shape:
    """A Llama's shape."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def projections(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear projection of a block."""
        kv = self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def config(self) -> dict[str, Any]:
        """What `config.json` says of the shape."""
        return {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
        }


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-tiny", 256, 512, 4, 4, 2, 1000),
        Shape("smollm2-135m", 576, 1536, 30, 9, 3, 49152),
        Shape("llama-1b", 2048, 8192, 16, 32, 8, 128256),
        Shape("llama-8b", 4096, 14336, 32, 32, 8, 128256),
    )
}


def write_base(shape: Shape, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random base model of a shape, one shard a layer; kept when it is there already."""
    target = folder / f"base-{shape.name}"
    if (target / "model.safetensors.index.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}

    def write(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, target / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, file))

    def draw(*size: int) -> torch.Tensor:
        return (torch.randn(*size, generator=generator) * 0.02).to(dtype)

    write("model-embed.safetensors", {"model.embed_tokens.weight": draw(shape.vocabulary, shape.hidden)})
    for layer in range(shape.layers):
        stem = f"model.layers.{layer}"
        tensors = {f"{stem}.{name}.weight": draw(*size) for name, size in shape.projections().items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{stem}.{norm}.weight"] = torch.ones(shape.hidden, dtype=dtype)
        write(f"model-{layer:03d}.safetensors", tensors)
    write("model-norm.safetensors", {"model.norm.weight": torch.ones(shape.hidden, dtype=dtype)})
    (target / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"],
                **shape.config(),
                "tie_word_embeddings": True,
                "torch_dtype": str(dtype).removeprefix("torch."),
            }
        )
    )
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return target


def write_adapter(
    shape: Shape, folder: Path, number: int, base: Path, rank: int = 16, dtype: torch.dtype = torch.float32
) -> Path:
    """A random adapter on all linear layers; kept when it is there already."""
    target = folder / f"adapter-{shape.name}-r{rank}-{number:03d}"
    if (target / "adapter_model.safetensors").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(number + 1)
    tensors = {}
    for layer in range(shape.layers):
        for name, (out, into) in shape.projections().items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{stem}.lora_A.weight"] = (torch.randn(rank, into, generator=generator) / into**0.5).to(dtype)
            tensors[f"{stem}.lora_B.weight"] = (torch.randn(out, rank, generator=generator) * 0.02).to(dtype)
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    (target / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": str(base),
                "r": rank,
                "lora_alpha": 2 * rank,
                "target_modules": sorted({name.rsplit(".", 1)[-1] for name in shape.projections()}),
            }
        )
    )
    return target
