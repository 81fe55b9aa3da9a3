"""gamma of every adapter's components, from two sweeps over the base, for the methods that rank by saliency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from samerge.errors import BaseModelError
from samerge.linalg.factors import LoraFactors
from samerge.methods.problem import Problem
from samerge.saliency.connectivity import connectivity
from samerge.weights.resident import on_device

#: exp of it is still finite.
_LARGEST_LOG = 700.0


@dataclass(frozen=True)
class Gammas:
    """The structural sensitivities of components, relative to R: b_k^T (d log R_n / dW) a_k.

    Args:
        values: (r,) in float64 by module and adapter number, where there are any: not outside the flow graph, and not
            of an adapter whose R is 0, which tells nothing apart.
        log_connectivity: log R by adapter number.
        kernel: the kernel that swept over the base.
    """

    values: Mapping[tuple[str, int], Tensor]
    log_connectivity: Mapping[int, float]
    kernel: str | None

    def of(self, module: str, n: int) -> Tensor | None:
        """gamma of an adapter's components at a site, None where there is none."""
        return self.values.get((module, n))


NO_GAMMAS = Gammas({}, {}, None)


def work(problem: Problem) -> int:
    """Entries of the base that `gammas` sweeps over: twice those of the graph."""
    if problem.graph is None or problem.source is None:
        return 0
    return 2 * sum(math.prod(problem.source.shapes[tensor]) for tensor in problem.graph.tensors)


def near(problem: Problem) -> Problem:
    """The problem with the graph's weights where they are computed with, for as long as `gammas` is called."""
    if problem.graph is None or problem.source is None:
        return problem
    return replace(problem, source=on_device(problem.source, problem.graph.tensors, problem.device))


def gammas(
    problem: Problem,
    updates: Mapping[str, Mapping[int, LoraFactors]],
    advance: Callable[[int], None],
) -> Gammas:
    """gamma of every component of the adapters as they stand, and log R.

    It is taken relative to R, which changes no ranking within an adapter and makes adapters comparable; scales are
    folded in, so that it is the same for (c B, s) and (B, c s).

    Args:
        problem: with its graph and source.
        updates: the adapters' components by module and number; on the meta device where another process holds them.
        advance: called with the number of entries swept.

    Raises:
        BaseModelError: R is not a number, or infinite: the base is broken.
    """
    adapters: list[dict[str, LoraFactors]] = [{} for _ in problem.names]
    places: list[tuple[str, str, int]] = []
    for site in problem.sites:
        if site.inside and site.key is not None:
            for n, factors in updates[site.module].items():
                adapters[n][site.key] = factors
                places.append((site.module, site.key, n))
    if problem.graph is None or problem.source is None or not places:
        return NO_GAMMAS
    owners = {site.key: site.owner for site in problem.sites if site.key is not None and site.owner is not None}
    swept = connectivity(
        problem.graph,
        problem.source,
        adapters,
        device=problem.device,
        advance=advance,
        owners=owners or None,
    )
    logs = swept.log_connectivity
    check_logs(dict(zip(problem.names, logs, strict=True)), problem.source.name)
    values = {}
    for module, key, n in places:
        found = swept.gamma[n].get(key)
        if found is not None and logs[n] > -math.inf:
            values[module, n] = found.values * math.exp(min(found.log - logs[n], _LARGEST_LOG))
    return Gammas(values, dict(enumerate(logs)), swept.kernel)


def check_logs(logs: Mapping[str, float], base: str) -> None:
    """Refuse a base on which the connectivity is no number.

    Args:
        logs: log R by adapter.
        base: the base's name.

    Raises:
        BaseModelError: one is not a number, or infinite.
    """
    for name, log in logs.items():
        if math.isnan(log) or log == math.inf:
            raise BaseModelError(
                f"scoring adapter {name!r} on the base model {base!r}: the connectivity R comes out with log R = "
                f"{log}; a weight of the base holds NaN, infinite or huge values. Check the checkpoint, or choose the "
                f"connectivity local where that weight is not adapted"
            )
