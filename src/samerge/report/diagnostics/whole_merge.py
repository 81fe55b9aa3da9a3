"""The diagnostics of a whole merge from those of its layers. Plain values in, plain values out.

Squares add up over layers, so layers count by their energy ||tau||^2; signs by the elements that were looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def summary(layers: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What `diagnostics` in a record holds.

    Args:
        layers: `layers` of a record, each with the figures of `diagnose`.
        names: the experts that take part, in order.

    Returns:
        `experts`: for each `expected_retention`, `retention`, `cosine`, `interference`, `spill`,
        `weighted_interference`, `sign_conflict` (with the merged update), `budget` (its share of the components that
        were kept, None where none are chosen), `norm`. For the merge: `expected_retention` (the mean), `least` (the
        expert with the least), `interference` (the mean), `sign_conflict` (among the experts before the merge),
        `sign_conflict_after` (among what pruning left of them, None where nothing prunes), `signs_left` (pairs of signs
        that there still are, of those before), `norm`, `effective_rank` (mean over the layers), `sampled` (elements of
        the signs' sample, and of how many).
    """
    merged = math.sqrt(sum(layer["norm"] ** 2 for layer in layers.values()))
    experts = {name: _expert(layers, name, merged) for name in names}
    expected = {n: row["expected_retention"] for n, row in experts.items() if row["expected_retention"] is not None}
    ranks = [layer["effective_rank"] for layer in layers.values()]
    return {
        "experts": experts,
        "expected_retention": _mean(list(expected.values())),
        "least": min(expected, key=lambda name: expected[name]) if expected else None,
        "interference": _mean([row["interference"] for row in experts.values() if row["interference"] is not None]),
        **{
            key: weighted_mean((layer[key], layer["sampled"][0]) for layer in layers.values())
            for key in ("sign_conflict", "sign_conflict_after", "signs_left")
        },
        "norm": merged,
        "effective_rank": _mean(ranks),
        "sampled": [sum(layer["sampled"][place] for layer in layers.values()) for place in (0, 1)],
    }


def _expert(layers: Mapping[str, Any], name: str, merged: float) -> dict[str, float | None]:
    found = [(layer, layer["experts"][name]) for layer in layers.values() if name in layer["experts"]]
    own = sum(share["norm"] ** 2 for _, share in found)
    inner = sum(share["norm"] ** 2 * (share["retention"] or 0.0) for _, share in found)
    kept = _kept([share for _, share in found])
    every = _kept([share for layer, _ in found for share in layer["experts"].values()])
    squares = {
        key: weighted_mean((None if share[key] is None else share[key] ** 2, share["norm"] ** 2) for _, share in found)
        for key in ("interference", "spill", "weighted_interference")
    }
    size = math.sqrt(own)
    figures: dict[str, float | None] = {
        "retention": inner / own if own else None,
        "cosine": None if not own else inner / (size * merged) if merged else 0.0,
        **{key: None if square is None else math.sqrt(square) for key, square in squares.items()},
        "sign_conflict": weighted_mean((share["sign_conflict"], layer["sampled"][0]) for layer, share in found),
        "budget": kept / every if kept is not None and every else None,
        "norm": size,
    }
    return {"expected_retention": expected_retention(figures), **figures}


def expected_retention(figures: Mapping[str, float | None]) -> float | None:
    """What share of an expert's work is expected to be left: 1 - interference^2 - spill^2, at least 0.

    The squared error of the merge in place of the expert, relative to what the expert does, over inputs of which one
    half of the energy lies in the directions that the expert reacts to. 1 for the expert itself, 0 for no update.

    Args:
        figures: `interference` and `spill` of the expert over all its layers.

    Example:
        >>> expected_retention({"interference": 0.6, "spill": 0.0})
        0.64
    """
    interference, spill = figures["interference"], figures["spill"]
    return None if interference is None or spill is None else max(0.0, 1 - interference**2 - spill**2)


def _kept(shares: Sequence[Mapping[str, Any]]) -> int | None:
    """How many components were kept; None where the method chooses none."""
    chosen = [share["kept"] for share in shares]
    return None if any(kept is None for kept in chosen) else sum(len(kept) for kept in chosen)


def weighted_mean(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    """The weighted mean of what is known; None where nothing is."""
    known = [(value, weight) for value, weight in pairs if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
