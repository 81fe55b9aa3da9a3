"""Whether a merge of singular triplets fits into memory, told before it begins."""

from __future__ import annotations

from collections.abc import Callable

from samerge.errors import AdapterError
from samerge.methods.problem import Problem
from samerge.parallel.memory import free_bytes

#: Bytes of working memory that torch's libraries take when they are first used.
_LIBRARIES = 32 << 20


def check_memory(
    problem: Problem, held: int = 0, work: Callable[[tuple[int, int], int], int] | None = None, masks: bool = False
) -> None:
    """Refuse a merge that cannot fit.

    Args:
        problem: the problem; nothing of it is read.
        held: numbers that are held of all layers at once, for each row, column and component.
        work: bytes that the work on a layer takes, from its shape and the number of components; by singular triplets
            as `layer_bytes` says.
        masks: whether a bit for each element of each adapter is held of all layers, too.

    Raises:
        AdapterError: there is less memory than it needs.
    """
    free = free_bytes(problem.device)
    if free is None or not problem.own:
        return
    ranks = [[one.rank for n, one in site.experts.items() if problem.weights[n] != 0] for site in problem.own]
    needs = [(work or layer_bytes)(site.shape, sum(own)) for site, own in zip(problem.own, ranks, strict=True)]
    at = needs.index(max(needs))
    site = problem.own[at]
    total = needs[at]
    for one, own in zip(problem.own, ranks, strict=True):
        total += 4 * held * sum(one.shape) * sum(own) + masks * len(own) * one.shape[0] * -(-one.shape[1] // 8)
    if total > free:
        raise AdapterError(
            f"merging {len(ranks[at])} adapters: their {sum(ranks[at])} components in layer {site.module} "
            f"({site.shape[0]} x {site.shape[1]}) need about {_told(needs[at])} of memory"
            f"{f', with what is held of all layers {_told(total)}' if held or masks else ''}, but "
            f"only {_told(free)} are free on {problem.device}. "
            f"Merge fewer adapters at a time (merges can be merged), compress them to a smaller "
            f"rank before (samerge compress), or use a machine with more memory"
        )


def layer_bytes(shape: tuple[int, int], components: int) -> int:
    """Bytes that one layer takes: factors, triplets, their stack, its Gram matrices and what is made of them.

    Factors as trained and balanced, triplets, components and stack in float32, three sides in float64; a Gram matrix,
    its eigenvectors and the room that LAPACK asks for them, as large as the lesser of the number of components and the
    layer's width; and what the libraries take once. An upper bound: on a layer 2048 wide, R components of adapters of
    rank 16, `benchmarks/decorrelation.py` measured in MiB

        R               128   1024   1984   4096   16384
        this             54    256    553    928    3040
        `even`           26    176    455    380    1046
        `saliency`       26    176    485    390    1052

    (from the layer's width on, these two do without the larger Gram matrices). Of the others `ace` comes nearest at
    R = 4096, 844, and `dc-merge` alone takes more, 1191.

    Args:
        shape: (d_out, d_in).
        components: of all adapters, R.

    Example:
        >>> layer_bytes((2048, 2048), 4096) >> 20
        928
    """
    side = max(shape)
    return 20 * sum(shape) * components + 48 * side * components + 48 * min(components, side) ** 2 + _LIBRARIES


def factor_bytes(shape: tuple[int, int], components: int) -> int:
    """Bytes that one layer takes where factors are only weighted, pruned or put side by side.

    Factors as trained and balanced, and what is made of them, in float32; and what the libraries take once. A quarter
    more than `benchmarks/decorrelation.py` measured of `linear`, `robustmerge` and `paper`.

    Args:
        shape: (d_out, d_in).
        components: of all adapters, R.

    Example:
        >>> factor_bytes((2048, 2048), 4096) >> 20
        288
    """
    return 16 * sum(shape) * components + _LIBRARIES


def _told(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(1, size >> 20)} MiB"
