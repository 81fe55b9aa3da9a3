"""Seconds and peak memory of a merge at real shapes, from disk to disk, each in a process of its own.

    python benchmarks/speed.py                      # Llama-3.2-1B's shape, 8 adapters of rank 16
    python benchmarks/speed.py --layers 8 16 32     # how memory grows with depth
    python benchmarks/speed.py --layers 1 --iterations 2 --sides samerge naive peft:cat peft:svd peft:ties_svd

Weights are random: neither time nor memory depends on their values. Results go to benchmarks/results/speed.json, a list
of records; a record with the same settings replaces the older one. The floor is what the thin matrix products of the
sweeps alone would take at the rate that this machine reaches on them in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from memory import peak_mib

RESULTS = Path(__file__).parent / "results" / "speed.json"
DOC = Path(__file__).parent.parent / "docs" / "speed.md"
BEGIN, END = "<!-- table: benchmarks/speed.py -->", "<!-- end of table -->"


def floor_seconds(weights: int, experts: int, iterations: int, rank: int, final: int) -> float:
    """Seconds of the thin products and matrix-vector products alone, at the rate measured here and now.

    Each weight, expert and iteration takes two rank-r updates, one product with the signs and two matrix-vector
    products; r falls from `rank` to `final` over the iterations as components are pruned.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    m, d = 64, 2048
    left, right, columns = torch.randn(m, rank), torch.randn(rank, d), torch.randn(d, rank)
    weight, flow = torch.randn(m, d), torch.rand(d)
    out = torch.empty(m, d)

    def products(r: int) -> float:
        times = []
        for _ in range(15):
            start = time.thread_time()
            for _ in range(20):
                torch.mm(left[:, :r], right[:r], out=out)
                torch.mm(left[:, :r], right[:r], out=out)
                torch.mm(weight, columns[:, :r])
                torch.mv(weight, flow)
                torch.mv(weight, flow)
            times.append((time.thread_time() - start) / 20)
        return sorted(times)[len(times) // 2] / (m * d)

    ranks = [max(1, round(rank * (final / rank) ** (t / iterations))) for t in range(iterations)]
    seconds = sum(products(r) for r in ranks) * weights * experts
    torch.set_num_threads(threads)
    return seconds / threads


def prepare(folder: str, shape_name: str, layers: int | None, count: int) -> tuple[Any, Path, list[Path]]:
    """The shape, its base model and its adapters on disk."""
    from shapes import SHAPES, write_adapter, write_base

    shape = SHAPES[shape_name]
    if layers:
        shape = dataclasses.replace(shape, name=f"{shape.name}-{layers}", layers=layers)
    base = write_base(shape, Path(folder))
    return shape, base, [write_adapter(shape, Path(folder), i, base) for i in range(count)]


def measure_other(side: str, folder: str, shape_name: str, layers: int | None, count: int, iterations: int) -> Any:
    """One run of what samerge is measured against."""
    import numpy
    import torch
    from sides import naive, peft

    shape, base, adapters = prepare(folder, shape_name, layers, count)
    seconds = naive(base, adapters, iterations) if side == "naive" else peft(base, adapters, side.split(":")[1])
    return {
        "side": side,
        "shape": shape.name,
        "layers": shape.layers,
        "adapters": count,
        "rank": 16,
        "iterations": iterations,
        "seconds": round(seconds, 2),
        "peak_rss_mib": peak_mib(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
    }


def measure(folder: str, shape_name: str, layers: int | None, count: int, iterations: int) -> dict[str, Any]:
    """One merge in this process: seconds by stage, peak resident memory, and the floor."""
    import warnings

    import numpy
    import torch

    import samerge

    shape, base, adapters = prepare(folder, shape_name, layers, count)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = samerge.merge(base, adapters, iterations=iterations, progress=False)
    merged.save(Path(folder) / "merged", overwrite=True)
    seconds = time.perf_counter() - start
    peak = peak_mib()
    weights = sum(a * b for a, b in shape.projections().values()) * shape.layers
    scoring = merged.report.record["timings"]["scoring"]
    floor = floor_seconds(weights, count, iterations, 16, max(1, 16 // count))
    return {
        "side": "samerge",
        "shape": shape.name,
        "layers": shape.layers,
        "weights_in_graph": weights,
        "adapters": count,
        "rank": 16,
        "iterations": iterations,
        "seconds": round(seconds, 2),
        "timings": merged.report.record["timings"],
        "peak_rss_mib": peak,
        "adapters_mib": round(sum((a / "adapter_model.safetensors").stat().st_size for a in adapters) / 2**20),
        "base_mib": round(sum(f.stat().st_size for f in base.glob("*.safetensors")) / 2**20),
        "floor_seconds": round(floor, 2),
        "ratio_to_floor": round(scoring / floor, 2),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-1b")
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="depths, instead of the shape's own")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--folder", help="where to keep the weights; a temporary folder by default")
    parser.add_argument("--sides", nargs="+", default=["samerge"], help="samerge, naive, peft:cat, peft:svd, ...")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        settings = (given.folder, given.shape, given.layers[0] if given.layers else None, given.adapters)
        side = given.sides[0]
        own = side == "samerge"
        record = measure(*settings, given.iterations) if own else measure_other(side, *settings, given.iterations)
        print("RECORD " + json.dumps(record))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or temporary
        for layers in given.layers or [None]:
            prepare(folder, given.shape, layers, given.adapters)
            for side in given.sides:
                command = [sys.executable, __file__, "--child", "--sides", side, "--folder", folder]
                command += ["--shape", given.shape, "--adapters", str(given.adapters)]
                command += ["--iterations", str(given.iterations), "--layers", *([str(layers)] if layers else [])]
                run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                record = json.loads(run.stdout.split("RECORD ", 1)[1])
                print(json.dumps(record, indent=2), flush=True)
                keep(record)


def keep(record: dict[str, Any]) -> None:
    """Put a record into the results, in place of one with the same settings."""
    RESULTS.parent.mkdir(exist_ok=True)
    records = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    settings = ("side", "shape", "adapters", "rank", "iterations")
    records = [old for old in records if any(old[key] != record[key] for key in settings)] + [record]
    records.sort(key=lambda item: [str(item[key]) for key in settings])
    RESULTS.write_text(json.dumps(records, indent=2) + "\n")
    render(records)


def render(records: list[dict[str, Any]]) -> None:
    """The results as the table of docs/speed.md."""
    rows = [
        "| merge | shape | adapters | iterations | seconds | peak memory, MiB "
        "| adapters, MiB | base, MiB | scoring / floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for item in records:
        cells = [item[key] for key in ("side", "shape", "adapters", "iterations", "seconds", "peak_rss_mib")]
        cells += [item.get(key, "") for key in ("adapters_mib", "base_mib", "ratio_to_floor")]
        if item["side"].startswith("peft"):
            cells[3] = ""
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    versions = records[-1]["versions"]
    machine = f"{records[-1]['machine']}; " + ", ".join(f"{name} {version}" for name, version in versions.items())
    before, rest = DOC.read_text(encoding="utf-8").split(BEGIN)
    table = "\n".join(rows)
    DOC.write_text(f"{before}{BEGIN}\n{table}\n\n{machine}.\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
