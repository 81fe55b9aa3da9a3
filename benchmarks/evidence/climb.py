"""The strengths to try next: a merge is tried at the neighbours of its best strength until the best has worse ones on
both sides. Where a score has one peak over the strength, that is what the whole grid would say, for half the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from suites.base import Part

from evidence.runs import Setting
from evidence.scores import Gains, has_score, score, unpack

Line = Mapping[str, Any]


def peaks(lines: Sequence[Line], parts: Sequence[Part], grid: Sequence[Setting]) -> list[Setting]:
    """Which settings are missing before the best strength is known; none if it is.

    Args:
        lines: the measurements of one suite, the base's and the adapters' own among them.
        parts: of the suite: each has a best strength of its own.
        grid: one merge at one output rank, at all its strengths that are numbers.

    Returns:
        The published strength if it was not measured; else the neighbours, on the grid, of each part's best.
    """
    grid = sorted((one for one in grid if isinstance(one.scaling, float)), key=lambda one: float(one.scaling))
    known = {tuple(line["key"]): line for line in lines}
    there = [i for i, one in enumerate(grid) if one.key() in known]
    if not there:
        return [next((one for one in grid if one.published), grid[len(grid) // 2])] if grid else []
    wanted: set[int] = set()
    for part in parts:
        gain = _gains(known, part)
        best = max(there, key=lambda i: score(*gain(known[grid[i].key()])))
        wanted |= {i for i in (best - 1, best + 1) if 0 <= i < len(grid)}
    return [grid[i] for i in sorted(wanted - set(there))]


def _gains(known: Mapping[tuple[Any, ...], Line], part: Part) -> Any:
    """A function of a line: what the merge gains on the part's tasks, and what each task's own adapter does."""
    base = known[("base",)]
    losses = {
        task: (unpack(base["losses"][task]), unpack(known[(f"expert {task}",)]["losses"][task]))
        for task in part.tasks
        if (f"expert {task}",) in known
    }
    own = {t: was - has for t, (was, has) in losses.items() if has_score(float(was.mean()), float(has.mean()))}

    def gain(line: Line) -> tuple[Gains, Gains]:
        return {task: losses[task][0] - unpack(line["losses"][task]) for task in own}, own

    return gain
