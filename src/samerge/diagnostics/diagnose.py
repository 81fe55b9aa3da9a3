"""The diagnostics of a finished merge, layer by layer, as its record holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from samerge.diagnostics.overlap import effective_rank, overlaps
from samerge.diagnostics.signs import sample_rows, sign_counts
from samerge.diagnostics.summary import summary
from samerge.factors import LoraFactors
from samerge.methods.problem import Problem, Site, by_module


def diagnose(problem: Problem, factors: Mapping[str, LoraFactors]) -> dict[str, dict[str, Any]]:
    """Compare every merged layer with what the experts had there.

    Args:
        problem: the experts as they were brought together.
        factors: the merged adapter as it is written, by module.

    Returns:
        For each module `effective_rank`, `sign_conflict` (among the experts), `sampled` (elements looked at for signs,
        and of how many), and `experts`: for each of them, by name, `retention`, `cosine`, `interference`, `spill`,
        `weighted_interference` (see `overlap`) and `sign_conflict` (with the merged update). None is what does not
        exist, such as the sign conflicts of a single expert with others, or the retention of a zero update.
    """
    return by_module(problem.sites, lambda site: _of_layer(problem, site, factors[site.module]))


def diagnosed(
    problem: Problem, factors: Mapping[str, LoraFactors], layers: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """The diagnostics of the whole merge; those of each layer are added to its record in `layers`.

    Experts of weight 0 take no part and have none.
    """
    with problem.progress.task("diagnosing", len(problem.sites)):
        for module, found in diagnose(problem, factors).items():
            experts = {name: {**layers[module]["experts"][name], **own} for name, own in found["experts"].items()}
            layers[module].update({**found, "experts": experts})
    active = [name for name, weight in zip(problem.names, problem.weights, strict=True) if weight != 0]
    return summary(layers, active)


def _of_layer(problem: Problem, site: Site, written: LoraFactors) -> dict[str, Any]:
    merged = written.to(problem.device, torch.float32).existing()
    parts = problem.factors(site)
    rows = sample_rows(site.shape)
    signs = sign_counts([*parts.values(), merged], rows)
    found = zip(parts, overlaps(merged, list(parts.values())), strict=True)
    return {
        "experts": {
            problem.names[n]: {**one.figures(), "sign_conflict": signs.share(place, len(parts))}
            for place, (n, one) in enumerate(found)
        },
        "effective_rank": effective_rank(merged),
        "sign_conflict": signs.among(len(parts)),
        "sampled": [len(rows) * site.shape[1], site.shape[0] * site.shape[1]],
    }
