"""The paper's figures 3a and 3b with the smooth score: SA-Merging by the share that is kept, and by its iterations."""

from __future__ import annotations

from tables import rows as table

from evidence.store import Record, Results, best
from evidence.table import ITERATIONS, SHARES
from evidence.words import setting

#: What is varied: its name on the page, the merges it makes, its values, and the paper's own.
VARIED = (
    ("share kept, p", "paper, p", [f"{share:g}" for share in SHARES], "0.1"),
    ("iterations, T", "paper, T", [f"{n}" for n in ITERATIONS], "10"),
)


def papers_figures(results: Results) -> str:
    """On each suite the best value of each, beside the paper's own; nothing where none was measured."""
    told = []
    for what, merge, values, papers in VARIED:
        by_suite = []
        for suite, found in _scores(results, merge, values, papers).items():
            top = max(found, key=lambda value: float(found[value]["score"]))
            best = f"{float(found[top]['score']):.1f} at {top}"
            by_suite.append(f"{suite} {best} ({papers}: {found[papers]['score']:.1f})")
        if by_suite:
            told.append(f"*{what}*: {'; '.join(by_suite)}.")
    if not told:
        return ""
    return (
        "## What do the paper's share and iterations do?\n\nThe paper's figures 3a and 3b, on real tasks: its method "
        "(`paper`), nothing truncated, every setting at the best of a few strengths (none below 0.5), by the rows it "
        f"is scored on. The best value on each suite, in brackets the paper's own. {' '.join(told)} "
        "[Tables](evidence-tables.md#the-papers-share-and-iterations)."
    )


def papers_tables(results: Results) -> str:
    """One table for each: a row for each value, a column for each suite that has it."""
    parts = []
    for what, merge, values, papers in VARIED:
        found = _scores(results, merge, values, papers)
        rows = [
            [
                value,
                *(
                    f"{own[value]['score']:.1f} at {setting(own[value])}" if value in own else ""
                    for own in found.values()
                ),
            ]
            for value in values
        ]
        if found:
            parts.append(table([what, *found], rows))
    return "\n\n".join(["## The paper's share and iterations", *parts]) if parts else ""


def _scores(results: Results, merge: str, values: list[str], papers: str) -> dict[str, dict[str, Record]]:
    """By suite and value the best record, of the suites that have the paper's and others."""
    found = {
        suite: {value: one for value in values if (one := best(results, suite, f"{merge} {value}", "free"))}
        for suite in results["suites"]
    }
    return {suite: own for suite, own in found.items() if papers in own and len(own) > 1}
