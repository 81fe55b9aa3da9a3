"""What rules for the scale that need no data lose against the best scale on the grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tables import rows as table

from evidence.query import BUDGETS, MAIN, Record, Results, merges, select

#: As many scales must have been tried for the best of them to count as the best.
ENOUGH = 4


@dataclass(frozen=True)
class Regret:
    """One merge of one suite at one output rank.

    Args:
        suite, merge, budget: which.
        best: its record at the best number, by the test rows.
        losses: test score at each rule less that of the best; "unit" is λ 1, as all weights are.
    """

    suite: str
    merge: str
    budget: str
    best: Record
    losses: dict[str, float]

    @property
    def flat(self) -> bool:
        """Whether the merged spectrum is flat."""
        return self.merge.startswith(("even", "iso-c"))


def regrets(results: Results) -> list[Regret]:
    """Every merge that was tried at enough numbers and at rules as well."""
    found = []
    for suite in results["suites"]:
        for merge in merges(results, MAIN):
            for budget in BUDGETS:
                records = select(results, suite=suite, merge=merge, budget=budget)
                own = [record for record in records if record["density"] == records[0]["density"]]
                numbers = {r["scaling"]: r for r in own if not isinstance(r["scaling"], str)}
                rules = {r["scaling"]: r for r in own if isinstance(r["scaling"], str)}
                if not rules or len(numbers) < ENOUGH:
                    continue
                best = max(numbers.values(), key=lambda record: float(record["test"]))
                rules |= {"unit": numbers[1.0]} if 1.0 in numbers else {}
                losses = {name: float(rule["test"] - best["test"]) for name, rule in sorted(rules.items())}
                found.append(Regret(suite, merge, budget, best, losses))
    return found


def scale(results: Results) -> str:
    """The section of the page."""
    found = regrets(results)
    if not found:
        return ""
    return "\n\n".join(
        [
            "## Scale without data",
            "The best λ of the grid, chosen on the test rows themselves, and what a rule that needs no data scores "
            "beside it. `auto:c` brings every layer to c times the experts' mean norm; `unit` is λ 1 here, where all "
            "weights are 1. First the mean and the worst over all suites, merges and output ranks at which a rule was "
            "tried, with how many these are; below one by one.",
            "![Score against scale](pictures/earlier-scale.png)",
            table(["rule", "spectra as they are", "worst", "flat spectra", "worst"], _summary(found)),
            table(
                ["suite", "merge", "output rank", "best λ", "rules, to the best λ"],
                [
                    [
                        *(one.suite, one.merge, BUDGETS[one.budget]),
                        f"{one.best['test']:.1f} at {one.best['scaling']:g}",
                        ", ".join(f"{name} {loss:+.1f}" for name, loss in one.losses.items()),
                    ]
                    for one in found
                ],
            ),
        ]
    )


def _summary(found: Sequence[Regret]) -> list[list[str]]:
    rows = []
    for rule in sorted({name for one in found for name in one.losses}):
        cells = [rule]
        for flat in (False, True):
            losses = [one.losses[rule] for one in found if one.flat == flat and rule in one.losses]
            cells += (
                [f"{sum(losses) / len(losses):+.1f} ({len(losses)})", f"{min(losses):+.1f}"] if losses else ["", ""]
            )
        rows.append(cells)
    return rows
