"""Seconds, peak memory and bytes read of a merge, from disk to disk, beside other ways to do it.

    python benchmarks/speed.py                                   # Llama-3.2-1B's shape, 8 adapters of rank 16
    python benchmarks/speed.py --layers 8 16 32                  # how memory grows with depth
    python benchmarks/speed.py --model llama-8b --iterations 1   # some 18 GB of files
    python benchmarks/speed.py --model minilm --runs 3           # the real model and its trained adapters
    python benchmarks/speed.py --layers 1 --iterations 2 --runs 3 --sides samerge naive peft:cat peft:svd peft:ties_svd
    python benchmarks/speed.py --model smollm2-135m --sides samerge mergekit:ties --mergekit path/to/mergekit-yaml

Every run is a process of its own; with --runs the sides take turns, and medians are kept. Weights of shapes are random:
neither time nor memory depends on their values. Results go to benchmarks/results/speed.json, a list of records; a
record with the same settings replaces the older one. docs/speed.md shows them, and says what the floor is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tables
from memory import peak_mib
from models import Case, prepare

RESULTS = tables.RESULTS / "speed.json"
DOC = tables.DOCS / "speed.md"
SETTINGS = ("side", "model", "adapters", "rank", "iterations")


def bytes_read() -> int | None:
    """Bytes that this process has read from files so far, whether these were in memory or not; Linux only."""
    counters = Path("/proc/self/io")
    return int(counters.read_text().split("rchar: ")[1].split()[0]) if counters.exists() else None


def measure_samerge(case: Case, folder: Path, iterations: int, method: str) -> dict[str, Any]:
    """One merge in this process, from files to files, and the floor of it."""
    import warnings

    import samerge

    samerge.merge, samerge.__version__  # noqa: B018  # imports what a merge needs; not what is measured
    options = {"iterations": iterations} if method == "saliency" else {}
    before, start, cpu = bytes_read(), time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = case.base if method == "saliency" else None
        merged = samerge.merge(base, list(case.adapters), method=method, progress=False, **options)
    merged.save(folder / "merged", overwrite=True)
    seconds, cpu, after = time.perf_counter() - start, time.process_time() - cpu, bytes_read()
    peak = peak_mib()
    record = merged.report.record
    parts = least_possible(case, iterations if method == "saliency" else 0)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_rss_mib": peak,
        "read_mib": None if before is None or after is None else round((after - before) / 2**20),
        "timings": record.timings,
        "adapters_mib": round(sum((a / "adapter_model.safetensors").stat().st_size for a in case.adapters) / 2**20),
        "base_mib": round(sum(f.stat().st_size for f in case.base.glob("*.safetensors")) / 2**20),
        "kernel": record.kernel,
        "floor": {part: round(value, 3) for part, value in parts.items()},
        "ratio_to_floor": cpu / sum(parts.values()),
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


def measure(side: str, case: Case, folder: Path, iterations: int, program: str | None) -> dict[str, Any]:
    """One run of one side."""
    if side.startswith("samerge"):
        return measure_samerge(case, folder, iterations, side.partition(":")[2] or "saliency")
    import sides

    if side == "naive":
        return {"seconds": sides.naive(case.base, list(case.adapters), iterations), "peak_rss_mib": peak_mib()}
    if side == "mergekit:ties":
        if program is None:
            raise SystemExit("--mergekit names the program mergekit-yaml, in an environment of its own")
        experts = [sides.applied(case.base, adapter, folder / "applied") for adapter in case.adapters]
        return sides.mergekit_ties(case.base, experts, folder, program)
    combination = side.partition("peft:")[2]
    return {"seconds": sides.peft(case.base, list(case.adapters), combination), "peak_rss_mib": peak_mib()}


def summed_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the numbers of several runs, the largest peak; all seconds, so that the spread can be seen."""
    first = runs[0]
    result = dict(first)
    for key in ("seconds", "scoring_seconds", "ratio_to_floor"):
        if key in first:
            result[key] = round(statistics.median(run[key] for run in runs), 3)
    if "peak_rss_mib" in first:
        result["peak_rss_mib"] = max(run["peak_rss_mib"] for run in runs)
    if len(runs) > 1 and "seconds" in first:
        result["seconds_of_runs"] = [round(run["seconds"], 3) for run in runs]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-1b", help="a shape, or a suite's real model: minilm, smollm2")
    parser.add_argument("--layers", type=int, nargs="*", default=[], help="depths, instead of the shape's own")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--runs", type=int, default=1, help="of every side, in turn")
    parser.add_argument("--folder", help="where to keep the weights; a temporary folder by default")
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["samerge"],
        help="samerge (method saliency), samerge:METHOD, naive, peft:cat, peft:svd, ..., mergekit:ties",
    )
    parser.add_argument("--mergekit", help="the program mergekit-yaml")
    parser.add_argument("--render", action="store_true", help="only write the table of docs/speed.md anew")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.render:
        tables.write(DOC, "speed.py", table(json.loads(RESULTS.read_text())))
    elif given.child:
        case = prepare(Path(given.folder), given.model, given.layers[0] if given.layers else None, given.adapters)
        print(
            "RECORD " + json.dumps(measure(given.sides[0], case, Path(given.folder), given.iterations, given.mergekit))
        )
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
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in given.sides}
    for _ in range(given.runs):
        for side in given.sides:
            run = subprocess.run([*command, "--sides", side], check=True, stdout=subprocess.PIPE, text=True)
            found[side].append(json.loads(run.stdout.split("RECORD ", 1)[1]))
            print(side, json.dumps(found[side][-1]), flush=True)
    for side, runs in found.items():
        keep(
            {
                "side": side,
                "model": case.name,
                "adapters": given.adapters,
                "rank": case.rank,
                "iterations": given.iterations if side in ("samerge", "naive") else None,
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
    records = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    records = [old for old in records if any(old[key] != record[key] for key in SETTINGS)] + [record]
    records.sort(key=lambda item: [str(item[key]) for key in ("model", "adapters", "iterations", "side")])
    RESULTS.write_text(json.dumps(records, indent=2) + "\n")
    tables.write(DOC, "speed.py", table(records))


def table(records: list[dict[str, Any]]) -> str:
    """The results as docs/speed.md shows them."""
    header = ["model", "adapters", "merge", "iterations", "seconds", "peak memory, MiB", "read, MiB", "base, MiB"]
    keys = ["model", "adapters", "side", "iterations", "seconds", "peak_rss_mib", "read_mib", "base_mib"]
    cells = []
    for item in records:
        own = [item.get(key) for key in (*keys, "adapters_mib", "ratio_to_floor")]
        cells.append(["" if one is None else f"{one:.2f}" if isinstance(one, float) else str(one) for one in own])
    return f"{tables.rows([*header, 'adapters, MiB', 'scoring / floor'], cells)}\n\n{tables.origin(records[-1])}"


if __name__ == "__main__":
    main()
