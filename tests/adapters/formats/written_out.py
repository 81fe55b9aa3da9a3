"""Adapters in other formats made here, and their updates by the formats' own formulas, written out: the oracle.

Nothing of samerge is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
FC = "lora_te_text_model_encoder_layers_0_mlp_fc1"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def kohya(folder: Path, name: str, rank: int = 4, alpha: float | None = 2.0, seed: int = 0, **metadata: str) -> str:
    """A file with a linear layer, a text encoder's, and a convolution of another rank."""
    tensors: dict[str, Tensor] = {}
    for number, (module, out, into) in enumerate(((Q, 10, 12), (FC, 14, 8))):
        tensors[f"{module}.lora_down.weight"] = random(rank, into, seed=seed + number)
        tensors[f"{module}.lora_up.weight"] = random(out, rank, seed=seed + 10 + number)
    tensors[f"{CONV}.lora_down.weight"] = random(2, 6, 3, 3, seed=seed + 20)
    tensors[f"{CONV}.lora_up.weight"] = random(5, 2, 1, 1, seed=seed + 30)
    if alpha is not None:
        tensors |= {f"{module}.alpha": torch.tensor(alpha) for module in (Q, FC, CONV)}
    return write(folder, name, tensors, **metadata)


def write(folder: Path, name: str, tensors: Mapping[str, Tensor], **metadata: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata or None)
    return str(path)


def kohya_deltas(path: str | Path) -> dict[str, Tensor]:
    """What ComfyUI and sd-scripts add to each weight: (alpha / r) up @ down, flattened to two dimensions."""
    tensors = {key: tensor.double() for key, tensor in load_file(path).items()}
    found = {}
    for key, down in tensors.items():
        for low, high in ((".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")):
            if not key.endswith(low):
                continue
            module = key.removesuffix(low)
            up = tensors[module + high]
            rank = down.shape[0]
            scale = tensors[f"{module}.alpha"].item() / rank if f"{module}.alpha" in tensors else 1.0
            mid = tensors.get(f"{module}.lora_mid.weight")
            if mid is None:
                delta = up.flatten(1) @ down.flatten(1)
            else:
                delta = torch.einsum("oa,abkl,bi->oikl", up.flatten(1), mid, down.flatten(1)).flatten(1)
            found[module] = scale * delta
    return found


def metadata_of(path: str | Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def configuration(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal to 1e-6 of the largest entry, and the same modules."""
    assert sorted(found) == sorted(expected)
    for module, delta in expected.items():
        one, other = found[module].double().flatten(1), delta.double().flatten(1)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(other.abs().max()), msg=f"{module} differs")


def deltas(adapter: Any) -> dict[str, Tensor]:
    """The dense updates of an adapter that samerge has read, two-dimensional, (out, in)."""
    return {module: one.load().to(dtype=torch.float64).delta() for module, one in adapter.modules.items()}
