"""How one merged layer, as it is written, compares with the adapters as they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from samerge.linalg.factors import LoraFactors
from samerge.linalg.sign_conflicts import Conflict, sample_rows, sign_counts
from samerge.report.diagnostics.overlap import effective_rank, overlaps


def diagnosed_layer(
    shape: tuple[int, int],
    written: LoraFactors,
    trained: Mapping[int, LoraFactors],
    after: Conflict | None,
    names: Sequence[str],
    weights: Mapping[str, float],
) -> dict[str, Any]:
    """Compare a merged layer with what the adapters had there.

    Args:
        shape: (out, in).
        written: the merged update as it is written.
        trained: the adapters' updates as they were trained (without balance and weight), by number.
        after: the sign conflicts that pruning left, where something was pruned.
        names: of the adapters, by number.
        weights: of the adapters, by name.

    Returns:
        `effective_rank`, `sign_conflict` (among the adapters), `sign_conflict_after` (among what pruning left of them),
        `signs_left` (of the pairs of signs that were compared before it, how many still are), `sampled` (elements
        looked at for signs, and of how many), and `experts`: for each of them, by name, `retention`, `cosine`,
        `interference`, `spill`, `weighted_interference` (see `overlap`) and `sign_conflict` (with the merged update).
        None is what does not exist.
    """
    device = next(iter(trained.values())).A.device if trained else written.A.device
    merged = written.to(device, torch.float32).existing()
    rows = sample_rows(shape)
    signs = sign_counts([*trained.values(), merged], rows)
    before = signs.among(len(trained))
    found = zip(trained, overlaps(merged, list(trained.values())), strict=True)
    return {
        "experts": {
            names[n]: {**one.figures(), "sign_conflict": signs.share(place, len(trained))}
            for place, (n, one) in enumerate(found)
        },
        "effective_rank": effective_rank(merged),
        "sign_conflict": before.share,
        "sign_conflict_after": after.share if after else None,
        "signs_left": after.compared / before.compared if after and before.compared else None,
        "sampled": [len(rows) * shape[1], shape[0] * shape[1]],
    }
