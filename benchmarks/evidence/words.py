"""Scores, settings and names as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from evidence.store import Record

BUDGETS = {"r": "the adapters' rank", "2r": "twice that rank", "free": "as it comes"}


def score(record: Record | None, half: bool = False) -> str:
    """The score, nothing without a record; on request with half of its interval."""
    if record is None:
        return ""
    low, high = record["interval"] if half else (0.0, 0.0)
    return f"{record['score']:.1f} ± {(high - low) / 2:.1f}" if half else f"{record['score']:.1f}"


def with_interval(record: Record) -> str:
    """The score and its interval."""
    return f"{record['score']:.1f} [{record['interval'][0]:.1f}, {record['interval'][1]:.1f}]"


def difference(three: Sequence[float] | None) -> str:
    """A difference with its interval, low and high."""
    return "" if three is None else f"{three[0]:+.1f} [{three[1]:+.1f}, {three[2]:+.1f}]"


def setting(record: Record) -> str:
    """Strength and density."""
    scaling = record["scaling"]
    text = scaling if isinstance(scaling, str) else f"λ {scaling:g}"
    return text if record["density"] is None else f"{text}, density {record['density']:g}"


def listed(names: Sequence[str]) -> str:
    """Names with commas."""
    return ", ".join(f"`{name}`" for name in names)
