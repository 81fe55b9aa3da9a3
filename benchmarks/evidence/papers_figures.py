"""The paper's figures 3a and 3b with the smooth score: SA-Merging by the share that is kept, and by its iterations."""

from __future__ import annotations

from tables import rows as table

from evidence.store import Results, best
from evidence.table import ITERATIONS, SHARES
from evidence.words import setting


def papers_figures(results: Results) -> str:
    """One table for each, the scores at the best of the strengths that were tried; nothing where none was measured."""
    shares = _scores(results, "share kept, p", [f"{share:g}" for share in SHARES], "paper, p")
    rounds = _scores(results, "iterations, T", [f"{n}" for n in ITERATIONS], "paper, T")
    if not shares or not rounds:
        return ""
    return "\n\n".join(
        [
            "## What do the paper's share and iterations do?",
            "The paper's figures 3a and 3b, on these suites: its method (`paper`), nothing truncated, every setting at "
            "the best of a few strengths, by the rows it is scored on.",
            shares,
            rounds,
        ]
    )


def _scores(results: Results, what: str, values: list[str], merge: str) -> str:
    """A row for each value, a column for each suite that has it."""
    suites = [suite for suite in results["suites"] if best(results, suite, f"{merge} {values[0]}", "free")]
    rows = []
    for value in values:
        found = [best(results, suite, f"{merge} {value}", "free") for suite in suites]
        rows.append([value, *(f"{one['score']:.1f} at {setting(one)}" if one else "" for one in found)])
    return table([what, *suites], rows) if suites else ""
