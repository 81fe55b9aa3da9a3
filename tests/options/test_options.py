"""The option table: what each kind takes, what it makes of it, and the words of every refusal."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from samerge.errors import OptionError, SamergeError
from samerge.full.full_options import METHODS, FullOptions, resolve
from samerge.graph import FlowGraph, Weight
from samerge.methods.registry import available_methods, find
from samerge.options.common import CommonOptions
from samerge.options.connectivity import connectivity
from samerge.options.kinds import flag, real, share, whole, word
from samerge.options.option import filled, meant, option, table, unknown
from samerge.options.scaling import auto_factor, auto_only, scaling

GRAPH = FlowGraph([Weight("x", "y", "w")], ["x"], ["y"])


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (whole(), 4, 4),
        (whole(), 4.0, 4),
        (whole(), "4", 4),
        (whole(), "4.0", 4),
        (whole(), np.int64(4), 4),
        (whole(), torch.tensor(4), 4),
        (whole(0), 0, 0),
        (whole(0, 4), 4, 4),
        (real(), "1e-1", 0.1),
        (real(), np.float32(0.5), 0.5),
        (real(0, 1, below=True), 0, 0.0),
        (share(), "1", 1.0),
        (share(), np.float32(0.5), 0.5),
        (word("a", "b"), "b", "b"),
        (word("a", pattern="take:.+"), "take:x", "take:x"),
        (flag(), "no", False),
        (flag(), "TRUE", True),
        (flag(), True, True),
        (connectivity(), "local", "local"),
        (connectivity(), GRAPH, GRAPH),
        (scaling(), "0.5", 0.5),
        (scaling(), 1, 1.0),
        (scaling(), "auto", "auto"),
        (scaling(), "auto:1.6", "auto:1.6"),
        (auto_only(), "auto", "auto"),
        (auto_only(), "2", 2.0),
    ],
)
def test_what_a_kind_takes(kind, given, value) -> None:
    found = kind.read("x", given)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        *[
            (whole(), value, r"x=.* must be a whole number of at least 1")
            for value in (0, -3, 1.5, "a", True, math.nan)
        ],
        *[(whole(0, 4), value, r"x=.* must be a whole number from 0 to 4") for value in (-1, 5, 1e300)],
        *[(whole(), value, r"x=.* must be a whole number") for value in (math.inf, [1], torch.ones(2), None)],
        *[(real(), value, r"x=.* must be a finite number") for value in (math.nan, math.inf, True, [1.0], "much")],
        (real(0.1, 0.5), 0.6, r"must be in \[0.1, 0.5\]"),
        (real(0, 1, below=True), 1, r"must be in \[0, 1\)"),
        (real(2), 1, "must be 2 or more"),
        *[(share(), value, r"x=.* must lie in \(0, 1\]") for value in (0, 0.0, -0.1, 1.5, math.nan, math.inf, True)],
        (share(), "adaptive", r"x='adaptive' must lie in \(0, 1\]$"),
        (word("a", "b"), "c", "x='c' is not known; choose one of a, b"),
        (word("a", pattern="take:.+", told="take:NAME"), "take:", "choose one of a, take:NAME"),
        (flag(), "perhaps", "must be true or false"),
        (connectivity(), "loose", "choose flow, local, or give a samerge.FlowGraph"),
        *[(scaling(), value, "finite number") for value in (math.nan, math.inf, True, [1.0])],
        (scaling(), "loud", "x='loud' is not known; give a number, 'auto'"),
        (scaling(), "auto:-1", "positive number"),
        (scaling(), "lines:1", "is not known"),
        (auto_only(), "auto:2", "finite number"),
    ],
)
def test_what_a_kind_refuses(kind, given, words) -> None:
    with pytest.raises(OptionError, match=words):
        kind.read("x", given)


def test_every_choice_of_a_kind_is_one() -> None:
    kinds = [CommonOptions, FullOptions, *(find(name).options for name in available_methods())]
    for row in (row for kind in kinds for row in table(kind)):
        for choice in row.kind.choices:
            row.kind.read(row.name, choice)


@pytest.mark.parametrize("name", list(available_methods()))
def test_every_option_of_a_method_has_help_and_a_default_of_its_kind(name: str) -> None:
    for row in table(find(name).options):
        assert row.help.endswith(".")
        assert row.read(row.default) == row.default
        assert row.default is not None or row.told, f"{name}: --help cannot tell the default of {row.name}"


def test_rounds_beyond_all_use_are_refused_where_options_are_read() -> None:
    kinds = [FullOptions, *(find(name).options for name in available_methods())]
    asked = [kind for kind in kinds if any(row.name == "iterations" for row in table(kind))]
    assert len(asked) >= 4
    for kind in asked:
        assert filled(kind, {"iterations": 1000}).iterations == 1000
        with pytest.raises(OptionError, match="iterations=1000000 must be a whole number from 1 to 1000"):
            filled(kind, {"iterations": 1_000_000})


def test_common_options_say_what_becomes_of_none() -> None:
    assert all(row.told and row.help.endswith(".") for row in table(CommonOptions))


def test_none_is_the_default_unless_it_is_a_value() -> None:
    given = filled(CommonOptions, {"rank": "none", "balance": "none", "scaling": None})
    assert (given.rank, given.balance, given.scaling) == (None, "none", None)


def test_near_misses() -> None:
    assert "did you mean 'density'?" in str(unknown("densty", ["density", "rank"], "it"))
    assert meant("zzz", ["density"]) == "."


def test_dtypes() -> None:
    assert filled(CommonOptions, {"dtype": torch.bfloat16}).dtype == "bfloat16"
    with pytest.raises(OptionError, match=r"dtype=torch.int8 is not one to write in; choose one of float32"):
        filled(CommonOptions, {"dtype": torch.int8})


def test_the_record_is_plain() -> None:
    record = filled(FullOptions, {"connectivity": GRAPH, "dtype": torch.bfloat16, "density": 0.5}).record()
    assert record["connectivity"] == "custom graph"
    assert (record["dtype"], record["density"]) == ("bfloat16", 0.5)
    assert list(record) == [item.name for item in fields(FullOptions)]
    assert all(value is None or isinstance(value, (str, int, float, bool)) for value in record.values())


def test_full_checkpoints_as_published() -> None:
    plain, paper = resolve("elementwise", {}), resolve("paper", {})
    assert (plain.scaling, plain.residual, plain.outside) == ("auto", True, "average")
    assert (paper.scaling, paper.residual, paper.outside) == (1.0, False, "sum")
    assert resolve("paper", {"scaling": 0.3, "residual": "yes", "outside": None}).scaling == 0.3
    assert METHODS["elementwise"] == {}
    with pytest.raises(OptionError, match="did you mean 'paper'"):
        resolve("papers", {})
    with pytest.raises(OptionError, match="did you mean 'outside'"):
        resolve("paper", {"outsid": "sum"})


def test_the_factor_of_auto() -> None:
    assert (auto_factor("auto:1.5"), auto_factor("auto"), auto_factor(0.5)) == (1.5, 0.0, None)


def test_an_option_is_a_field_with_its_kind() -> None:
    item = option(whole(), 3, "How many.", told="three")
    assert item.default == 3


def test_option_errors_are_value_errors() -> None:
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionError, SamergeError)
