"""What the modes of scoring cost and change: kernel, precision, refresh, against float32 with gamma in every iteration.

    python benchmarks/modes.py --base MODEL --set trained=ADAPTERS --set again=OTHER_ADAPTERS

A set is a folder of adapters. Each is merged in both bases at density 0.125, which for eight adapters of rank 16 keeps
as many as rank=16. A mode's kept components are compared with those of the exact mode, over all layers and adapters.
Results go to benchmarks/results/modes.json, and from there to docs/speed.md. Seconds are of processor time, of the
merge and its writing in one thread, the least of several runs: other work on the machine does not change them much.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import tables
from speed import DOC, machine

RESULTS = tables.RESULTS / "modes.json"
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "exact": ("native", {}),
    "kernel torch": ("torch", {}),
    "float64": ("auto", {"precision": "float64"}),
    "refresh 2": ("native", {"refresh": 2}),
    "refresh 5": ("native", {"refresh": 5}),
    "refresh 0": ("native", {"refresh": 0}),
}
DENSITY = 0.125

Kept = dict[tuple[str, str], tuple[set[int], int]]


def merge(base: Path, adapters: list[Path], kernel: str, options: dict[str, Any], runs: int) -> tuple[Kept, float]:
    """The kept components by layer and adapter, with how many there were; and seconds."""
    import samerge

    os.environ["SAMERGE_KERNEL"] = kernel
    seconds = []
    with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(runs):
            start = time.process_time()
            merged = samerge.merge(base, adapters, method="saliency", progress=False, **options)
            merged.save(out, overwrite=True)
            seconds.append(time.process_time() - start)
    layers = merged.report.record["layers"]
    kept = {
        (module, name): (set(share["kept"]), share["components"])
        for module, layer in layers.items()
        for name, share in layer["experts"].items()
    }
    return kept, min(seconds)


def agreement(one: Kept, other: Kept) -> tuple[float, float]:
    """Intersection over union of all kept components, and the share of all components whose fate is the same."""
    shared = sum(len(kept & other[key][0]) for key, (kept, _) in one.items())
    union = sum(len(kept | other[key][0]) for key, (kept, _) in one.items())
    return shared / union, 1 - (union - shared) / sum(count for _, count in one.values())


def measure(base: Path, name: str, folder: Path, runs: int) -> list[dict[str, Any]]:
    """All modes on one set of adapters."""
    adapters = sorted(path.parent for path in folder.glob("*/adapter_config.json"))
    merge(base, adapters, "native", {"density": DENSITY}, 1)  # what only the first merge of a process does
    records = []
    for basis in ("svd", "native"):
        exact: Kept = {}
        for mode, (kernel, own) in MODES.items():
            kept, seconds = merge(base, adapters, kernel, {"basis": basis, "density": DENSITY, **own}, runs)
            exact = exact or kept
            jaccard, same = agreement(kept, exact)
            records.append(
                {
                    "set": name,
                    "adapters": len(adapters),
                    "basis": basis,
                    "density": DENSITY,
                    "mode": mode,
                    "jaccard": round(jaccard, 4),
                    "same": round(same, 4),
                    "cpu_seconds": round(seconds, 2),
                    "runs": runs,
                }
            )
            print(json.dumps(records[-1]), flush=True)
    return records


def table(found: dict[str, Any]) -> str:
    """The results as docs/speed.md shows them."""
    header = ["adapters", "basis", "mode", "kept alike (Jaccard)", "components of like fate", "processor seconds"]
    cells = []
    for item in found["records"]:
        cells.append([f"{item['set']} ({item['adapters']})", item["basis"], item["mode"]])
        cells[-1] += [f"{item['jaccard']:.3f}", f"{item['same']:.3f}", f"{item['cpu_seconds']:.2f}"]
    return f"{tables.rows(header, cells)}\n\n{tables.origin(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of the base model")
    parser.add_argument("--set", action="append", default=[], help="NAME=FOLDER of adapters; several times")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--render", action="store_true", help="only write the table of docs/speed.md anew")
    given = parser.parse_args()
    if not given.render:
        import torch

        torch.set_num_threads(1)
        records = []
        for word in given.set:
            name, _, folder = word.partition("=")
            records += measure(given.base, name, Path(folder), given.runs)
        RESULTS.write_text(json.dumps({"records": records, **machine()}, indent=2) + "\n", encoding="utf-8")
    tables.write(DOC, "modes.py", table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
