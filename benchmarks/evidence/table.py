"""The merges that are compared: one line each, with the scales and densities that are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evidence.shares import Rule

Role = Literal["default", "own", "published", "comparator", "rule", "ablation", "chain", "shares"]
Budget = Literal["r", "2r", "free"]

#: The same scales for every method, so that none is tuned more finely than another.
SCALES: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
#: Multiples of the experts' mean norm.
NORMS: tuple[str, ...] = ("auto:1.0", "auto:1.3", "auto:1.6", "auto:2.0")
#: Those that variants of the selection are tried at.
ABLATED_AT: tuple[str, ...] = NORMS[:3]
#: Rules that look at what the experts lose.
INTERFERENCE: tuple[str, ...] = ("interference", "interference:layer")

#: All output ranks.
ALL: tuple[Budget, ...] = ("r", "free", "2r")

#: A rank that no layer reaches: nothing is truncated.
FULL = 1 << 20


@dataclass(frozen=True)
class Family:
    """A merge in all the settings that are tried.

    Args:
        name: on the page.
        role: what it is here for.
        options: of `samerge.merge`, beside scaling, density, rank and svd_rank.
        scalings: lambda as a number, "auto:<c>" for c times the experts' mean norm, or any other string that
            `merge(scaling=...)` knows.
        published: the scaling that a user gets who tunes nothing; it is tried as well.
        densities: the first is the published one; None where the method has none.
        budgets: output ranks: the experts' own, twice as much, or as much as the method gives.
        sizing: how a budget is met: "truncate" the result, or the method's own option "rank" or "svd_rank".
        shares: how the layers share a budget that they are truncated to, unless equally; their spectra are made flat
            thereafter.
        free: options at the budget "free".
        seeds: for methods that draw at random.
        first: which families are run first.
        design: only on the suites that were looked at while the defaults were chosen.
    """

    name: str
    role: Role
    options: Mapping[str, Any]
    scalings: tuple[float | str, ...] = SCALES
    published: float | str = 1.0
    densities: tuple[float | None, ...] = (None,)
    budgets: tuple[Budget, ...] = ALL
    sizing: Literal["truncate", "rank", "svd_rank"] = "truncate"
    shares: Rule | None = None
    free: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int | None, ...] = (None,)
    first: int = 5
    design: bool = False

    def arguments(self, budget: Budget, rank: int, density: float | None, seed: int | None) -> dict[str, Any]:
        """Arguments of `samerge.merge` but for the scaling.

        Args:
            budget: which output rank.
            rank: the experts' own.
            density: or None.
            seed: or None.
        """
        found = dict(self.options)
        if density is not None:
            found["density"] = density
        if seed is not None and found.get("selection") == "random":
            found["selection"] = f"random:{seed}"
        elif seed is not None:
            found["method_options"] = {**found.get("method_options", {}), "seed": seed}
        if budget == "free":
            found.update(self.free)
        elif self.sizing != "truncate":
            found[self.sizing] = rank if budget == "r" else 2 * rank
            if self.sizing == "rank":
                found.pop("density", None)
        else:
            found.update(self.free)
        return found

    def all_scalings(self) -> tuple[float | str, ...]:
        """Those that are tried, the published one first."""
        return (self.published, *(one for one in self.scalings if one != self.published))


def _rows(method: str, densities: tuple[float, ...], published: float, first: int, random: bool = False) -> Family:
    """An elementwise method: its full result, then truncated."""
    return Family(
        method,
        "comparator",
        {"method": method},
        published=published,
        densities=densities,
        free={"svd_rank": FULL},
        seeds=(0,) if random else (None,),
        first=first,
    )


def _ablation(name: str, seeds: tuple[int | None, ...] = (None,), **options: Any) -> Family:
    """A variant of the default's selection at the experts' rank; three multiples of the norm."""
    rank = "density" not in options
    return Family(
        name,
        "ablation",
        {"selection": "saliency", **options},
        scalings=ABLATED_AT,
        published="auto:1.3",
        budgets=("r",),
        sizing="rank" if rank else "truncate",
        seeds=seeds,
        first=4,
        design=True,
    )


def _chain(aggregation: str, balance: str, spectrum: str, density: float | None = None) -> Family:
    """Links of a composed merge; four multiples of the norm."""
    parts = [
        *(["norm balance"] if balance == "norm" else []),
        *([f"saliency {density}"] if density else []),
        "wudi, ridge 0.1" if aggregation == "wudi" else aggregation,
        *(["flat"] if spectrum == "flat" else []),
    ]
    return Family(
        "chain: " + " + ".join(parts),
        "chain",
        {
            "aggregation": aggregation,
            "balance": balance,
            "spectrum": spectrum,
            **({"selection": "saliency", "density": density} if density else {}),
            **({"method_options": {"mu": 0.1}} if aggregation == "wudi" else {}),
        },
        scalings=NORMS,
        published="auto:1.6" if spectrum == "flat" else "auto:1.3",
        budgets=("r",),
        sizing="svd_rank",
        free={"svd_rank": FULL},
        first=5,
        design=True,
    )


def _shared(rule: Rule, by: str) -> Family:
    """The default, but for its rank: the layers share its parameters by a rule."""
    return Family(
        f"even, ranks by {by}",
        "shares",
        {"aggregation": "tsv", "balance": "norm", "spectrum": "kept"},
        scalings=(1.0,),
        budgets=("r", "2r"),
        shares=rule,
        free={"svd_rank": FULL},
        first=4,
        design=True,
    )


def _ruled(method: str, *budgets: Budget) -> Family:
    """A method that every rule of the scale is tried with."""
    scalings = (*SCALES, *NORMS, *INTERFERENCE)
    return Family(method, "comparator", {"method": method}, scalings=scalings, budgets=budgets or ALL, first=1)


def _weighted(rule: str) -> Family:
    """The plain sum with weights that a rule finds."""
    options = {"method": "linear", "weights": rule}
    return Family(f"linear, weights {rule}", "rule", options, scalings=(0.5, 0.7), budgets=("r", "free"), first=2)


FAMILIES: tuple[Family, ...] = (
    Family(
        "saliency",
        "own",
        {"method": "saliency"},
        scalings=(*SCALES, *NORMS),
        budgets=ALL,
        published="auto:1.3",
        sizing="rank",
        free={"density": 0.5},
        first=0,
    ),
    Family(
        "paper's recipe",
        "published",
        {"recipe": "paper"},
        scalings=(*SCALES, "auto:1.3"),
        budgets=("r",),  # a tenth of r components each: no more than r together, for up to ten experts
        first=0,
    ),
    Family(
        "even",
        "default",
        {"recipe": "even"},
        scalings=(*SCALES, *NORMS, *INTERFERENCE),
        published=1.0,  # what scaling="unit" is with weights of 1
        sizing="svd_rank",
        free={"svd_rank": FULL},
        first=0,
    ),
    *(_ruled(method) for method in ("linear", "tsv")),
    # A flat spectrum has no leading directions to keep: so at a lower rank it is the sum that is truncated first.
    _ruled("iso-c", "free"),
    Family(
        "iso-c, of the truncated sum",
        "comparator",
        {"aggregation": "sum", "spectrum": "flat"},
        scalings=(*SCALES, *NORMS),
        budgets=("r", "2r"),
        sizing="svd_rank",
        first=1,
    ),
    _weighted("auto"),
    _weighted("nan"),
    Family(
        "even, weights auto",
        "rule",
        {"recipe": "even", "weights": "auto"},
        scalings=(),
        published="unit",
        budgets=("r",),
        sizing="svd_rank",
        first=2,
    ),
    Family("wudi", "comparator", {"method": "wudi"}, first=2),
    Family("wudi, ridge 0.1", "comparator", {"method": "wudi", "method_options": {"mu": 0.1}}, first=2),
    Family("knots-ties", "comparator", {"method": "knots-ties"}, densities=(0.2, 0.5), first=2),
    _rows("ties", (0.2, 0.5), 1.0, first=2),
    Family("star", "comparator", {"method": "star"}, first=3),
    Family("core-ties", "comparator", {"method": "core-ties"}, densities=(0.2,), first=3),
    _rows("dare", (0.1,), 1.0, first=3, random=True),
    _rows("dare-ties", (0.1,), 1.0, first=3, random=True),
    _rows("pcb", (0.1,), 1.2, first=3),
    _rows("magnitude-prune", (0.2,), 1.0, first=3),
    _rows("della", (0.3,), 1.0, first=3, random=True),
    _rows("breadcrumbs", (0.14,), 0.3, first=3),
    Family("aswudi", "comparator", {"method": "aswudi"}, first=3),
    Family(
        "ctm",
        "comparator",
        {"method": "ctm"},
        published=0.75,
        densities=(0.25,),
        budgets=("r", "2r"),
        sizing="svd_rank",
        first=3,
    ),
    Family(
        "lora-lego",
        "comparator",
        {"method": "lora-lego"},
        budgets=("r", "2r"),
        sizing="rank",
        seeds=(0,),
        first=3,
    ),
    Family("robustmerge", "comparator", {"method": "robustmerge"}, published=4.0, densities=(0.2,), first=3),
    Family(
        "elementwise",
        "comparator",
        {"method": "elementwise"},
        scalings=(*SCALES, "auto:1.3"),
        published="auto:1.3",
        densities=(0.1,),
        free={"svd_rank": FULL},
        first=6,
    ),
    _ablation("native basis", basis="native"),
    *(_ablation(f"by {name}", selection=name) for name in ("sensitivity", "agreement", "norm")),
    _ablation("by chance", selection="random", seeds=(0, 1, 2)),
    *(_ablation(f"native, by {name}", selection=name, basis="native") for name in ("sensitivity", "agreement", "norm")),
    _ablation("native, by chance", selection="random", basis="native", seeds=(0, 1, 2)),
    Family(
        "STAR's truncation instead",
        "ablation",
        {"method": "star"},
        scalings=ABLATED_AT,
        published="auto:1.3",
        budgets=("r",),
        first=4,
        design=True,
    ),
    _ablation("T = 1", iterations=1),
    _ablation("T = 3", iterations=3),
    _ablation("native, T = 1", basis="native", iterations=1),
    _ablation("no residual edges", residual=False),
    _ablation("local connectivity", connectivity="local"),
    _ablation("signed agreement", agreement="signed"),
    *(_ablation(f"density {d}", density=d) for d in (0.05, 0.125, 0.3, 0.5)),
    *(_ablation(f"native, density {d}", density=d, basis="native") for d in (0.05, 0.125, 0.3, 0.5)),
    _ablation("density 0.125, global scope", density=0.125, scope="global"),
    _ablation("density adaptive:0.125", density="adaptive:0.125"),
    # What is not here: sum, tsv and sum + flat (Iso-C) by themselves (above, with the same norms), and balance + tsv +
    # flat (even).
    *(_chain("sum", "norm", spectrum) for spectrum in ("kept", "flat")),
    _chain("tsv", "none", "flat"),
    _chain("tsv", "norm", "kept"),
    *(_chain("wudi", balance, spectrum) for balance in ("none", "norm") for spectrum in ("kept", "flat")),
    *(_chain("tsv", "norm", "flat", density) for density in (0.25, 0.5, 0.75)),
    *(_chain("tsv", "none", "kept", density) for density in (0.25, 0.5, 0.75)),
    *(_chain("sum", "norm", "flat", density) for density in (0.25, 0.5, 0.75)),
    _shared("energy", "energy"),
    _shared("relative", "relative energy"),
    _shared("effective", "effective rank"),
)
