"""How well cosine and interference, which every report shows, order merges: from results/quality.json, nothing is run.

    python benchmarks/foretell.py

Results go to benchmarks/results/foretell.json, and from there to docs/diagnostics.md; docs/evidence.md has the same.
"""

from __future__ import annotations

import json

import tables
from evidence.foretold import orders, rows, sentence
from evidence.store import load

RESULTS = tables.RESULTS / "foretell.json"
DOC = tables.DOCS / "diagnostics.md"


def table() -> str:
    """The results as docs/diagnostics.md shows them."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return f"{sentence(found)}\n\n{rows(found)}"


def main() -> None:
    """The command line."""
    found = orders(load((tables.RESULTS / "quality.json").read_text(encoding="utf-8")))
    RESULTS.write_text("[\n" + ",\n".join(json.dumps(row) for row in found) + "\n]\n", encoding="utf-8")
    tables.write(DOC, "foretell.py", table())


if __name__ == "__main__":
    main()
