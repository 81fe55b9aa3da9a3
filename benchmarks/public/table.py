"""The table of a suite: published rows, what was measured here of the same merges, and the merges measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from evidence.runs import Setting
from evidence.scores import spearman, unpack
from evidence.table import DEFAULT
from tables import rows as markdown

from public.hub import PublicSuite
from public.published import BASE, OWN, PUBLISHED, SOURCES, Row

Line = Mapping[str, Any]
#: By task; tasks that were not asked are not there.
Scores = Mapping[str, float]


def scores_of(line: Line) -> dict[str, float]:
    """The published metric of every task that was asked, in per cent: right answers, or Spearman's correlation."""
    right = {task: 100 * float(unpack(packed).mean()) for task, packed in line.get("correct", {}).items()}
    return right | {task: 100 * spearman(*numbers) for task, numbers in line.get("numbers", {}).items()}


class Measured:
    """What the lines of a store come to.

    Args:
        suite: which.
        lines: of one identity.
    """

    def __init__(self, suite: type[PublicSuite], lines: Sequence[Line]) -> None:
        self._suite = suite
        self._by_key = {tuple(line["key"]): line for line in lines}
        self.merges = [line for line in lines if line["role"] != "reference" and line["budget"] == "r"]
        known = ((task, self._by_key.get((f"expert {task}",))) for task in suite.tasks)
        self.own = {task: scores_of(line)[task] for task, line in known if line is not None}

    def told(self, line: Line) -> Scores:
        """A line's scores as the source tells them."""
        found = scores_of(line)
        if not self._suite.normalised:
            return found
        return {task: 100 * score / self.own[task] for task, score in found.items() if self.own.get(task)}

    def same(self, row: Row) -> Scores:
        """Of what a published row is the same as; nothing where it was not measured."""
        if row.same == OWN:
            return self.own
        if row.same is None:
            return {}
        line = self._by_key.get(row.same.key() if isinstance(row.same, Setting) else (BASE,))
        return {} if line is None else self.told(line)

    def mean(self, scores: Scores) -> float | None:
        """Over all tasks; none where some are missing."""
        missing = set(self._suite.tasks) - set(scores)
        return None if missing else fmean(scores[task] for task in self._suite.tasks)


def table(suite: type[PublicSuite], lines: Sequence[Line]) -> str:
    """Markdown.

    Args:
        suite: which.
        lines: the measurements of one identity; none leaves the columns and rows of what is measured here empty.
    """
    known = Measured(suite, lines)
    published = PUBLISHED[suite.name]
    cells = []
    for row in published:
        setting = "" if row.rank is None else f"rank {row.rank}"
        scores = map(_figure, row.scores) if row.scores else ("" for _ in suite.tasks)
        cells.append([row.merge, setting, *scores, _figure(row.mean), _figure(known.mean(known.same(row))), row.source])
    for name, setting, line in _own(known):
        told = {} if line is None else known.told(line)
        cells.append(
            [
                f"**{name}**",
                setting,
                *(_figure(told.get(task)) for task in suite.tasks),
                "",
                _figure(known.mean(told)),
                "",
            ]
        )
    head = ["merge", "setting", *suite.tasks, "mean, published", "mean, here", "published by"]
    return "\n\n".join([markdown(head, cells), *_below(suite, published)])


def _own(known: Measured) -> list[tuple[str, str, Line | None]]:
    """Merge, setting and line of what is measured here: untuned, and at the strength that is best for these rows."""
    if not known.merges:
        return [(name, "untuned, the adapters' rank", None) for name in (DEFAULT, "even")]
    found: list[tuple[str, str, Line | None]] = []
    for name in dict.fromkeys(line["merge"] for line in known.merges):
        tried = [line for line in known.merges if line["merge"] == name]
        found += [(name, f"untuned, rank {line['rank']}", line) for line in tried if line["published"]]
        whole = [line for line in tried if known.mean(known.told(line)) is not None]
        best = max(whole, key=lambda line: known.mean(known.told(line)) or 0.0, default=None)
        if best is not None and len(tried) > 1:
            found.append((name, f"best of {len(tried)}: {_strength(best)}, rank {best['rank']}", best))
    return found


def _strength(line: Line) -> str:
    scaling = line["scaling"]
    return scaling if isinstance(scaling, str) else f"λ {scaling:g}"


def _below(suite: type[PublicSuite], published: Sequence[Row]) -> list[str]:
    """What has to be said under the table."""
    score = (
        "A merge's score is in per cent of the own adapter's; own adapters' rows are accuracies."
        if suite.normalised
        else "Scores are exact match and, of stsb, Spearman's correlation, in per cent."
    )
    notes = [f"{row.merge} ({row.source}): {row.note}." for row in published if row.note]
    sources = ", ".join(f"[{name}]({SOURCES[name]})" for name in dict.fromkeys(row.source for row in published))
    return [f"{score} *best*: by these very rows, which nobody can choose by. {' '.join(notes)}".strip(), f"{sources}."]


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
