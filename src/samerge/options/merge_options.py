"""The options of a merge: one frozen dataclass that fills in the recipe's defaults and checks itself once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from samerge.errors import OptionError
from samerge.graph import FlowGraph
from samerge.options.values import check_scaling, choice, density_mean, whole

if TYPE_CHECKING:
    import torch

Basis = Literal["svd", "native"]
Agreement = Literal["absolute", "signed", "paper", "task"]
Scope = Literal["layer", "global"]
Precision = Literal["float32", "float64"]
Balance = Literal["none", "norm", "global"]
Spectrum = Literal["kept", "flat"]

#: The agreements that a method knows, its default first.
AGREEMENTS: Mapping[str, tuple[str, ...]] = {"elementwise": ("paper", "task")}
_AGREEMENTS = ("absolute", "signed")

#: What every option is unless a recipe or the caller says otherwise. `scaling` depends on the method.
DEFAULTS: Mapping[str, Any] = {
    "iterations": 10,
    "refresh": 1,
    "precision": "float32",
    "basis": "svd",
    "scope": "layer",
    "connectivity": "flow",
    "residual": True,
    "prune_outside": True,
    "selection": "none",
    "aggregation": "sum",
    "balance": "none",
    "spectrum": "kept",
    "fit": False,
}

#: The criteria of a selection (`samerge.methods.criteria`).
SELECTIONS = ("none", "saliency", "sensitivity", "agreement", "norm", "random", "random:<seed>")

#: Named sets of options; an explicit value wins over them.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "iterations": 10,
        "basis": "native",
        "density": 0.1,
        "scaling": 1.0,
        "scope": "layer",
        "connectivity": "flow",
        "residual": False,
        "prune_outside": False,
    },
    "even": {
        "balance": "norm",
        "aggregation": "tsv",
        "spectrum": "flat",
        "scaling": "unit",
        "fit": True,
    },
}

#: The recipe of a merge of which nothing is named: no method, recipe, selection or aggregation.
DEFAULT_RECIPE = "even"


@dataclass(frozen=True)
class MergeOptions:
    """Options of one merge, all filled in.

    Args:
        method: name in the registry.
        recipe: named set of defaults, or None.
        rank: exact number of rank-1 components in every merged layer.
        density: share of its components (or elements) that each expert keeps in each layer, in (0, 1]; or "adaptive",
            "adaptive:<mean>". Instead of `rank`.
        iterations: scoring and pruning steps T, at least 1.
        basis: rank-1 components of what: singular triplets, or the columns and rows as trained.
        scaling: a number lambda, "auto" or "auto:<c>" for the norm rule, "unit", "lines:<alpha>:<beta>", "interference"
            or "interference:layer".
        agreement: what a score makes of signs; which ones there are depends on the method.
        scope: rank components in each layer and expert apart, or over all layers of an expert.
        connectivity: "flow" through the family's graph, "local" (every layer by itself), or a graph of one's own.
        residual: whether the graph has the residual edges.
        prune_outside: whether modules outside the graph are pruned (by |eta| alone).
        svd_rank: truncate every merged layer to this rank afterwards.
        dtype: of the output; the adapters' own by default.
        device: where to compute.
        modules_to_save: what becomes of fully trained modules and token rows: "average", "take:<adapter>" or "drop".
        dora: "exact" or "exact:<rank>" converts DoRA adapters on the way.
        method_options: what only this method has, as its frozen dataclass; None for a method without any.
        selection: which rank-1 components take part: a criterion, "random:<seed>", or "none" for all.
        aggregation: how they are combined: a method's name, or "sum".
        aggregation_density: the aggregation's own density where `density` is the selection's.
        balance: whether the experts are brought to one norm first: "norm", in each layer; "global", as a whole.
        spectrum: "flat" makes the singular values of every merged layer equal.
        fit: whether the result has the largest source rank where `svd_rank` says no other.
        refresh: gamma is computed anew every so many iterations; 0 for the first one alone.
        precision: what the flows and gamma are computed in.
        unused: names of those above that mean nothing to the chain that they are the options of.
    """

    method: str
    recipe: str | None
    rank: int | None
    density: float | str | None
    iterations: int
    basis: Basis
    scaling: float | str
    agreement: Agreement
    scope: Scope
    connectivity: Literal["flow", "local"] | FlowGraph
    residual: bool
    prune_outside: bool
    svd_rank: int | None
    dtype: torch.dtype | None
    device: str | None
    modules_to_save: str | None = None
    dora: str | None = None
    method_options: Any = None
    selection: str = "none"
    aggregation: str = "sum"
    aggregation_density: float | str | None = None
    balance: Balance = "none"
    spectrum: Spectrum = "kept"
    fit: bool = False
    refresh: int = 1
    precision: Precision = "float32"
    unused: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        whole("rank", self.rank)
        whole("iterations", self.iterations)
        whole("svd_rank", self.svd_rank)
        whole("refresh", self.refresh, least=0)
        choice("precision", self.precision, get_args(Precision))
        if self.precision == "float64" and str(self.device).startswith("mps"):
            raise OptionError(
                f"precision='float64' on device={self.device!r}, which has none; leave it out, or use device='cpu'"
            )
        density_mean(self.density)
        if self.rank is not None and self.density is not None:
            raise OptionError(
                f"rank={self.rank} and density={self.density} together: both set how many components are kept; give one"
            )
        choice("basis", self.basis, get_args(Basis))
        agreements = AGREEMENTS.get(self.method, _AGREEMENTS)
        if self.agreement not in agreements:
            raise OptionError(
                f"agreement={self.agreement!r} is not known; choose one of {', '.join(agreements)} with "
                f"method={self.method!r}"
            )
        choice("scope", self.scope, get_args(Scope))
        choice("balance", self.balance, get_args(Balance))
        choice("spectrum", self.spectrum, get_args(Spectrum))
        density_mean(self.aggregation_density)
        if not re.fullmatch(r"random:\d+", str(self.selection)):
            choice("selection", self.selection, SELECTIONS)
        if self.modules_to_save is not None and not str(self.modules_to_save).startswith("take:"):
            choice("modules_to_save", self.modules_to_save, ("average", "take:<adapter>", "drop"))
        if self.dora is not None and not re.fullmatch(r"exact(:[1-9]\d*)?", str(self.dora)):
            raise OptionError(f"dora={self.dora!r} is not known; choose 'exact', or 'exact:<rank>' for another rank")
        if not isinstance(self.connectivity, FlowGraph):
            choice("connectivity", self.connectivity, ("flow", "local", "a samerge.graph.FlowGraph"))
        if self.scope == "global" and self.density is None:
            raise OptionError(
                "scope='global' spreads a share of all components over the layers, so it needs density=...; "
                "rank=... fixes the number in every layer and goes with scope='layer'"
            )
        if self.scope == "global" and isinstance(self.density, str):
            raise OptionError(
                f"scope='global' and density={self.density!r} both spread what is kept over the layers; give a number "
                f"as the density, or leave scope='global' out"
            )
        check_scaling(self.scaling)
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise OptionError(f"dtype={self.dtype} cannot hold an adapter; choose one of float32, bfloat16, float16")

    @property
    def mean_density(self) -> float | None:
        """The density as a number: itself, or the mean of an adaptive one."""
        return density_mean(self.density)

    def record(self) -> dict[str, Any]:
        """The options as plain JSON values, without those that mean nothing here."""
        table = {item.name: getattr(self, item.name) for item in fields(self)}
        table["connectivity"] = "custom graph" if isinstance(self.connectivity, FlowGraph) else self.connectivity
        table["dtype"] = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        table["method_options"] = None if self.method_options is None else asdict(self.method_options)
        return {name: value for name, value in table.items() if name not in {*self.unused, "unused"}}


def resolve(method: str, recipe: str | None, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> MergeOptions:
    """Options from what the caller gave, the recipe, and the method's own defaults, in this order of strength.

    Args:
        method: name in the registry.
        recipe: "paper" or None.
        given: the caller's options; None means not given.
        defaults: the method's own defaults (its `scaling`, for one).

    Raises:
        OptionError: an option is out of its range or does not go with another.
    """
    if recipe is not None:
        choice("recipe", recipe, tuple(RECIPES))
    explicit = {key: value for key, value in given.items() if value is not None}
    agreement = AGREEMENTS.get(method, _AGREEMENTS)[0]
    filled = {**DEFAULTS, "agreement": agreement, **defaults, **RECIPES.get(recipe or "", {}), **explicit}
    check_residual(explicit, filled["connectivity"])
    if "rank" in explicit and "density" not in explicit:
        filled["density"] = None  # an explicit rank replaces the recipe's density
    return MergeOptions(
        **{item.name: filled.get(item.name) for item in fields(MergeOptions)}
        | {  # type: ignore[arg-type]
            "method": method,
            "recipe": recipe,
            "unused": frozenset(),
        }
    )


def check_residual(explicit: Mapping[str, Any], connectivity: object) -> None:
    """Refuse `residual` where no graph is built that it could mean.

    Raises:
        OptionError: it was given with another connectivity than "flow".
    """
    if "residual" in explicit and connectivity != "flow":
        raise OptionError(
            f"residual={explicit['residual']} is for connectivity='flow', whose graph is built here; with "
            f"connectivity='local' there is no graph, and one of your own has the edges that you gave it. Leave it out"
        )
