"""What several processes on one machine hold, exchange and take: a real merge, measured in every process.

    python benchmarks/processes.py    # some minutes; writes the measured table of docs/distributed.md

The files are random weights of a real shape. All processes run on one machine, over gloo; time is the processor's, so
that it does not depend on how many cores there are. Results go to benchmarks/results/processes.json, and from there to
docs/distributed.md. `traffic.py` checks its formulas against a small run of this.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import tables

DOC = tables.DOCS / "distributed.md"
RESULTS = tables.RESULTS / "processes.json"


def measured(base: Path, adapters: list[Path], processes: int, **options: Any) -> list[dict[str, float]]:
    """What every process of a merge measured.

    Args:
        base: its folder.
        adapters: their folders.
        processes: how many, over gloo, with one thread each.
        options: of `merge` by saliency.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = {"base": str(base), "adapters": [str(path) for path in adapters], "out": folder, "options": options}
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [sys.executable, *launch, __file__, "--worker", json.dumps(request)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(processes)]


def work(request: dict[str, Any]) -> None:
    """One process: merge, count the bytes handed to the collectives, measure memory and time."""
    import torch
    import torch.distributed as dist
    from memory import peak_mib

    import samerge
    from samerge.parallel.processes import join, leave

    torch.set_num_threads(1)
    group = join()
    bytes_ = {"all_reduce": 0, "broadcast": 0}

    def counting(name: str) -> None:
        real = getattr(dist, name)

        def counted(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            bytes_[name] += tensor.numel() * tensor.element_size()
            return real(tensor, *arguments, **named)

        setattr(dist, name, counted)

    for name in bytes_:
        counting(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Everything is imported, and the buffers of the libraries exist, before memory is measured.
        samerge.merge(
            request["base"], request["adapters"][:1], method="saliency", density=0.5, iterations=1, progress=False
        )
        before = peak_mib()
        bytes_.update(dict.fromkeys(bytes_, 0))
        start = time.process_time()
        samerge.merge(request["base"], request["adapters"], method="saliency", progress=False, **request["options"])
        seconds = time.process_time() - start
    found = {"before": before, "peak": peak_mib(), "seconds": seconds, **bytes_}
    (Path(request["out"]) / f"{group.rank}.json").write_text(json.dumps(found))
    leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "samerge-processes")
    parser.add_argument("--model", default="llama-1b", help="a shape of shapes.py")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--render", action="store_true", help="only write the table of docs/distributed.md anew")
    arguments = parser.parse_args()
    if arguments.worker:
        return work(json.loads(arguments.worker))
    if not arguments.render:
        RESULTS.write_text(json.dumps(measure(arguments), indent=2) + "\n", encoding="utf-8")
    tables.write(DOC, "processes.py", table(json.loads(RESULTS.read_text(encoding="utf-8"))))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The merge by one, two and four processes: of each figure the largest of any process."""
    from models import prepare
    from speed import machine

    case = prepare(arguments.folder, arguments.model, arguments.layers, arguments.adapters)
    size = sum((path / "adapter_model.safetensors").stat().st_size for path in case.adapters)
    records = []
    for processes in (1, 2, 4):
        found = measured(case.base, list(case.adapters), processes, iterations=arguments.iterations)
        most = {name: max(one[name] for one in found) for name in found[0]}
        records.append({"processes": processes, **most, "seconds": round(most["seconds"], 2)})
        print(json.dumps(records[-1]), flush=True)
    settings = {"model": case.name, "adapters": arguments.adapters, "iterations": arguments.iterations}
    return {**settings, "adapters_mib": round(size / 2**20), "records": records, **machine()}


def table(found: dict[str, Any]) -> str:
    """The results as docs/distributed.md shows them."""
    header = ["processes", "peak resident memory of the largest, MiB"]
    header += [f"of it before the {found['adapters_mib']} MiB of adapters are merged", "handed to broadcast"]
    header += ["handed to all_reduce", "CPU seconds, each process"]
    cells = [
        [
            str(item["processes"]),
            *(f"{item[name]:.0f}" for name in ("peak", "before")),
            *(f"{item[name] / 1e6:.0f} MB" for name in ("broadcast", "all_reduce")),
            f"{item['seconds']:.0f}",
        ]
        for item in found["records"]
    ]
    return f"{tables.rows(header, cells)}\n\n{tables.origin(found)}"


if __name__ == "__main__":
    main()
