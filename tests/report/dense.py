"""What is in files that were written, as dense matrices in float64 by PEFT itself, and the figures by definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tiny import Beast
from torch import Tensor

Updates = dict[str, Tensor]


def updates(beast: Beast, folder: str | Path) -> Updates:
    """Every layer's update (out, in), by module."""
    model = PeftModel.from_pretrained(beast.model(), str(folder))
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            A, B = (one["default"].weight.double() for one in (module.lora_A, module.lora_B))
            found[name.removeprefix("base_model.model.")] = (B @ A * module.scaling["default"]).detach()
    return found


def interference(M: Tensor, tau: Tensor) -> float:
    """||(M - tau) V V^T|| / ||tau|| with V the right singular vectors of tau that exist."""
    _, s, vh = torch.linalg.svd(tau, full_matrices=False)
    V = vh[s > 1e-5 * s[0]].T
    return float(((M - tau) @ V @ V.T).norm() / tau.norm())


def cosine(M: Tensor, tau: Tensor) -> float:
    size = M.norm() * tau.norm()
    return float((M * tau).sum() / size) if size > 0 else 0.0


def flat(one: Mapping[str, Tensor], modules: list[str], like: Mapping[str, Tensor]) -> Tensor:
    """All layers one after the other; zeros where there is none."""
    return torch.cat([one.get(m, torch.zeros_like(like[m])).flatten() for m in modules])


def best_mean_cosine(adapters: Mapping[str, Updates], weights: Mapping[str, float], rank: int) -> float:
    """The largest mean cosine of any update of a rank with adapters, by truncating the mean of their directions."""
    modules = sorted({m for own in adapters.values() for m in own})
    sizes = {n: sum(float(tau.norm()) ** 2 for tau in own.values()) ** 0.5 for n, own in adapters.items()}
    total = 0.0
    for m in modules:
        T = sum(
            own[m] * (1 if weights[n] > 0 else -1) / sizes[n] / len(adapters) for n, own in adapters.items() if m in own
        )
        total += float(torch.linalg.svdvals(T)[:rank].square().sum())
    return total**0.5
