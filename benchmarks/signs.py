"""Sign conflicts between trained adapters, before and after pruning: the question of the paper's figure 3c.

    python benchmarks/signs.py                          # all suites of quality.py whose adapters are in its cache
    python benchmarks/signs.py --suite minilm vision

The adapters are those of benchmarks/quality.py. Results go to benchmarks/results/signs.json, and from there to
docs/diagnostics.md.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import tables
from speed import machine
from suites import SUITES, suite
from suites.base import default_cache

RESULTS = tables.RESULTS / "signs.json"
DOC = tables.DOCS / "diagnostics.md"
MERGES: dict[str, dict[str, Any]] = {
    "`paper`, density 0.1": {"method": "paper", "density": 0.1},
    "`paper` of singular triplets, density 0.1": {"method": "paper", "density": 0.1, "basis": "svd", "residual": True},
    **{
        f"`{method}`, density 0.1": {"method": method, "density": 0.1}
        for method in ("saliency", "elementwise", "magnitude-prune", "dare")
    },
}


def measure(name: str, cache: Path) -> list[dict[str, Any]]:
    """All merges of one suite's adapters."""
    import samerge

    one = suite(name, cache)
    records = []
    for merge, options in MERGES.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = samerge.merge(one.base(), one.adapters(), progress=False, **options)
        found = merged.report.whole
        figures = {key: round(getattr(found, key), 4) for key in ("sign_conflict", "sign_conflict_after", "signs_left")}
        records.append({"suite": name, "merge": merge, **figures, "sampled": list(found.sampled)})
        print(json.dumps(records[-1]), flush=True)
    return records


def table(found: dict[str, Any]) -> str:
    """The results as docs/diagnostics.md shows them."""
    header = ["adapters", "pruned by", "conflict before", "conflict after", "signs left"]
    cells = []
    for item in found["records"]:
        before, after, left = (item[key] for key in ("sign_conflict", "sign_conflict_after", "signs_left"))
        cells.append([item["suite"], item["merge"], *(f"{one:.3f}" for one in (before, after, left, after * left))])
    return f"{tables.rows([*header, 'conflicts left of all pairs'], cells)}\n\n{tables.origin(found)}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", nargs="*", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--cache", type=Path, default=default_cache(), help="of benchmarks/quality.py")
    parser.add_argument("--render", action="store_true", help="only write the table of docs/diagnostics.md anew")
    given = parser.parse_args()
    if not given.render:
        records = [record for name in given.suite for record in measure(name, given.cache)]
        RESULTS.write_text(json.dumps({"records": records, **machine()}, indent=2) + "\n", encoding="utf-8")
    tables.write(DOC, "signs.py", table(json.loads(RESULTS.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
