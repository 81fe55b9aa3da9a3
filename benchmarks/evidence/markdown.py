"""Scores, settings and names as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from evidence.query import Record


def score(record: Record | None, with_interval: bool = False) -> str:
    """The test score, perhaps with its interval; nothing without a record."""
    if record is None:
        return ""
    text = f"{record['test']:.1f}"
    return f"{text} [{record['interval'][0]:.1f}, {record['interval'][1]:.1f}]" if with_interval else text


def setting(record: Record) -> str:
    """Scale and density."""
    scaling = record["scaling"]
    text = scaling if isinstance(scaling, str) else f"λ {scaling:g}"
    return text if record["density"] is None else f"{text}, density {record['density']:g}"


def listed(names: Sequence[str]) -> str:
    """Names with commas."""
    return ", ".join(f"`{name}`" for name in names)
