"""The options of a merge of full checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from samerge.errors import OptionError
from samerge.graph import FlowGraph
from samerge.options.merge_options import check_residual
from samerge.options.values import choice, density_mean, number, whole

Agreement = Literal["paper", "task"]
Outside = Literal["average", "sum", "base"]
Mismatched = Literal["error", "base"]

#: What every option is unless a recipe or the caller says otherwise.
DEFAULTS: Mapping[str, Any] = {
    "density": 0.1,
    "iterations": 10,
    "scaling": "auto",
    "agreement": "paper",
    "connectivity": "flow",
    "residual": True,
    "outside": "average",
    "mismatched": "error",
}

#: Named sets of options; an explicit value wins over them.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "density": 0.1,
        "iterations": 10,
        "scaling": 1.0,
        "agreement": "paper",
        "connectivity": "flow",
        "residual": False,
        "outside": "sum",
    },
}


@dataclass(frozen=True)
class FullOptions:
    """Options of one merge of checkpoints, all filled in; `samerge.merge_full` says what each means.

    Raises:
        OptionError: one is out of its range.
    """

    recipe: str | None
    density: float | str
    iterations: int
    scaling: float | Literal["auto"]
    agreement: Agreement
    connectivity: Literal["flow", "local"] | FlowGraph
    residual: bool
    outside: Outside
    mismatched: Mismatched
    dtype: torch.dtype | None
    device: str | None

    def __post_init__(self) -> None:
        density_mean(self.density)
        whole("iterations", self.iterations)
        choice("agreement", self.agreement, ("paper", "task"))
        choice("outside", self.outside, ("average", "sum", "base"))
        choice("mismatched", self.mismatched, ("error", "base"))
        if not isinstance(self.connectivity, FlowGraph):
            choice("connectivity", self.connectivity, ("flow", "local", "a samerge.graph.FlowGraph"))
        if isinstance(self.scaling, str):
            choice("scaling", self.scaling, ("auto", "a number"))
        else:
            number("scaling", self.scaling)
        if self.dtype is not None and (not self.dtype.is_floating_point or self.dtype.itemsize < 2):
            raise OptionError(f"dtype={self.dtype} cannot hold a model; choose one of float32, bfloat16, float16")

    def record(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        table = {item.name: getattr(self, item.name) for item in fields(self)}
        table["connectivity"] = "custom graph" if isinstance(self.connectivity, FlowGraph) else self.connectivity
        table["dtype"] = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        return table


def resolve(recipe: str | None, given: Mapping[str, Any]) -> FullOptions:
    """Options from what the caller gave, the recipe and the defaults, in this order of strength.

    Args:
        recipe: "paper" or None.
        given: the caller's options; None means not given.

    Raises:
        OptionError: an option is out of its range.

    Example:
        >>> options = resolve("paper", {"density": 0.2, "scaling": None})
        >>> options.density, options.scaling, options.outside, options.mismatched
        (0.2, 1.0, 'sum', 'error')
    """
    if recipe is not None:
        choice("recipe", recipe, tuple(RECIPES))
    explicit = {key: value for key, value in given.items() if value is not None}
    filled = {"dtype": None, "device": None, **DEFAULTS, **RECIPES.get(recipe or "", {}), **explicit}
    check_residual(explicit, filled["connectivity"])
    return FullOptions(recipe=recipe, **filled)
