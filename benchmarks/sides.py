"""What samerge is measured against: its method written naively, and the merges of PEFT, mergekit and FusionBench."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def clocks() -> tuple[float, float]:
    """The clock, and the processor seconds of this process."""
    return time.perf_counter(), time.process_time()


def taken(start: tuple[float, float]) -> dict[str, float]:
    """Seconds since `clocks` was called."""
    seconds, cpu = clocks()
    return {"seconds": seconds - start[0], "cpu_seconds": cpu - start[1]}


def naive(base: Path, adapters: list[Path], iterations: int, rank: int = 16) -> dict[str, float]:
    """Algorithm 2 as one would first write it: dense updates, autograd through |W|, native components.

    Residual edges and all, over the same graph; of each expert, the best `rank / N` components of every layer stay.
    """
    from samerge.graph import Gather, build_graph
    from samerge.graph.widths import stream_widths
    from samerge.weights import FolderSource

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
    start = clocks()
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
    return taken(start)


def peft(base: Path, adapters: list[Path], combination: str) -> dict[str, float]:
    """PEFT's `add_weighted_adapter` on a loaded model, loading not counted."""
    from peft import PeftModel
    from transformers import AutoModel, AutoModelForCausalLM

    config = json.loads((base / "config.json").read_text())
    kind = AutoModelForCausalLM if "CausalLM" in str(config["architectures"]) else AutoModel
    model = kind.from_pretrained(base, dtype=torch.float32)
    wrapped = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
    for number, folder in enumerate(adapters[1:], start=1):
        wrapped.load_adapter(folder, str(number))
    names = [str(number) for number in range(len(adapters))]
    options = {"density": 0.2} if "ties" in combination else {}
    start = clocks()
    wrapped.add_weighted_adapter(names, [1.0] * len(names), "merged", combination_type=combination, **options)
    return taken(start)


def fusion_bench(adapters: list[Path], method: str, python: str) -> dict[str, Any]:
    """FusionBench's merge of the adapters' dense updates, in its own environment, reading not counted."""
    script = Path(__file__).with_name("fusion_bench_side.py")
    run = subprocess.run([python, str(script), method, *map(str, adapters)], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return found


def applied(base: Path, adapter: Path, folder: Path) -> Path:
    """The base with an adapter put into its weights, written as a model; kept when it is there already."""
    target = folder / f"{base.name}-{adapter.name}"
    if (target / "config.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    state = load_file(adapter / "adapter_model.safetensors")
    for file in sorted(base.glob("*.safetensors")):
        tensors = load_file(file)
        for name, weight in tensors.items():
            stem = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            if f"{stem}A.weight" in state:
                update = state[f"{stem}B.weight"].float() @ state[f"{stem}A.weight"].float()
                tensors[name] = (weight.float() + config["lora_alpha"] / config["r"] * update).to(weight.dtype)
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    for file in base.glob("*.index.json"):
        shutil.copy(file, target)
    shutil.copy(base / "config.json", target)
    return target


def mergekit_ties(base: Path, experts: list[Path], folder: Path, program: str, density: float = 0.2) -> dict[str, Any]:
    """mergekit's TIES of full models, lazily loaded, on the CPU, with its own way of writing; or why it failed."""
    models = "".join(
        f"  - model: {expert}\n    parameters:\n      density: {density}\n      weight: 1.0\n" for expert in experts
    )
    dtype = json.loads((base / "config.json").read_text()).get("torch_dtype") or "float32"
    (folder / "ties.yaml").write_text(f"merge_method: ties\nbase_model: {base}\ndtype: {dtype}\nmodels:\n{models}")
    shutil.rmtree(folder / "merged-mergekit", ignore_errors=True)
    words = [program, str(folder / "ties.yaml"), str(folder / "merged-mergekit"), "--lazy-unpickle"]
    start = time.perf_counter()
    with open(folder / "mergekit.log", "w") as log:
        child = subprocess.Popen([*words, "--no-copy-tokenizer"], stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        return {"error": ((folder / "mergekit.log").read_text().strip().splitlines() or ["?"])[-1][:300]}
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_mib": round(usage.ru_maxrss / 1024),
        "note": "with its imports, some ten seconds; one pass, no iterations",
    }
