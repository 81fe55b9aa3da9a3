"""Broken adapter and base folders, by the thousand, through the command line: what became of them.

    python benchmarks/fuzz.py                      # 20,000 cases
    python benchmarks/fuzz.py --cases 3000 --workers 1

A case is a number, and breaks the same file in the same way every time (tests/fuzzing.py). Each worker is one process
that has imported everything and goes on from case to case; one that dies, or takes more than a minute, is replaced, and
its case counts as that. Memory is what a worker's peak grew by, over all its cases. Counts go to
benchmarks/results/fuzz.json, and what is not as it should be is printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "fuzz.json"
#: Seconds of wall-clock after which a worker is taken for one that hangs.
PATIENCE = 60.0
PACKAGES = ("samerge", "torch", "safetensors", "transformers", "peft")


def work(pipe: Connection, zoo: Path) -> None:
    """Take numbers, send back what became of the cases, and how far the peak of memory has grown."""
    import resource

    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(HERE.parent / "tests"))
    from fuzzing import offline, outcome

    outcome(0, zoo, Path(tempfile.mkdtemp()))  # everything is imported
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send("ready")
    with tempfile.TemporaryDirectory() as folder, offline():
        while True:
            number = pipe.recv()
            if number is None:
                return
            found = outcome(number, zoo, Path(folder))
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            pipe.send((found.kind, found.words, found.seconds, grown))


class Worker:
    """A process, and the case that it is at."""

    def __init__(self, zoo: Path) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=work, args=(theirs, zoo), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()  # it has imported everything
        self.number, self.since = -1, 0.0

    def begin(self, number: int) -> None:
        """Let it run a case."""
        self.number, self.since = number, time.monotonic()
        self.pipe.send(number)


def run(cases: range, workers: int) -> dict[str, Any]:
    """All cases; the record of what became of them."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from fuzz_zoo import make_zoo

    counts: Counter[str] = Counter()
    slowest = grown = 0.0
    start, todo = time.monotonic(), iter(cases)
    with tempfile.TemporaryDirectory() as folder:
        zoo = make_zoo(Path(folder))
        busy: dict[Connection, Worker] = {}
        for number in (next(todo, None) for _ in range(workers)):
            if number is not None:
                worker = Worker(zoo)
                busy[worker.pipe] = worker
                worker.begin(number)
        while busy:
            for pipe in wait(list(busy), timeout=1.0):
                worker = busy.pop(pipe)  # type: ignore[arg-type, index]
                try:
                    kind, words, seconds, more = worker.pipe.recv()
                    slowest, grown = max(slowest, seconds), max(grown, more)
                except EOFError:
                    kind, words = "crash", str(worker.number)
                    worker = Worker(zoo)
                _count(counts, kind, words)
                _next(worker, next(todo, None), busy)
            for pipe, worker in list(busy.items()):
                if time.monotonic() - worker.since > PATIENCE:
                    worker.process.kill()
                    _count(counts, "hang", str(worker.number))
                    del busy[pipe]
                    _next(Worker(zoo), next(todo, None), busy)
    return {
        "cases": sum(counts.values()),
        "outcomes": dict(sorted(counts.items())),
        "slowest_seconds_of_processor_time": round(slowest, 2),
        "memory_grown_by_MiB": round(grown),
        "seconds": round(time.monotonic() - start),
        "workers": workers,
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
    }


def _next(worker: Worker, number: int | None, busy: dict[Connection, Worker]) -> None:
    if number is None:
        worker.process.kill()
        return
    busy[worker.pipe] = worker
    worker.begin(number)


def _count(counts: Counter[str], kind: str, words: str) -> None:
    sound = kind in ("refused", "accepted")
    counts[kind if sound else kind.partition(" [")[0]] += 1
    if not sound:
        print(f"{kind}: {words}", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=1_000, help="the number of the first case")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    record = run(range(given.first, given.first + given.cases), given.workers)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
