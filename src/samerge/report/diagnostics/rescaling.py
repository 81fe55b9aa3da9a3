"""The diagnostics of a merge times a number, from its own: neither factors nor experts are looked at again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def rescaled(layer: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """A layer's diagnostics after its merged update M was multiplied with a number.

    With an expert's retention p and interference i, ||M V V^T||^2 / ||tau||^2 = i^2 + 2 p - 1 (`overlap`), so of s M

        p' = s p,    i'^2 = s^2 (i^2 + 2 p - 1) - 2 s p + 1,    spill' = |s| spill

    Which weighted interference there is does not follow from these; it is None.

    Args:
        layer: a layer of a record, with the figures of `diagnose`.
        scale: s.

    Returns:
        The layer with other figures; all else as it was.

    Example:
        >>> own = {"retention": 1.0, "cosine": 1.0, "interference": 0.0, "spill": 0.5, "sign_conflict": 0.0}
        >>> found = rescaled({"effective_rank": 2.0, "experts": {"math": own}}, 0.5)["experts"]["math"]
        >>> found["retention"], found["interference"], found["spill"]
        (0.5, 0.5, 0.25)
    """
    return {
        **layer,
        "effective_rank": layer["effective_rank"] if scale else 0.0,
        "experts": {name: {**share, **_of_expert(share, scale)} for name, share in layer["experts"].items()},
    }


def _of_expert(share: Mapping[str, Any], scale: float) -> dict[str, float | None]:
    retention, conflict = share["retention"], share["sign_conflict"]
    if scale == 0:
        conflict = None  # zero has no signs
    elif scale < 0 and conflict is not None:
        conflict = 1 - conflict
    if retention is None:  # an expert that is zero
        return {"sign_conflict": conflict}
    image = share["interference"] ** 2 + 2 * retention - 1  # ||M V V^T||^2 / ||tau||^2
    return {
        "retention": scale * retention,
        "cosine": math.copysign(1.0, scale) * share["cosine"] if scale else 0.0,
        "interference": math.sqrt(max(0.0, scale**2 * image - 2 * scale * retention + 1)),
        "spill": abs(scale) * share["spill"],
        "weighted_interference": None,
        "sign_conflict": conflict,
    }
