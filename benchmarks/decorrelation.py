"""What merging many adapters costs: one layer, in memory, on one core.

    python benchmarks/decorrelation.py                                     # even; 8, 32, 64 and 256 adapters of rank 16
    python benchmarks/decorrelation.py --methods even saliency --adapters 64 256 1024 --runs 1
    python benchmarks/decorrelation.py --methods all --adapters 256 --runs 1 --most 600
    python benchmarks/decorrelation.py --methods tsv svd --adapters 64 --rank 64
    python benchmarks/decorrelation.py --width 4096 --height 1024

Every run is a process of its own with one thread; seconds are of processor time, the least of several runs. The floor
is what no such merge does without, measured in the same process: two QRs of each adapter, the two Gram matrices of all
triplets in float64 and their eigenproblems. Memory is what the process grew by; `needed` is what samerge would ask for
before it begins. `saliency` and others that read the base have a random weight of the layer's shape, all of it the
graph. Weights are random: time depends on them in `ctm` alone. What took longer than --most seconds, or was refused, is
kept as such. Results go to
benchmarks/results/decorrelation.json; a record with the same settings replaces the older one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import tables
from memory import peak_mib
from records import replaced
from speed import machine

RESULTS = tables.RESULTS / "decorrelation.json"
DOC = tables.DOCS / "speed.md"
SETTINGS = ("method", "adapters", "rank", "height", "width")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["even"])
    parser.add_argument("--adapters", nargs="+", type=int, default=[8, 32, 64, 256])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--height", type=int, default=2048, help="rows of the layer")
    parser.add_argument("--width", type=int, default=2048, help="columns of the layer")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--most", type=float, default=600, help="seconds of a run")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(json.loads(given.one), given.runs)))
        return
    for method in every_method() if given.methods == ["all"] else given.methods:
        for adapters in given.adapters:
            settings = dict(zip(SETTINGS, (method, adapters, given.rank, given.height, given.width), strict=True))
            command = [sys.executable, __file__, "--one", json.dumps(settings), "--runs", str(given.runs)]
            try:
                run = subprocess.run(
                    command,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    capture_output=True,
                    text=True,
                    timeout=given.most,
                )
                told = run.stderr.strip().splitlines()[-1][:400] if run.returncode else ""
                record = {**settings, "refused": told, **machine()} if told else json.loads(run.stdout)
            except subprocess.TimeoutExpired:
                record = {**settings, "refused": f"more than {given.most:.0f} s", **machine()}
            print(record, flush=True)
            keep(record)


def every_method() -> list[str]:
    """The names of all methods."""
    from samerge.methods.registry import available_methods

    return list(available_methods())


def measure(settings: dict[str, Any], runs: int) -> dict[str, Any]:
    """One method on one layer, in this process."""
    import torch

    from samerge.adapters import AdaptedModule
    from samerge.adapters.layouts import Layout
    from samerge.graph import Weight
    from samerge.graph.widths import local_graph
    from samerge.linalg.factors import LoraFactors
    from samerge.methods.memory import layer_bytes
    from samerge.methods.problem import Problem, Site
    from samerge.methods.registry import find
    from samerge.parallel.progress import Progress
    from samerge.weights.stored import InMemory, StoredSource

    torch.set_num_threads(1)
    count, rank, shape = settings["adapters"], settings["rank"], (settings["height"], settings["width"])
    generator = torch.Generator().manual_seed(0)
    updates = [
        LoraFactors(torch.randn(rank, shape[1], generator=generator), torch.randn(shape[0], rank, generator=generator))
        for _ in range(count)
    ]
    layout = Layout("linear")
    found = {n: AdaptedModule(layout, rank, shape, torch.float32, lambda f=f: f) for n, f in enumerate(updates)}  # type: ignore[misc]
    key = "layer.weight"
    site = Site("layer", key, layout, shape, found, inside=True)
    method = find(settings["method"])
    needs = method.base == "needed"
    source = StoredSource("random", {}, {key: InMemory(torch.randn(shape, generator=generator))}) if needs else None
    graph = local_graph([Weight("", "", key)]) if needs else None

    def merge() -> None:
        names, cpu = tuple(map(str, range(count))), torch.device("cpu")
        problem = Problem(
            names, (1.0,) * count, (site,), rank, source, graph, cpu, Progress(False), balance=method.balance
        )
        layer = method.begin(problem, method.options()).layer(site, problem.parts(site))
        (layer.update if method.exact else layer.update.truncated(rank)[0]).factors()

    def floor() -> None:
        for one in updates:
            torch.linalg.qr(one.A.T)
            torch.linalg.qr(one.B)
        for side in (torch.cat([one.A for one in updates]).T, torch.cat([one.B for one in updates], dim=1)):
            wide = side.double() if side.shape[1] <= side.shape[0] else side.T.double()
            torch.linalg.eigh(wide.T @ wide)

    before = peak_mib()
    seconds = least(merge, runs)
    grown = peak_mib() - before
    least_possible = least(floor, runs)
    return {
        **settings,
        "runs": runs,
        "seconds": round(seconds, 4),
        "floor": round(least_possible, 4),
        "ratio_to_floor": round(seconds / least_possible, 2),
        "grown_mib": grown,
        "needed_mib": layer_bytes(shape, count * rank) >> 20,
        **machine(),
    }


def least(work: Callable[[], None], runs: int) -> float:
    """Processor seconds, the least of several runs."""
    taken = []
    for _ in range(runs):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def keep(record: dict[str, Any]) -> None:
    """Put a record into the results, in place of one with the same settings."""
    records = replaced(RESULTS, record, SETTINGS)
    records.sort(key=lambda item: [(str(item[key]), 0) if key == "method" else ("", item[key]) for key in SETTINGS])
    RESULTS.write_text(json.dumps(records, indent=2) + "\n")
    tables.write(DOC, "decorrelation.py", table(records))


def table(records: list[dict[str, Any]]) -> str:
    """Every method with 256 adapters, as docs/speed.md shows them."""
    many = [item for item in records if [item[key] for key in SETTINGS[1:]] == [256, 16, 2048, 2048]]
    told = [item for item in many if "refused" not in item]
    cells = [
        [item["method"], f"{item['seconds']:.1f}", f"{item['ratio_to_floor']:.1f}", str(item["grown_mib"])]
        for item in sorted(told, key=lambda item: float(item["seconds"]))
    ]
    cells += [
        [
            item["method"],
            item["refused"].removesuffix(" s") if item["refused"].startswith("more than") else "refused",
            "",
            "",
        ]
        for item in many
        if item not in told
    ]
    return (
        f"{tables.rows(['method', 'processor s', 'times the floor', 'memory, MiB'], cells)}\n\n{tables.origin(many[0])}"
    )


if __name__ == "__main__":
    main()
