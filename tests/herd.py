"""Tiny checkpoints fine-tuned from one base, written to disk; and the element-wise merge, dense and obvious."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import oracles
import torch
import transformers
from safetensors.torch import load_file
from tiny import SPECIES
from torch import Tensor

NAMES = ("math", "code", "talk")


@dataclass(frozen=True)
class Herd:
    """A base and three checkpoints of it."""

    family: str
    base: Path
    experts: dict[str, str]

    def weights(self) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """All tensors of the base, and of each expert."""
        return read(self.base), [read(Path(folder)) for folder in self.experts.values()]

    def model(self, folder: str | Path) -> torch.nn.Module:
        return getattr(transformers, model_class(self.family)).from_pretrained(folder).eval()


def read(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def model_class(family: str) -> str:
    return "AlbertModel" if family == "albert" else SPECIES[family].model


def make_herd(family: str, folder: Path, dtype: torch.dtype = torch.float64, strength: float = 0.1) -> Herd:
    """Three checkpoints, each the base plus noise of its own."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(7)
    if family == "albert":
        config = transformers.AlbertConfig(
            vocab_size=40,
            embedding_size=12,
            hidden_size=16,
            intermediate_size=20,
            num_hidden_layers=3,
            num_attention_heads=2,
        )
    else:
        config = getattr(transformers, SPECIES[family].config)(**SPECIES[family].settings)
    model = getattr(transformers, model_class(family))(config).to(dtype)
    model.save_pretrained(folder / "base")
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(start[key] + (strength * noise).to(dtype))
        model.save_pretrained(folder / name)
    return Herd(family, folder / "base", {name: str(folder / name) for name in NAMES})


def schedule(elements: int, density: float, step: int, steps: int) -> int:
    return max(1, round(elements * density ** (step / steps)))


def dense_elementwise(
    graph,
    base: Mapping[str, Tensor],
    experts: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    density: float,
    iterations: int,
    task: bool = False,
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """The element-wise merge by autograd of R: every expert's masks, and the merged update of every weight."""
    strength = oracles.graph_network(graph)
    names = graph.tensors
    tau = [{name: expert[name].double() - base[name].double() for name in names} for expert in experts]
    masks = [{name: torch.ones_like(vector[name], dtype=torch.bool) for name in names} for vector in tau]

    def merged(name: str) -> Tensor:
        return sum(w * (m[name] * v[name]) for w, m, v in zip(weights, masks, tau, strict=True))

    for step in range(1, iterations + 1):
        aggregate = {name: merged(name) for name in names}
        after = []
        for w, mask, vector in zip(weights, masks, tau, strict=True):
            own = {name: mask[name] * vector[name] for name in names}
            leaves = {name: (base[name].double() + own[name]).requires_grad_() for name in names}
            gradients = torch.autograd.grad(strength(leaves), list(leaves.values()))
            new = {}
            for name, gradient in zip(leaves, gradients, strict=True):
                saliency = gradient.abs() * w * own[name] * aggregate[name] if task else gradient * aggregate[name]
                saliency = saliency.masked_fill(~mask[name], -torch.inf).flatten()
                keep = torch.sort(saliency, descending=True, stable=True).indices
                kept = torch.zeros_like(saliency, dtype=torch.bool)
                kept[keep[: schedule(len(saliency), density, step, iterations)]] = True
                new[name] = kept.view_as(mask[name])
            after.append(new)
        masks = after
    return masks, {name: merged(name) for name in names}
