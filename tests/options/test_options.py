"""The options: their defaults, the recipes, and the words of every refusal."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from samerge.options.merge_options import DEFAULTS, RECIPES, MergeOptions, resolve

from samerge.errors import OptionError, SamergeError
from samerge.graph import FlowGraph, Weight


def options(recipe=None, defaults=None, **given) -> MergeOptions:
    return resolve("saliency", recipe, given, {"scaling": "auto"} if defaults is None else defaults)


def test_defaults():
    o = options()
    assert (o.method, o.recipe, o.rank, o.density, o.iterations) == ("saliency", None, None, None, 10)
    assert (o.basis, o.scaling, o.agreement, o.scope) == ("svd", "auto", "absolute", "layer")
    assert (o.connectivity, o.residual, o.prune_outside) == ("flow", True, True)
    assert (o.svd_rank, o.dtype, o.device) == (None, None, None)


def test_the_papers_recipe():
    o = options("paper")
    assert (o.basis, o.density, o.iterations, o.scaling) == ("native", 0.1, 10, 1.0)
    assert (o.agreement, o.scope, o.connectivity, o.residual, o.prune_outside) == (
        "absolute",
        "layer",
        "flow",
        False,
        False,
    )


def test_an_explicit_value_wins_over_the_recipe_and_the_recipe_over_the_method():
    o = options("paper", basis="svd", density=0.5, scaling=0.3, residual=True, iterations=None)
    assert (o.basis, o.density, o.scaling, o.residual, o.iterations) == ("svd", 0.5, 0.3, True, 10)
    assert options("paper", rank=4).density is None
    assert options(defaults={"scaling": 1.0}).scaling == 1.0


def test_nothing_global_changes():
    before = (dict(DEFAULTS), {name: dict(recipe) for name, recipe in RECIPES.items()})
    options("paper", density=0.5)
    assert before == (dict(DEFAULTS), {name: dict(recipe) for name, recipe in RECIPES.items()})


@pytest.mark.parametrize("density", [0, 0.0, -0.1, 1.5, math.nan, math.inf, "0.5", True])
def test_density_out_of_range(density):
    with pytest.raises(OptionError, match=r"density=.* must lie in \(0, 1\]"):
        options(density=density)


@pytest.mark.parametrize("name", ["rank", "iterations", "svd_rank"])
@pytest.mark.parametrize("value", [0, -3, 1.5, 2.0, "4", True, math.nan])
def test_whole_numbers(name, value):
    with pytest.raises(OptionError, match=f"{name}=.* must be a whole number of at least 1"):
        options(**{name: value})


@pytest.mark.parametrize("scaling", [math.nan, math.inf, True, [1.0]])
def test_scaling_must_be_finite(scaling):
    with pytest.raises(OptionError, match=r"scaling=.* must be a finite number"):
        options(scaling=scaling)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("basis", "svd, native"),
        ("agreement", "absolute, signed"),
        ("scope", "layer, global"),
        ("connectivity", "flow, local, a samerge.graph.FlowGraph"),
        ("scaling", "auto, a number"),
    ],
)
def test_choices_are_listed(name, choices):
    with pytest.raises(OptionError, match=f"{name}='wrong' is not known; choose one of {choices}"):
        options(**{name: "wrong"})


def test_the_recipe_is_looked_up():
    with pytest.raises(OptionError, match="recipe='ours' is not known; choose one of paper"):
        options("ours")


def test_rank_and_density_together():
    with pytest.raises(OptionError, match=r"rank=4 and density=0\.5 together: both set how many components are kept"):
        options(rank=4, density=0.5)


def test_global_scope_needs_a_density():
    with pytest.raises(OptionError, match=r"scope='global' .* needs density="):
        options(scope="global")
    assert options(scope="global", density=0.2).scope == "global"


def test_numbers_of_numpy_are_numbers():
    o = options(rank=np.int64(4), scaling=np.float32(0.5), iterations=np.int32(2))
    assert (o.rank, o.scaling, o.iterations) == (4, 0.5, 2)
    assert options(density=np.float32(0.5)).density == 0.5


def test_an_integer_dtype_is_refused():
    with pytest.raises(OptionError, match=r"dtype=torch.int8 cannot hold an adapter; choose one of float32"):
        options(dtype=torch.int8)


def test_the_record_is_plain():
    graph = FlowGraph([Weight("x", "y", "w")], ["x"], ["y"])
    record = options(connectivity=graph, dtype=torch.bfloat16, density=0.5).record()
    assert record["connectivity"] == "custom graph"
    assert record["dtype"] == "bfloat16"
    assert record["density"] == 0.5
    assert all(value is None or isinstance(value, (str, int, float, bool)) for value in record.values())


def test_option_errors_are_value_errors():
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionError, SamergeError)


def test_residual_edges_are_for_the_graph_that_is_built_here():
    with pytest.raises(OptionError, match="residual=True is for connectivity='flow'"):
        resolve("saliency", None, {"residual": True, "connectivity": "local"}, {"scaling": 1.0})
    assert resolve("saliency", "paper", {"connectivity": "local"}, {}).residual is False  # a recipe's is no request


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("balance", "none, norm, global"),
        ("spectrum", "kept, flat"),
        ("selection", "none, saliency, sensitivity, agreement, norm, random, random:<seed>"),
    ],
)
def test_the_links_have_choices(name, choices):
    with pytest.raises(OptionError, match=f"{name}='wrong' is not known; choose one of {choices}"):
        options(**{name: "wrong"})


def test_the_even_recipe():
    o = resolve("tsv", "even", {}, {"scaling": 1.0, "density": 1.0})
    assert (o.balance, o.aggregation, o.spectrum, o.scaling, o.fit, o.selection) == (
        *("norm", "tsv", "flat", "unit", True, "none"),
    )
    assert resolve("tsv", "even", {"spectrum": "kept"}, {"scaling": 1.0}).spectrum == "kept"
    plain = options()
    assert (plain.balance, plain.spectrum, plain.fit) == ("none", "kept", False)


@pytest.mark.parametrize("scaling", ["auto", "auto:1.6", "lines:0.2:0.8", "interference", "interference:layer", 0.3])
def test_scalings(scaling):
    assert options(scaling=scaling).scaling == scaling
