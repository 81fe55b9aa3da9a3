"""What a merge method is: a name, its options, and a function that looks at the whole and gives one for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from samerge.linalg.sign_conflicts import Conflict
from samerge.linalg.sums import Summed
from samerge.linalg.triplets import Triplets
from samerge.methods.problem import Part, Problem, Site
from samerge.options.option import Options


@dataclass(frozen=True)
class Share:
    """What became of one adapter at one site.

    Args:
        components: how many rank-1 components it had.
        kept: which of them are in the merge, None when the method does not choose components.
        energy: share of its squared norm (after the balance) that was kept before anything was combined.
        elements: how many elements of its update were kept, and of how many; None when the method keeps no elements.
        norm: Frobenius norm of its whole update, where the part at hand has not all of it.
    """

    components: int
    kept: tuple[int, ...] | None = None
    energy: float = 1.0
    elements: tuple[int, int] | None = None
    norm: float | None = None


@dataclass(frozen=True)
class MergedLayer:
    """A merged update at scaling 1.0, the weights applied.

    Args:
        update: its triplets.
        shares: what became of the adapters, by number.
        lost: share of the merged energy that the method's own truncation lost.
        conflict: the signs of the adapters' unweighted updates as pruning left them, on `sign_conflicts.sample_rows`;
            None where nothing of them is pruned, or not element by element or component by component.
        summed: the adapters' updates, balanced and unweighted, in the order of their numbers, for the singular values
            of their sums; where the method has them anyway.
    """

    update: Triplets
    shares: Mapping[int, Share]
    lost: float = 0.0
    conflict: Conflict | None = None
    summed: Summed | None = None


#: From a site and the adapters' updates there, by number, the merged layer. The same for every process.
MergeLayer = Callable[[Site, Mapping[int, Part]], MergedLayer]


@dataclass(frozen=True)
class Begun:
    """A merge of which the whole has been looked at.

    Args:
        layer: merges one layer.
        log_connectivity: log R by adapter number, where it was computed.
        kernel: the kernel that swept over the base, where one did.
        notes: what the user should know, one sentence each.
    """

    layer: MergeLayer
    log_connectivity: Mapping[int, float] = field(default_factory=dict)
    kernel: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """A merge method.

    Args:
        name: as users name it.
        begin: looks at the whole problem where it must (scores, thresholds), and gives the function for one layer.
            Pure: neither reads nor writes anything but what the problem reads for it.
        options: the frozen dataclass of the options that only it has.
        base: whether it reads the base's weights: "needed", "wanted" (goes on without, and says so), or "unused".
        scaling: its default.
        balance: its default.
        exact: whether its rank is what comes out unless `rank` says otherwise; by default the largest source rank.
        by_site: whether every site is merged by itself once it has begun, so that processes can share them out.
        summary: one line; that of samerge's own methods is the first line of their file.
    """

    name: str
    begin: Callable[[Problem, Any], Begun]
    options: type[Options] = Options
    base: Literal["needed", "wanted", "unused"] = "unused"
    scaling: float | str = 1.0
    balance: Literal["none", "norm"] = "none"
    exact: bool = False
    by_site: bool = True
    summary: str = ""
