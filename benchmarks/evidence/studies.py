"""The parts of the page about what a merge is made of: selection, composition, ranks, and what is foretold."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from tables import rows as table

from evidence.markdown import score
from evidence.query import BUDGETS, Record, Results, merges, select

#: The scales that variants of the selection were tried at.
ABLATED_AT = ("auto:1.0", "auto:1.3", "auto:1.6")


def ablations(results: Results) -> str:
    """The selection's parts, one taken away at a time."""
    names = merges(results, ("own", "ablation"))
    suites = [suite for suite in results["suites"] if select(results, suite=suite, role="ablation")]
    if not suites:
        return ""
    rows = []
    for merge in names:
        cells = [merge]
        for suite in suites:
            found = select(results, suite=suite, merge=merge, budget="r")
            by_scale = {scaling: [r for r in found if r["scaling"] == scaling] for scaling in ABLATED_AT}
            by_scale = {scaling: seeds for scaling, seeds in by_scale.items() if seeds}
            plain = by_scale.get("auto:1.3", [])
            note = f" ({len(plain)} seeds)" if len(plain) > 1 else ""
            cells += [f"{_mean(plain, 'test'):.1f}{note}", str(plain[0]["rank"])] if plain else ["", ""]
            best = max(by_scale.values(), key=lambda seeds: _mean(seeds, "validation"), default=None)
            cells.append("" if best is None else f"{_mean(best, 'test'):.1f}")
        rows.append(cells)
    columns = ("", ": rank", ": best of three scales")
    head = ["variant", *(f"{suite}{what}" for suite in suites for what in columns)]
    return "\n\n".join(
        [
            "## Ablations of the selection",
            "All at auto:1.3, and, as *best of three scales*, at that of auto:1.0, 1.3 and 1.6 which is best on the "
            "validation rows, where these were measured. The output rank is the experts': variants with a density keep "
            "that share of every expert, and are truncated where that is more.",
            "![Ablations](pictures/earlier-ablations.png)",
            table(head, rows),
        ]
    )


def study(results: Results) -> str:
    """The parts of composed merges."""
    suites = [suite for suite in results["suites"] if select(results, suite=suite, role="chain")]
    if not suites:
        return ""
    parts = [
        "## Composed merges",
        "Norm balance, selection by saliency, aggregation and a flat spectrum, together and apart: untuned (auto:1.3, "
        "or auto:1.6 for a flat spectrum, in all of them alike), and at the norm that is best on validation rows.",
    ]
    names = [*merges(results, ("own", "default")), "linear", "tsv", *merges(results, ("chain",))]
    rows = []
    for merge in names:
        cells = [merge.removeprefix("chain: ")]
        for suite in suites:
            found = [r for r in select(results, suite=suite, merge=merge, budget="r") if _is_ruled(r)]
            flat = "flat" in merge or merge == "even (earlier)"
            untuned = next((r for r in found if r["scaling"] == ("auto:1.6" if flat else "auto:1.3")), None)
            best = max(found, key=lambda r: r["validation"]) if len(found) > 1 else None
            cells += [
                "" if untuned is None else score(untuned, with_interval=True),
                "" if best is None else f"{score(best)} at {best['scaling']}",
            ]
        rows.append(cells)
    head = ["merge", *(f"{suite}{what}" for suite in suites for what in ("", ": best norm"))]
    parts.append(table(head, rows))
    return "\n\n".join(parts)


def shares(results: Results) -> str:
    """Ranks that differ between layers."""
    suites = [suite for suite in results["suites"] if select(results, suite=suite, role="shares")]
    if not suites:
        return ""
    rows = []
    for budget in ("r", "2r"):
        for merge in merges(results, ("default", "shares")):
            cells = [merge, BUDGETS[budget]]
            for suite in suites:
                found = select(results, suite=suite, merge=merge, budget=budget, scaling=1.0)
                cells += [score(found[0], with_interval=True), str(found[0]["rank"])] if found else ["", ""]
            rows.append(cells)
    head = ["merge", "parameters as at", *(f"{suite}{what}" for suite in suites for what in ("", ": largest rank"))]
    return "\n\n".join(
        [
            "## Ranks shared unevenly",
            "The default truncates every layer to one rank. Here the same number of parameters is shared between the "
            "layers: to have the most energy for the parameters, by every component's share of its own layer's "
            "energy, or in proportion to the layers' effective ranks; a layer's spectrum is made flat and keeps its "
            "norm, all at λ 1. A file has one rank for all layers: written with padding, such a merge is as large as "
            "one of the largest rank.",
            table(head, rows),
        ]
    )


def _mean(records: Sequence[Record], field: str) -> float:
    return fmean(record[field] for record in records)


def _is_ruled(record: Record) -> bool:
    return isinstance(record["scaling"], str) and record["scaling"].startswith("auto:")
