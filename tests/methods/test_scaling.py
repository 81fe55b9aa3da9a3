"""The norm rule: c times the mean of |w_n| ||tau_n||, and plain lambda."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import chain, chain_factors, write_adapter

import samerge
from samerge.errors import OptionError
from samerge.linalg.factors import LoraFactors, concatenate, norm
from samerge.methods.scaling import NORM_FACTOR, norm_rule
from samerge.options.scaling import scaling


def factors(seed: int, size: float = 1.0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(torch.randn(3, 6, generator=generator), size * torch.randn(5, 3, generator=generator))


def loudness(parts, weights) -> list[float]:
    return [abs(w) * float(norm(part)) for w, part in zip(weights, parts, strict=True)]


@given(st.lists(st.floats(0.1, 3), min_size=2, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_merged_norm_is_a_multiple_of_the_adapters_mean(sizes, signs):
    weights = [s * (-1) ** sign for s, sign in zip(sizes, signs, strict=False)]
    parts = [factors(n, size) for n, size in enumerate(sizes)]
    merged = concatenate(parts, weights)
    scale = norm_rule(float(norm(merged)), loudness(parts, weights))
    total = sum(abs(w) * float(norm(p)) for w, p in zip(weights, parts, strict=True))
    assert scale * float(norm(merged)) == pytest.approx(NORM_FACTOR * total / len(parts))
    assert scale > 0


@pytest.mark.parametrize("weight", [1.0, 0.2, -3.0])
def test_one_adapter_keeps_its_norm_times_its_weight(weight):
    f = factors(1)
    none = LoraFactors(torch.zeros(3, 6), torch.zeros(5, 3))
    size = abs(weight) * float(norm(f))
    assert norm_rule(size, loudness([f], [weight])) == pytest.approx(1.0)
    assert norm_rule(size, loudness([f, none], [weight, 1.0])) == pytest.approx(1.0)


@given(st.floats(0.01, 100))
def test_a_common_factor_of_the_weights_is_one_of_the_merge(factor):
    parts, weights = [factors(1), factors(2)], [1.0, -0.5]
    plain, scaled = concatenate(parts, weights), concatenate(parts, [w * factor for w in weights])
    a = norm_rule(float(norm(plain)), loudness(parts, weights))
    b = norm_rule(float(norm(scaled)), loudness(parts, [w * factor for w in weights]))
    torch.testing.assert_close(factor * a * plain.delta(), b * scaled.delta(), rtol=1e-4, atol=1e-5 * factor)


def test_zero_stays_zero():
    assert norm_rule(0.0, [0.0, 0.0]) == norm_rule(0.0, []) == norm_rule(0.0, [2.0, 2.0]) == 1.0


@pytest.mark.parametrize("seed", range(8))
def test_what_cancels_is_not_blown_up(seed):
    """An adapter against itself is zero but for rounding, and rounding must not be scaled to the adapters' norm."""
    f = factors(seed)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    g = LoraFactors(Q.T @ f.A, f.B @ Q)
    merged = concatenate([f, g], [1.0, -1.0])
    assert norm_rule(float(norm(merged)), loudness([f, g], [1.0, -1.0])) == 1.0


@pytest.mark.parametrize("method", ["linear", "iso-c", "tsv", "svd", "even"])
def test_through_the_whole_merge(tmp_path, method):
    """c is the factor, on the adapters as the balance left them; a layer of one adapter keeps its norm."""
    tables = [chain_factors(chain([9, 8, 7]), rank, seed) for seed, rank in enumerate([3, 2])]
    del tables[1]["layers.1"]
    adapters = [write_adapter(tmp_path / f"e{n}", table) for n, table in enumerate(tables)]
    sizes = [float((B @ A).norm()) for A, B in (table["layers.0"] for table in tables)]
    (A, B) = tables[0]["layers.1"]
    weights = [1.0, -0.5]
    if method == "even":  # one norm for both
        sizes = [sum(sizes) / 2] * 2
    mean = (sizes[0] + 0.5 * sizes[1]) / 2
    for rule, factor in (("auto", 1.3), ("auto:0.5", 0.5)):
        merged = samerge.merge(None, adapters, method=method, scaling=rule, weights=weights)
        assert float(merged.delta("layers.0").norm()) == pytest.approx(factor * mean, rel=1e-4)
        assert float(merged.delta("layers.1").norm()) == pytest.approx(float((B @ A).norm()), rel=1e-4)


@pytest.mark.parametrize("wrong", ["auto:", "auto:x", "auto:0", "auto:-1", "auto:inf", "auto:nan", "auto:1:2"])
def test_wrong_factors_are_refused(wrong):
    with pytest.raises(OptionError, match=r"must be 'auto:<c>' with a positive number, as in auto:1\.3"):
        scaling().read("scaling", wrong)


@pytest.mark.parametrize("gone", ["unit", "interference"])
def test_rules_that_are_gone_are_not_known(gone):
    with pytest.raises(OptionError, match=f"scaling='{gone}' is not known; give a number, 'auto'"):
        scaling().read("scaling", gone)
