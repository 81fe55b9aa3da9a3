"""From an outcome to an adapter: what a merge of nothing is told, and no other."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge

TABLE = chain_factors(chain([9, 8, 7]), 3, 0)


@pytest.fixture
def made(tmp_path):
    """Adapters by name: one, its negative with other factors, another one, and one that was never trained."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    tables = {
        "one": TABLE,
        "negative": {m: (turn @ A, -B @ turn.T) for m, (A, B) in TABLE.items()},
        "other": chain_factors(chain([9, 8, 7]), 3, 5),
        "fresh": {m: (A, torch.zeros_like(B)) for m, (A, B) in TABLE.items()},
    }
    return {name: write_adapter(tmp_path / name, table) for name, table in tables.items()}


@pytest.mark.parametrize(
    ("names", "options", "why"),
    [
        (["one", "other"], {"weights": [0, 0]}, "all weights are 0; give one adapter another"),
        (["one", "other"], {"weights": [0, 0], "method": "even"}, "all weights are 0"),
        (["one", "other"], {"scaling": 0.0}, "the scaling is 0"),
        (["fresh"], {}, "every update that went in is zero already"),
        (["fresh", "one"], {"weights": [1, 0]}, "every update that went in is zero already"),
        (["one", "negative"], {}, "the weighted updates cancel each other, but for rounding"),
        (["one", "one again"], {"weights": [1, -1]}, "the weighted updates cancel"),
        (["one", "negative"], {"method": "svd", "scaling": 2.0}, "the weighted updates cancel"),
        (["one", "negative"], {"scaling": "auto"}, "the weighted updates cancel"),
        (["one", "one again"], {"method": "ties", "weights": [1, -1]}, "the weighted updates cancel"),
        (["one", "other"], {"method": "dare", "density": 1e-6}, "pruning kept nothing"),
        (["one", "other"], {"weights": [1e-30, 1e-30], "scaling": 1e-30}, "weights and scaling make .* than float32 "),
        (
            ["one", "other"],
            {"weights": [1e-20, 1e-20], "dtype": "float16"},
            "weights and scaling make .* than float16 ",
        ),
    ],
)
def test_an_adapter_that_does_nothing_says_so_and_why(made, names, options, why):
    given = {name: made[name.split()[0]] for name in names}
    with pytest.warns(UserWarning, match=f"^the merged update is zero in every layer, .* does nothing: {why}") as told:
        merged = samerge.merge(None, given, **{"method": "linear", **options})
    assert str(told[0].message) in merged.report.warnings
    assert told[0].filename == __file__
    assert all(float(merged.delta(module).abs().max()) < 1e-4 for module in merged.factors)


@pytest.mark.parametrize(
    "options",
    [
        {"weights": [1e-30, 0.0]},
        {"weights": [1.0, -0.999]},
        {"weights": [1.0, 1.0], "scaling": 1e-30},
        {"weights": [1.0, 1.0], "modules": {"*layers.0": 0.0}},  # nothing in the first layer, all in the others
    ],
)
def test_a_small_update_is_one(made, options):
    merged = samerge.merge(None, [made["one"], made["other"]], method="linear", **options)
    assert not any("zero" in text for text in merged.report.warnings)


@pytest.mark.parametrize("weight", [1e300, -1e300, 1e-300, 1e16])
@pytest.mark.parametrize("method", ["linear", "svd", "ties"])
def test_a_weight_that_float32_cannot_hold_is_told_as_what_it_is(made, method, weight):
    """Whatever way it is given, and whatever would have broken in the method."""
    told = "is too (large|small): merges are computed in float32"
    given = {name: made[name] for name in ("one", "other")}
    for options in (
        {"weights": [weight, 1.0]},
        {"weights": {"one": 1.0, "other": weight}},
        {"scaling": weight},
        {"scaling": str(weight)},
        {"modules": {"*": weight}},
        {"modules": {"*": {"one": weight}}},
    ):
        with pytest.raises(samerge.OptionError, match=told):
            samerge.merge(None, given, method=method, **options)
