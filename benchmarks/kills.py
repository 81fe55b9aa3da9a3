"""Merges that are killed, at every call of the writer and at random times; what was lost.

    python benchmarks/kills.py --cases 200

Each case gets SIGKILL, SIGTERM or SIGINT (tests/killing.py). Afterwards the output is the old one, whole, or the new
one, whole, or absent where there was none; the next run writes, and removes what is left. Counts go to
benchmarks/results/kills.json, and what is not as it should be is printed.
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
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "kills.json"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=100, help="the number of the first case")
    given = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, str(HERE.parent / "tests" / "killing.py"), folder, str(given.first), str(given.cases)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    wrong = [one["wrong"] for one in found if one["wrong"]]
    record = {
        "cases": len(found),
        "lost_or_left": len(wrong),
        "finished": done.returncode == 0,
        "seconds": round(time.monotonic() - start),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("samerge", "torch")}},
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(*wrong, json.dumps(record, indent=2), sep="\n")


if __name__ == "__main__":
    main()
