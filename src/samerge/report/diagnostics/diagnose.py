"""The diagnostics of a finished merge, layer by layer, as its record holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from samerge.linalg.factors import LoraFactors
from samerge.linalg.sign_conflicts import Conflict, sample_rows, sign_counts
from samerge.methods.problem import Outcome, Problem, Site, by_module
from samerge.report.diagnostics.overlap import effective_rank, overlaps
from samerge.report.diagnostics.whole_merge import summary


def diagnose(problem: Problem, outcome: Outcome, factors: Mapping[str, LoraFactors]) -> dict[str, dict[str, Any]]:
    """Compare every merged layer with what the experts had there.

    Args:
        problem: the experts as they were brought together.
        outcome: what the merge gave back, with the conflicts that its pruning left.
        factors: the merged adapter as it is written, by module.

    Returns:
        For each module `effective_rank`, `sign_conflict` (among the experts), `sign_conflict_after` (among what pruning
        left of them), `signs_left` (of the pairs of signs that were compared before it, how many still are), `sampled`
        (elements looked at for signs, and of how many), and `experts`: for each of them, by name, `retention`,
        `cosine`, `interference`, `spill`, `weighted_interference` (see `overlap`) and `sign_conflict` (with the merged
        update). None is what does not exist, such as the sign conflicts of a single expert with others, those after
        pruning where nothing prunes, or the retention of a zero update.
    """

    def of_layer(site: Site) -> dict[str, Any]:
        return _of_layer(problem, site, factors[site.module], outcome.layers[site.module].conflict)

    return by_module(problem.sites, of_layer)


def diagnosed(
    problem: Problem, outcome: Outcome, factors: Mapping[str, LoraFactors], layers: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """The diagnostics of the whole merge; those of each layer are added to its record in `layers`.

    Experts of weight 0 take no part and have none.
    """
    with problem.progress.task("diagnosing", len(problem.sites)):
        for module, found in diagnose(problem, outcome, factors).items():
            experts = {name: {**layers[module]["experts"][name], **own} for name, own in found["experts"].items()}
            layers[module].update({**found, "experts": experts})
    active = [name for name, weight in zip(problem.names, problem.weights, strict=True) if weight != 0]
    return summary(layers, active)


def _of_layer(problem: Problem, site: Site, written: LoraFactors, after: Conflict | None) -> dict[str, Any]:
    merged = written.to(problem.device, torch.float32).existing()
    parts = problem.factors(site)
    rows = sample_rows(site.shape)
    signs = sign_counts([*parts.values(), merged], rows)
    before = signs.among(len(parts))
    found = zip(parts, overlaps(merged, list(parts.values())), strict=True)
    return {
        "experts": {
            problem.names[n]: {**one.figures(), "sign_conflict": signs.share(place, len(parts))}
            for place, (n, one) in enumerate(found)
        },
        "effective_rank": effective_rank(merged),
        "sign_conflict": before.share,
        "sign_conflict_after": after.share if after else None,
        "signs_left": after.compared / before.compared if after and before.compared else None,
        "sampled": [len(rows) * site.shape[1], site.shape[0] * site.shape[1]],
    }
