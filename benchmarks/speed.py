"""Processor seconds, seconds, peak memory and bytes read of a merge, from disk to disk, beside other ways to do it.

    python benchmarks/speed.py                                   # Llama-3.2-1B's shape, 8 adapters of rank 16
    python benchmarks/speed.py --layers 1 4 16 --sides samerge samerge:even     # how it grows with depth
    python benchmarks/speed.py --model minilm --runs 3           # a real model and its four trained adapters
    python benchmarks/speed.py --layers 1 --runs 3 --sides samerge:svd peft:svd samerge:ties peft:ties_svd
    python benchmarks/speed.py --model smollm2-135m --sides samerge:ties mergekit:ties --mergekit path/to/mergekit-yaml
    python benchmarks/speed.py --layers 1 --sides samerge:tsv fusion_bench:tsv --fusion-bench path/to/python

Every run is a process of its own with one thread; with --runs the sides take turns, and the least is kept, which other
work on the machine disturbs least. Weights of shapes are random: neither time nor memory depends on their values.
Results go to benchmarks/results/speed.json, a list of records; a record with the same settings replaces the older one.
docs/speed.md shows them, each peer beside samerge's method of the same name, and says what the floor is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tables
from memory import peak_mib
from models import Case, prepare
from records import replaced

RESULTS = tables.RESULTS / "speed.json"
DOC = tables.DOCS / "speed.md"
SETTINGS = ("side", "model", "adapters", "rank", "iterations")

#: What each peer is compared with: samerge's method that does the same.
PAIRS = {
    "naive": "samerge:paper",
    "peft:cat": "samerge:linear",
    "peft:svd": "samerge:svd",
    "peft:ties_svd": "samerge:ties",
    "mergekit:ties": "samerge:ties",
    "fusion_bench:tsv": "samerge:tsv",
}

#: The sides that score in iterations.
ITERATED = ("samerge", "samerge:paper", "naive")


def bytes_read() -> int | None:
    """Bytes that this process has read from files so far, whether these were in memory or not; Linux only."""
    counters = Path("/proc/self/io")
    return int(counters.read_text().split("rchar: ")[1].split()[0]) if counters.exists() else None


def measure_samerge(case: Case, folder: Path, iterations: int, method: str) -> dict[str, Any]:
    """One merge in this process, from files to files, and the floor of it."""
    import warnings

    import samerge

    samerge.merge, samerge.__version__  # noqa: B018  # imports what a merge needs; not what is measured
    reads = method in ("saliency", "paper")
    options = {"iterations": iterations} if reads else {}
    before, start, cpu = bytes_read(), time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = case.base if reads else None
        merged = samerge.merge(base, list(case.adapters), method=method, progress=False, **options)
    merged.save(folder / "merged", overwrite=True)
    seconds, cpu, after = time.perf_counter() - start, time.process_time() - cpu, bytes_read()
    peak = peak_mib()
    record = merged.report.record
    known = method in ("saliency", "even")
    parts = least_possible(case, iterations if method == "saliency" else 0) if known else {}
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_rss_mib": peak,
        "read_mib": None if before is None or after is None else round((after - before) / 2**20),
        "timings": record.timings,
        "adapters_mib": round(sum((a / "adapter_model.safetensors").stat().st_size for a in case.adapters) / 2**20),
        "base_mib": round(sum(f.stat().st_size for f in case.base.glob("*.safetensors")) / 2**20),
        "kernel": record.kernel,
        **({"floor": {part: round(value, 3) for part, value in parts.items()}} if known else {}),
        **({"ratio_to_floor": round(cpu / sum(parts.values()), 2)} if known else {}),
    }


def least_possible(case: Case, rounds: int) -> dict[str, float]:
    """The parts of the floor, in processor seconds; see floor.py."""
    import floor
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weights, stored = case.graph_size()
    count, shapes = len(case.adapters), case.shapes()
    ranks = floor.ranks_by_round(case.rank, case.rank / count, rounds) if rounds else []
    found = {
        "sweeps": floor.sweeps(weights, stored, count, ranks),
        "reading": floor.reading(folder / "adapter_model.safetensors" for folder in case.adapters),
        "factors": floor.factors(shapes, count, case.rank),
        "stacks": floor.stacks(shapes, count * case.rank),
    }
    torch.set_num_threads(threads)
    return found


def measure(side: str, case: Case, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One run of one side."""
    if side.startswith("samerge"):
        return measure_samerge(case, folder, given.iterations, side.partition(":")[2] or "saliency")
    import sides

    adapters, (who, _, what) = list(case.adapters), side.partition(":")
    if who == "naive":
        return {**sides.naive(case.base, adapters, given.iterations), "peak_rss_mib": peak_mib()}
    if who == "mergekit":
        experts = [sides.applied(case.base, adapter, folder / "applied") for adapter in adapters]
        return sides.mergekit_ties(case.base, experts, folder, given.mergekit)
    if who == "fusion_bench":
        return sides.fusion_bench(adapters, what, given.fusion_bench)
    return {**sides.peft(case.base, adapters, what), "peak_rss_mib": peak_mib()}


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of the fewest processor seconds; the largest peak; the processor seconds of all."""
    best = min(runs, key=lambda run: run.get("cpu_seconds", 0.0))
    for key in ("seconds", "cpu_seconds"):
        best |= {key: round(best[key], 3)} if key in best else {}
    if "peak_rss_mib" in best:
        best["peak_rss_mib"] = max(run["peak_rss_mib"] for run in runs)
    if len(runs) > 1:
        best["cpu_seconds_of_runs"] = [round(run["cpu_seconds"], 3) for run in runs]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-1b", help="a shape, or a real model: minilm, a suite's name")
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="depths, instead of the shape's own")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1, help="of every side, in turn")
    parser.add_argument("--folder", help="where to keep the weights; a temporary folder by default")
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["samerge"],
        help="samerge (method saliency), samerge:METHOD, naive, peft:cat, ..., mergekit:ties, fusion_bench:tsv",
    )
    parser.add_argument("--mergekit", help="the program mergekit-yaml, in an environment of its own")
    parser.add_argument("--fusion-bench", help="a Python that has FusionBench, in an environment of its own")
    parser.add_argument("--render", action="store_true", help="only write the table of docs/speed.md anew")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of torch, which is imported later, and of all children
    if given.render:
        tables.write(DOC, "speed.py", table(json.loads(RESULTS.read_text())))
    elif given.child:
        case = prepare(Path(given.folder), given.model, given.layers[0] if given.layers else None, given.adapters)
        print("RECORD " + json.dumps(measure(given.sides[0], case, Path(given.folder), given)))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            for layers in given.layers or [None]:
                run_sides(given, given.folder or temporary, layers)


def run_sides(given: argparse.Namespace, folder: str, layers: int | None) -> None:
    """All sides on one case, taking turns."""
    case = prepare(Path(folder), given.model, layers, given.adapters)
    command = [sys.executable, __file__, "--child", "--folder", folder, "--model", given.model]
    command += ["--adapters", str(given.adapters), "--iterations", str(given.iterations)]
    command += ["--layers", *([str(layers)] if layers else [])]
    command += ["--mergekit", given.mergekit] if given.mergekit else []
    command += ["--fusion-bench", given.fusion_bench] if given.fusion_bench else []
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in given.sides}
    for _ in range(given.runs):
        for side in given.sides:
            words = [*command, "--sides", side]
            run = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
            found[side].append(json.loads(run.stdout.split("RECORD ", 1)[1]))
            print(side, json.dumps(found[side][-1]), flush=True)
    for side, runs in found.items():
        keep(
            {
                "side": side,
                "model": case.name,
                "adapters": len(case.adapters),
                "rank": case.rank,
                "iterations": given.iterations if side in ITERATED else None,
                "runs": given.runs,
                **summed_up(runs),
                **machine(),
            }
        )


def machine() -> dict[str, Any]:
    """Where it was measured, and with what."""
    import numpy
    import torch

    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
    }


def keep(record: dict[str, Any]) -> None:
    """Put a record into the results, in place of one with the same settings."""
    RESULTS.parent.mkdir(exist_ok=True)
    records = replaced(RESULTS, record, SETTINGS)
    records.sort(key=lambda item: [str(item[key]) for key in ("model", "adapters", "iterations", "side")])
    RESULTS.write_text(json.dumps(records, indent=2) + "\n")
    tables.write(DOC, "speed.py", table(records))


def table(records: list[dict[str, Any]]) -> str:
    """The results as docs/speed.md shows them."""
    header = ["model", "adapters", "merge", "iterations", "processor s", "s", "peak memory, MiB", "times the floor"]
    keys = ["model", "adapters", "side", "iterations", "cpu_seconds", "seconds", "peak_rss_mib", "ratio_to_floor"]
    cells = []
    for item in records:
        own = [*(item.get(key) for key in keys), beside(item, records)]
        cells.append(["" if one is None else f"{one:.2f}" if isinstance(one, float) else str(one) for one in own])
    return f"{tables.rows([*header, 'times samerge'], cells)}\n\n{tables.origin(records[-1])}"


def beside(peer: dict[str, Any], records: list[dict[str, Any]]) -> float | None:
    """A peer's processor seconds over those of samerge's method on the same adapters."""
    alike = ("model", "adapters", "rank", "iterations")
    for ours in records:
        if ours["side"] == PAIRS.get(peer["side"]) and all(ours[key] == peer[key] for key in alike):
            ratio: float = peer["cpu_seconds"] / ours["cpu_seconds"]
            return ratio
    return None


if __name__ == "__main__":
    main()
