"""The merges that are compared: one line each, with the scales and densities that are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["default", "own", "published", "comparator", "rule", "variation"]
Budget = Literal["r", "2r", "free"]

#: Whom paired differences are taken to: what `merge(base, adapters)` does.
DEFAULT = "saliency"
#: samerge's own.
OURS = (DEFAULT, "even")

#: The same scales for every method, so that none is tuned more finely than another.
SCALES: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0)
#: Multiples of the adapters' mean norm.
NORMS: tuple[str, ...] = ("auto:1.0", "auto:1.3", "auto:1.6", "auto:2.0")

#: All output ranks.
ALL: tuple[Budget, ...] = ("r", "free", "2r")

#: A rank that no layer reaches: nothing is truncated.
FULL = 1 << 20


@dataclass(frozen=True)
class Family:
    """A merge in all the settings that are tried.

    Args:
        name: on the page.
        role: what it is here for. A variation of a method is no merge of its own in tables of methods.
        options: of `samerge.merge`, beside scaling, density and rank; by default the method of its name.
        scalings: what `merge(scaling=...)` knows: lambda as a number, or "auto:<c>" for c times the mean norm.
        published: the scaling that a user gets who tunes nothing; it is tried as well.
        densities: the first is the published one; None where the method has none, or it is not used.
        budgets: output ranks: the adapters' own, twice as much, or as much as the method gives.
        seeds: for methods that draw at random.
        first: which families are run first.
    """

    name: str
    role: Role = "comparator"
    options: Mapping[str, Any] = field(default_factory=dict)
    scalings: tuple[float | str, ...] = SCALES
    published: float | str = 1.0
    densities: tuple[float | None, ...] = (None,)
    budgets: tuple[Budget, ...] = ALL
    seeds: tuple[int | None, ...] = (None,)
    first: int = 3

    def arguments(self, budget: Budget, rank: int, density: float | None, seed: int | None) -> dict[str, Any]:
        """Arguments of `samerge.merge` but for the scaling.

        Args:
            budget: which output rank.
            rank: the adapters' own.
            density: or None.
            seed: or None.
        """
        given = {"density": density, "seed": seed}
        return {
            **(self.options or {"method": self.name}),
            **{name: value for name, value in given.items() if value is not None},
            "rank": {"r": rank, "2r": 2 * rank, "free": FULL}[budget],
        }

    def all_scalings(self) -> tuple[float | str, ...]:
        """Those that are tried, the published one first."""
        return (self.published, *(one for one in self.scalings if one != self.published))


RULED = (*SCALES, *NORMS)

#: What the paper's figures 3a and 3b vary; its own settings are 0.1 and 10.
SHARES: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
ITERATIONS: tuple[int, ...] = (1, 2, 5, 10, 20)
AS_PUBLISHED: Mapping[str, Any] = {"scalings": (0.5, 0.7, 1.0), "budgets": ("free",), "first": 5}

FAMILIES: tuple[Family, ...] = (
    Family("saliency", "default", scalings=RULED, first=0),
    Family("even", "own", scalings=RULED, first=0),
    # A tenth of r components of each adapter: no more than r together, for up to ten adapters.
    Family("paper", "published", scalings=(*SCALES, "auto:1.3"), budgets=("r",), first=0),
    # The paper's own figures: the share that is kept, and the number of iterations; nothing is truncated.
    *(
        Family(f"paper, p {share:g}", "variation", {"method": "paper", "density": share}, **AS_PUBLISHED)
        for share in SHARES
    ),
    *(Family(f"paper, T {n}", "variation", {"method": "paper", "iterations": n}, **AS_PUBLISHED) for n in ITERATIONS),
    *(Family(name, scalings=RULED, first=1) for name in ("linear", "tsv", "iso-c")),
    Family("iso-cts", first=2),
    Family("dc-merge", densities=(0.001,), first=2),
    Family("dc-merge, sum", options={"method": "dc-merge", "aggregate": "sum", "density": 1.0}, first=2),
    *(Family(name, first=2) for name in ("svc", "ace", "pico", "consensus")),
    Family("localize-and-stitch", densities=(0.05, 0.1), first=2),
    Family("doge", scalings=RULED, densities=(0.3,), first=6),
    Family("linear, weights nan", "rule", {"method": "linear", "weights": "nan"}, (0.5, 0.7), first=2),
    Family("wudi", first=2),
    Family("wudi, ridge 0.1", options={"method": "wudi", "mu": 0.1}, first=2),
    Family("knots-ties", densities=(0.2, 0.5), first=2),
    Family("ties", densities=(0.2, 0.5), first=2),
    Family("star"),
    Family("core-ties", densities=(0.2,)),
    Family("dare", densities=(0.1,), seeds=(0,)),
    Family("dare-ties", densities=(0.1,), seeds=(0,)),
    Family("pcb", published=1.2, densities=(0.1,)),
    Family("magnitude-prune", densities=(0.2,)),
    Family("della", densities=(0.3,), seeds=(0,)),
    Family("breadcrumbs", published=0.3, densities=(0.14,)),
    Family("aswudi"),
    Family("ctm", published=0.75, densities=(0.25,), budgets=("r", "2r")),
    Family("lora-lego", budgets=("r", "2r"), seeds=(0,)),
    Family("robustmerge", published=4.0, densities=(0.2,)),
    Family("elementwise", scalings=(*SCALES, "auto:1.3"), published="auto:1.3", densities=(0.1,), first=6),
)
