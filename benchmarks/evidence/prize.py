"""The default, untuned, against every other merge at its own best setting: an upper bound that nobody can choose."""

from __future__ import annotations

from collections.abc import Sequence

from tables import rows as table

from evidence.markdown import score, setting
from evidence.query import BUDGETS, Record, Results, default_name, judges, marked, mean_over_suites, merges

#: A default that loses no more than this, in points, leaves little to tune.
MARGIN = 0.5


def prize(results: Results) -> str:
    """For every output rank and judging suite, and their mean: the default and the best other merge at its best.

    Variants of the default, "<default>, ...", are no others.
    """
    suites = judges(results)
    rows = [row for budget in BUDGETS for row in _rows(results, budget, suites)]
    if not rows:
        return ""
    own = default_name(results)
    head = ["output rank", "suite", f"`{own}`, untuned", "best other merge", "at", "its score", "the default to it"]
    text = (
        f"The default `{own}`, with nothing tuned, and the best of all other merges at the scale and density that are "
        "best for it on the very rows it is scored on. On a mean every merge has its own best setting for each suite. "
        "Intervals are of the paired difference."
    )
    return "\n\n".join(["## Untuned against the best that can be tuned", text, table(head, rows), _verdict(rows)])


def _rows(results: Results, budget: str, suites: Sequence[str]) -> list[list[str]]:
    own = default_name(results)
    others = [merge for merge in merges(results) if merge != own and not merge.startswith(f"{own},")]
    found = []
    for suite in suites:
        default = marked(results, own, suite, budget, "published")
        bests = [(merge, record) for merge in others if (record := _best(results, merge, suite, budget)) is not None]
        if default is None or not bests:
            continue
        merge, best = max(bests, key=lambda pair: float(pair[1]["test"]))
        change, low, high = (-value for value in best["to_default"])
        interval = f"{change:+.1f} [{high:+.1f}, {low:+.1f}]"
        found.append([BUDGETS[budget], suite, score(default), merge, setting(best), score(best), interval])
    mean = mean_over_suites(results, own, budget, "published", suites)
    means = {merge: value for merge in others if (value := _mean(results, merge, budget, suites)) is not None}
    if mean is not None and means and len(suites) > 1:
        merge = max(means, key=lambda name: means[name])
        found.append(
            [BUDGETS[budget], "mean", f"{mean:.1f}", merge, "", f"{means[merge]:.1f}", f"{mean - means[merge]:+.1f}"]
        )
    return found


def _best(results: Results, merge: str, suite: str, budget: str) -> Record | None:
    """The setting with the best test score; the only one, where there is one."""
    return marked(results, merge, suite, budget, "best") or marked(results, merge, suite, budget, "published")


def _mean(results: Results, merge: str, budget: str, suites: Sequence[str]) -> float | None:
    bests = [_best(results, merge, suite, budget) for suite in suites]
    if any(best is None for best in bests):
        return None
    return sum(float(best["test"]) for best in bests if best is not None) / len(bests)


def _verdict(rows: Sequence[Sequence[str]]) -> str:
    behind = [(row[0], row[1], float(row[-1].split()[0])) for row in rows]
    lost = [f"{rank} on {suite} ({change:+.1f})" for rank, suite, change in behind if change < -MARGIN]
    if not lost:
        return f"Everywhere it is within {MARGIN} of the best, or ahead."
    return f"It is within {MARGIN} of the best, or ahead, but for: {', '.join(lost)}."
