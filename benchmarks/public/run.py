"""A public suite in one command: download, merge, ask, and a table with the published rows.

    python benchmarks/public/run.py flan-t5-glue
    python benchmarks/public/run.py knots-vision --untuned --only saliency,even,tsv
    python benchmarks/public/run.py knots-nli --table       # of what was measured so far; downloads nothing

It measures the base, every task's own adapter, the merges whose rows were published, and then the merges of `--only` at
the adapters' rank: untuned first, then over the grid of strengths. All is kept in the cache at once, so that a run that
was cut off goes on; `benchmarks/quality.py --suite NAME` reads and writes the same lines.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from evidence.runs import Runs, read_lines, settings
from evidence.table import FAMILIES
from suites import PUBLIC, suite
from suites.base import default_cache

from public.published import same_settings
from public.table import table

ONLY = "saliency,even,paper,linear,ties,knots-ties,tsv,iso-c,iso-cts,dc-merge,wudi,ctm"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=list(PUBLIC))
    parser.add_argument("--only", default=ONLY, help="names of merges, a pattern, or several with commas")
    parser.add_argument("--untuned", action="store_true", help="no grid of strengths")
    parser.add_argument("--items", type=int, help="rows a task; all by default, as published")
    parser.add_argument("--minutes", type=float, help="begin no measurement after this time")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="copies of adapters, measurements")
    parser.add_argument("--table", action="store_true", help="only the table")
    given = parser.parse_args(arguments)
    one = suite(given.suite, given.cache)
    store = given.cache / one.name / "measurements.jsonl"
    if not given.table:
        end = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
        runs = Runs(one, given.items or one.items, store)
        runs.references(all_tasks=False)
        todo = same_settings(one.name) + settings(FAMILIES, given.only, ["r"])
        todo = [setting for setting in todo if not given.untuned or setting.published or setting.budget == "free"]
        for number, setting in enumerate(todo, 1):
            if time.monotonic() > end:
                print(f"stopped after {number - 1} of {len(todo)}", file=sys.stderr)
                break
            if runs.measure(setting):
                print(f"{number}/{len(todo)}: {setting.family.name}, {setting.scaling}", file=sys.stderr, flush=True)
    lines = read_lines(store)
    latest = [line for line in lines if line["identity"] == lines[-1]["identity"]]
    print(table(type(one), latest))


if __name__ == "__main__":
    main()
