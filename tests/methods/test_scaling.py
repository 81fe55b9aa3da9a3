"""The norm rule, the weights brought to one, and plain lambda."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import chain, chain_factors, write_adapter

import samerge
from samerge.errors import OptionError
from samerge.linalg.factors import LoraFactors, concatenate, norm
from samerge.methods.scaling import FLAT_NORM_FACTOR, NORM_FACTOR, scale_of
from samerge.options.values import check_scaling


def factors(seed: int, size: float = 1.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(torch.randn(3, 6, generator=generator), size * torch.randn(5, 3, generator=generator))


def norms_of(parts) -> dict[int, float]:
    return {n: float(norm(part)) for n, part in enumerate(parts)}


def test_a_number_is_itself():
    assert scale_of(3.0, {0: 1.0}, [1.0], 0.4) == 0.4


@given(st.lists(st.floats(0.1, 3), min_size=2, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_merged_norm_is_a_multiple_of_the_experts_mean(sizes, signs):
    weights = [s * (-1) ** sign for s, sign in zip(sizes, signs, strict=False)]
    parts = [factors(n, size) for n, size in enumerate(sizes)]
    merged = concatenate(parts, weights)
    scale = scale_of(float(norm(merged)), norms_of(parts), weights, "auto")
    total = sum(abs(w) * float(norm(p)) for w, p in zip(weights, parts, strict=True))
    assert scale * float(norm(merged)) == pytest.approx(NORM_FACTOR * total / sum(map(abs, weights)))
    assert scale > 0


@pytest.mark.parametrize("weight", [1.0, 0.2, -3.0])
def test_one_expert_keeps_its_norm(weight):
    f = factors(1)
    scale = scale_of(abs(weight) * float(norm(f)), norms_of([f]), [weight], "auto")
    assert scale * abs(weight) == pytest.approx(1.0)
    none = LoraFactors(torch.zeros(3, 6), torch.zeros(5, 3))
    beside_nothing = scale_of(float(norm(f)), norms_of([f, none]), [1.0, 1.0], "auto")
    assert beside_nothing == pytest.approx(0.5)  # the mean of its norm and of zero


@given(st.floats(0.01, 100))
def test_a_common_factor_of_the_weights_cancels(factor):
    parts, weights = [factors(1), factors(2)], [1.0, -0.5]
    plain = concatenate(parts, weights)
    scaled = concatenate(parts, [w * factor for w in weights])
    a = scale_of(float(norm(plain)), norms_of(parts), weights, "auto")
    b = scale_of(float(norm(scaled)), norms_of(parts), [w * factor for w in weights], "auto")
    torch.testing.assert_close(a * plain.delta(), b * scaled.delta(), rtol=1e-4, atol=1e-5)


@given(st.lists(st.floats(0.1, 3), min_size=1, max_size=5), st.floats(-100, 100).filter(lambda c: abs(c) > 0.01))
def test_unit_gives_orthogonal_experts_of_one_norm_their_norm_together(weights, factor):
    """m sum |w| / sqrt(sum w^2) whatever the common factor; with equal weights m sqrt(N)."""
    size = math.hypot(*weights)  # of sum_n w_n tau_n
    norms = dict.fromkeys(range(len(weights)), 1.0)
    scale = scale_of(size, norms, weights, "unit")
    assert scale * size == pytest.approx(sum(weights) / math.hypot(*weights))
    scaled = [factor * w for w in weights]
    assert scale_of(math.hypot(*scaled), norms, scaled, "unit") == pytest.approx(scale / abs(factor))
    equal = [weights[0]] * len(weights)
    assert scale_of(math.hypot(*equal), norms, equal, "unit") * math.hypot(*equal) == pytest.approx(len(equal) ** 0.5)


@pytest.mark.parametrize(
    ("weights", "scale"),
    [
        ([1.0, 1.0], 1.0),
        ([0.5, -0.5], 2.0),
        ([1.0, 3.0], 0.4),
        ([0.25], 4.0),
        ([0.25, 0.0], 4.0),
        ([0.25, 1e-9], 4.0),  # which leaves gently
        ([1e-200, 1e-200], 1e200),
        ([0.0], 1.0),
    ],
)
def test_unit_by_hand(weights, scale):
    """Whatever the experts' norms, in layers that one of them adapts, too."""
    for norms in ({0: 1.0, 1: 2.0}, {0: 1.0}, {0: 0.0}, {}):
        assert scale_of(7.0, norms, weights, "unit") == pytest.approx(scale)


@pytest.mark.parametrize("method", ["tsv", "linear", "ties"])
def test_unit_is_scaling_one_where_the_weights_are_equal(tmp_path, method):
    """Of any size, through the whole merge, in a layer that one expert adapts, too."""
    tables = [chain_factors(chain([9, 8, 7]), 3, seed) for seed in range(2)]
    del tables[1]["layers.1"]
    adapters = [write_adapter(tmp_path / f"e{n}", table) for n, table in enumerate(tables)]
    plain = samerge.merge(None, adapters, method=method, scaling=1.0)
    for weights in ([1.0, 1.0], [0.2, 0.2]):
        unit = samerge.merge(None, adapters, method=method, scaling="unit", weights=weights)
        for module in plain.factors:
            torch.testing.assert_close(unit.delta(module), plain.delta(module), rtol=1e-4, atol=1e-6)
    uneven = samerge.merge(None, adapters, method=method, scaling="unit", weights=[1e-6, 5.0])
    assert float(uneven.delta("layers.1").norm()) < 1e-6 * float(plain.delta("layers.1").norm())  # it all but left


def test_zero_stays_zero():
    assert scale_of(0.0, {0: 0.0, 1: 0.0}, [1.0, 1.0], "auto") == 1.0
    assert scale_of(0.0, {}, [1.0], "auto") == 1.0
    assert scale_of(0.0, {0: 2.0}, [0.0], "auto") == 1.0


@pytest.mark.parametrize("seed", range(8))
def test_what_cancels_is_not_blown_up(seed):
    """An adapter against itself is zero but for rounding, and rounding must not be scaled to the experts' norm."""
    f = factors(seed)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    g = LoraFactors(Q.T @ f.A, f.B @ Q)
    merged = concatenate([f, g], [1.0, -1.0])
    assert scale_of(float(norm(merged)), norms_of([f, g]), [1.0, -1.0], "auto") == 1.0


@pytest.mark.parametrize(
    ("scaling", "flat", "factor"),
    [("auto", False, NORM_FACTOR), ("auto", True, FLAT_NORM_FACTOR), ("auto:0.7", False, 0.7), ("auto:2", True, 2.0)],
)
def test_the_factor_is_that_of_the_spectrum_or_a_given_one(scaling, flat, factor):
    parts = [factors(1), factors(2, 3.0)]
    merged = concatenate(parts)
    scale = scale_of(float(norm(merged)), norms_of(parts), [1.0, 1.0], scaling, flat)
    assert scale * float(norm(merged)) == pytest.approx(factor * sum(norms_of(parts).values()) / 2)


def test_which_merges_have_a_flat_spectrum(tmp_path):
    """Those that are made flat, and iso-c, also when it is truncated."""
    tables = [chain_factors(chain([9, 8]), rank, seed) for seed, rank in enumerate([3, 2])]
    adapters = [write_adapter(tmp_path / f"e{n}", table) for n, table in enumerate(tables)]
    mean = sum(float((B @ A).norm()) for A, B in (table["layers.0"] for table in tables)) / 2
    expected = [
        ({"method": "linear"}, 1.3),
        ({"method": "linear", "spectrum": "flat"}, 2.0),
        ({"method": "iso-c"}, 2.0),
        ({"method": "iso-c", "svd_rank": 2}, 2.0),
        ({"method": "tsv", "spectrum": "flat", "balance": "norm"}, 2.0),
        ({"selection": "norm", "aggregation": "iso-c"}, 2.0),
        ({"selection": "norm"}, 1.3),
    ]
    for options, factor in expected:
        merged = samerge.merge(None, adapters, scaling="auto", **options)
        assert float(merged.delta("layers.0").norm()) == pytest.approx(factor * mean, rel=1e-4), options
        named = samerge.merge(None, adapters, scaling="auto:0.5", **options)
        assert float(named.delta("layers.0").norm()) == pytest.approx(0.5 * mean, rel=1e-4), options


@pytest.mark.parametrize("scaling", ["auto:", "auto:x", "auto:0", "auto:-1", "auto:inf", "auto:nan", "auto:1:2"])
def test_wrong_factors_are_refused(scaling):
    with pytest.raises(OptionError, match=r"must be 'auto:<c>' with a positive number, as in auto:1\.3"):
        check_scaling(scaling)
