"""The figures of the docs that need no trained suite: each is measured here, kept, and written into its page.

    python benchmarks/figures.py                 # all of them, some minutes
    python benchmarks/figures.py kernel          # some
    python benchmarks/figures.py --render        # only write the tables of the docs anew

The adapters are the four of examples/, and random ones of a real shape. Seconds are the processor's, of one thread, the
least of several runs, so that other work on the machine does not change them much. Results go to
benchmarks/results/figures.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables
from speed import machine

RESULTS = tables.RESULTS / "figures.json"
EXAMPLES = Path(__file__).parent.parent / "examples"

Records = list[dict[str, Any]]


def examples(folder: Path) -> tuple[Path, dict[str, Path]]:
    """MiniLM and its four adapters."""
    sys.path.append(str(EXAMPLES))
    from minilm import ADAPTERS, TASKS, unpack_base

    return unpack_base(folder / "all-MiniLM-L6-v2"), {task: ADAPTERS / task for task in TASKS}


def least(work: Callable[[], Any], runs: int) -> float:
    """Seconds of this process's processors, the least of several runs after one that does not count."""
    work()
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def diagnostics(folder: Path) -> Records:
    """What the diagnostics of a merge take, beside the merge."""
    from shapes import SHAPES, write_adapter

    import samerge
    from samerge.merging import finish

    _, trained = examples(folder)
    shape = dataclasses.replace(SHAPES["llama-8b"], name="llama-8b-1", layers=1)
    drawn = {str(i): write_adapter(shape, folder, i, Path("none")) for i in range(8)}
    of, seconds = finish.Finisher._recorded, [0.0]

    def timed(*arguments: Any) -> dict[str, Any]:
        start = time.process_time()
        found = of(*arguments)
        seconds[-1] += time.process_time() - start
        return found

    records = []
    finish.Finisher._recorded = timed
    try:
        for name, adapters in (("MiniLM", trained), ("a block of Llama 8B's shape", drawn)):
            for rank in (16, 16 * len(adapters)):
                seconds.clear()
                for _ in range(5):
                    seconds.append(0.0)
                    merged = samerge.merge(None, adapters, method="svd", rank=rank, progress=False)
                layers = len(merged.report.record.layers)
                records.append({"model": name, "layers": layers, "adapters": len(adapters), "rank": rank})
                records[-1]["seconds"] = round(min(seconds), 4)
    finally:
        finish.Finisher._recorded = of
    return records


def diagnostics_table(records: Records) -> str:
    cells = []
    for item in records:
        cells.append([f"{item['adapters']} of {item['model']}, of rank 16", str(item["layers"]), str(item["rank"])])
        cells[-1].append(f"{item['seconds']:.2f}")
    return tables.rows(["adapters", "layers", "merged at rank", "seconds"], cells)


def decomposition(folder: Path) -> Records:
    """The error of the streamed decomposition as a multiple of the least that there is."""
    import torch

    import samerge
    from samerge.linalg.randomised_svd import Rows, truncated_svd
    from samerge.methods import elementwise

    def errors(read: Rows, shape: tuple[int, int], rank: int, powers: tuple[int, ...]) -> list[float]:
        exact = read(0, shape[0]).double()
        best = float(torch.linalg.svdvals(exact)[rank:].norm())
        found = (truncated_svd(read, shape, rank, power=power)[0].delta().double() for power in powers)
        return [float((exact - one).norm()) / best for one in found]

    powers, layers = (1, 2, 3), []

    def measured(read: Rows, shape: tuple[int, int], rank: int, **options: Any) -> Any:
        layers.append(errors(read, shape, rank, powers))
        return truncated_svd(read, shape, rank, **options)

    base, adapters = examples(folder)
    elementwise.truncated_svd = measured
    try:
        samerge.merge(base, adapters, method="elementwise", rank=16, progress=False)
    finally:
        elementwise.truncated_svd = truncated_svd
    what = f"MiniLM, four adapters merged element by element, the worst of {len(layers)} layers"
    worst = [max(column) for column in zip(*layers, strict=True)]
    records = [
        {"matrix": what, "rank": 16, "power": power, "error": round(error, 4)}
        for power, error in zip(powers, worst, strict=True)
    ]
    noise = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    for rank in (8, 64, 128):
        (error,) = errors(lambda i, j: noise[i:j], (1024, 1024), rank, (3,))
        records.append({"matrix": "random, 1024 x 1024", "rank": rank, "power": 3, "error": round(error, 4)})
    return records


def decomposition_table(records: Records) -> str:
    header = ["matrix", "rank", "power iterations", "error / least possible"]
    return tables.rows(
        header,
        [[item["matrix"], str(item["rank"]), str(item["power"]), f"{item['error']:.3f}"] for item in records],
    )


def kernel(folder: Path) -> Records:
    """The sweeps of one tile by the kernel in C and by plain torch, beside thin products alone."""
    import torch

    from samerge.linalg.factors import LoraFactors
    from samerge.saliency.kernels.native import NativeKernel
    from samerge.saliency.kernels.tiles import TorchKernel

    experts, records = 8, []
    kernels = {"native": NativeKernel(), "torch": TorchKernel(torch.device("cpu"), torch.float32)}
    draw = torch.Generator().manual_seed(0)
    for height, width in ((144, 2048), (96, 8192)):
        tile = (torch.randn(height, width, generator=draw) * 0.02).bfloat16()
        u, v = torch.rand(experts, height, generator=draw), torch.rand(experts, width, generator=draw)
        signs, out = torch.randn(height, width, generator=draw).sign(), torch.empty(height, width)
        for rank in (16, 2):
            columns = torch.randn(width, rank, generator=draw)
            factors = [
                LoraFactors(
                    torch.randn(rank, width, generator=draw) / math.sqrt(width),
                    torch.randn(height, rank, generator=draw) * 0.02,
                )
                for _ in range(experts)
            ]
            for name, flows, forward in (("forward", (None, v), True), ("backward, gamma", (u, v), False)):
                found = {"height": height, "width": width, "rank": rank, "sweep": name, "experts": experts}
                for one, own in kernels.items():
                    sweep, dtype = own.sweep(factors, False, flows, forward), own.tile_dtype(tile.dtype)
                    found[one] = least(lambda: sweep(tile.to(dtype), 0), 60)  # noqa: B023

                def products() -> None:
                    for item in factors:  # noqa: B023
                        torch.mm(item.B, item.A, out=out)  # noqa: B023
                        if not forward:  # noqa: B023
                            torch.mm(signs, columns)  # noqa: B023

                found["products"] = least(products, 60)
                records.append({key: round(one, 7) if isinstance(one, float) else one for key, one in found.items()})
    return records


def kernel_table(records: Records) -> str:
    header = ["tile", "rank", "sweep", "kernel in C", "plain torch", "thin products", "C / thin", "torch / thin"]
    cells = []
    for forward, backward in zip(records[::2], records[1::2], strict=True):
        both = {key: forward[key] + backward[key] for key in ("native", "torch", "products")}
        for item in (forward, backward, {**forward, **both, "sweep": "both"}):
            native, torch, products = (item[key] for key in ("native", "torch", "products"))
            cells.append([f"{item['height']} x {item['width']}", str(item["rank"]), item["sweep"]])
            cells[-1] += [f"{one * 1e6:.0f}" for one in (native, torch, products)]
            cells[-1] += [f"{native / products:.2f}", f"{torch / products:.2f}"]
    return tables.rows(header, cells)


#: By name: the page, what measures, and what makes the table.
FIGURES: dict[str, tuple[str, Callable[[Path], Records], Callable[[Records], str]]] = {
    "decomposition": ("compress.md", decomposition, decomposition_table),
    "diagnostics": ("diagnostics.md", diagnostics, diagnostics_table),
    "kernel": ("speed.md", kernel, kernel_table),
}


def table(name: str, found: dict[str, Any]) -> str:
    """One figure's results as its page shows them."""
    return f"{FIGURES[name][2](found['records'])}\n\n{tables.origin(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(FIGURES)}; all by default")
    parser.add_argument("--folder", type=Path, help="where to keep the files; a temporary folder by default")
    parser.add_argument("--render", action="store_true", help="only write the tables of the docs anew")
    given = parser.parse_args()
    if unknown := set(given.names) - set(FIGURES):
        parser.error(f"no figures {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if not given.render:
        import torch

        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as temporary:
            for name in given.names or FIGURES:
                known[name] = {"records": FIGURES[name][1](given.folder or Path(temporary)), **machine()}
                print(name, json.dumps(known[name]["records"]), flush=True)
                RESULTS.write_text(json.dumps(dict(sorted(known.items())), indent=2) + "\n", encoding="utf-8")
    for name, found in known.items():
        tables.write(tables.DOCS / FIGURES[name][0], f"figures.py {name}", table(name, found))


if __name__ == "__main__":
    main()
