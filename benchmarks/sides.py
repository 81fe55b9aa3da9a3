"""What samerge is measured against: the method written naively with autograd, and PEFT's own merges."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from safetensors.torch import load_file


def naive(base: Path, adapters: list[Path], iterations: int, rank: int = 16) -> float:
    """Seconds of Algorithm 2 as one would first write it: dense updates, autograd through |W|, native components.

    Residual edges and all, over the same graph; of each expert, the best `rank / N` components of every layer stay.
    """
    from samerge.checkpoints import FolderSource
    from samerge.graph import Gather, build_graph
    from samerge.graph.widths import stream_widths

    source = FolderSource(base)
    graph = build_graph(source.config, source.shapes)
    widths = stream_widths(graph, source.shapes)
    theta = {name: source.read(name, 0, source.shapes[name][0]).float() for name in graph.tensors}
    experts = []
    for folder in adapters:
        state = load_file(folder / "adapter_model.safetensors")
        stem = "base_model.model.{}.lora_{}.weight"
        experts.append(
            {
                name: [2.0 * state[stem.format(name[:-7], "B")], state[stem.format(name[:-7], "A")]]
                for name in graph.tensors
            }
        )
    start = time.perf_counter()
    keep = max(1, rank // len(experts))
    for step in range(1, iterations + 1):
        merged = {name: sum(e[name][0] @ e[name][1] for e in experts) for name in graph.tensors}
        count = max(keep, round(rank * (keep / rank) ** (step / iterations)))
        chosen = []
        for expert in experts:
            weights = {name: (theta[name] + b @ a).requires_grad_() for name, (b, a) in expert.items()}
            streams = {name: torch.ones(widths[name]) for name in graph.inputs}
            for name in graph.streams:
                if name in streams:
                    continue
                parts = []
                for edge in graph.incoming[name]:
                    before = streams[edge.source]
                    if isinstance(edge, Gather):
                        parts.append(before if edge.index is None else before[torch.from_numpy(edge.index)])
                    else:
                        parts.append(weights[edge.tensor].abs() @ before)
                total = sum(parts)
                streams[name] = total / total.mean().detach()  # scaled, or it would overflow
            sum(streams[name].sum() for name in graph.outputs).backward()
            picks = {}
            for name, (b, a) in expert.items():
                gamma = torch.einsum("ik,ij,kj->k", b, weights[name].grad, a)
                eta = torch.einsum("ik,ij,kj->k", b, merged[name], a)
                picks[name] = (gamma * eta).abs().topk(min(count, len(gamma))).indices
            chosen.append(picks)
        for expert, picks in zip(experts, chosen, strict=True):
            for name, (b, a) in expert.items():
                expert[name] = [b[:, picks[name]], a[picks[name]]]
    return time.perf_counter() - start


def peft(base: Path, adapters: list[Path], combination: str) -> float:
    """Seconds of PEFT's `add_weighted_adapter` on a loaded model, loading not counted."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
    for number, folder in enumerate(adapters[1:], start=1):
        wrapped.load_adapter(folder, str(number))
    names = [str(number) for number in range(len(adapters))]
    options = {"density": 0.2} if "ties" in combination else {}
    start = time.perf_counter()
    wrapped.add_weighted_adapter(names, [1.0] * len(names), "merged", combination_type=combination, **options)
    return time.perf_counter() - start
