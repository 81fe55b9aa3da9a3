"""Figures of two updates against dense matrices in float64, and the laws that they obey."""

from __future__ import annotations

import itertools

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.dense import SHAPES, regauged, updates
from torch import Tensor

import samerge
from samerge.linalg.factors import LoraFactors
from samerge.linalg.sign_conflicts import sample_rows, sign_counts
from samerge.linalg.triplets import singular
from samerge.report.overlap import MOST_COMPONENTS, effective_rank, overlaps, summed

FIGURES = ("cosine", "interference")


def dense_figures(M: Tensor, tau: Tensor, rounding: float = 1e-9) -> dict[str, float]:
    """By their definitions, on whole matrices."""
    _, s, vh = torch.linalg.svd(tau, full_matrices=False)
    V = vh[s > rounding * s[0]].T  # (d_in, r)
    return {
        "cosine": float((M * tau).sum() / (M.norm() * tau.norm())),
        "interference": float(((M - tau) @ V @ V.T).norm() / tau.norm()),
    }


@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
def test_figures_are_those_of_dense_matrices(d_out, d_in, ranks):
    parts = updates(d_out, d_in, ranks)
    merged = updates(d_out, d_in, (3,), seed=5)[0]
    for part, found in zip(parts, overlaps(merged, parts), strict=True):
        for name, value in dense_figures(merged.delta(), part.delta()).items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("far", [1.0, 0.2, 0.05, 1e-2, 1e-4])
def test_figures_by_triplets_in_float32(far):
    """Also where the merge hardly differs from an adapter: no difference of large numbers tells the small error."""
    parts = updates(40, 60, (4, 6, 3))
    noise = updates(40, 60, (2,), seed=9)[0]
    near = far * float(parts[1].delta().norm() / noise.delta().norm())
    both = [parts[1].folded(), noise.folded()]
    merged = LoraFactors(torch.cat([f.A for f in both]), torch.cat([both[0].B, both[1].B * near], dim=1))
    single = merged.to(dtype=torch.float32)
    known = [singular(part.to(dtype=torch.float32)) for part in parts]
    for part, found in zip(parts, overlaps(single, known), strict=True):
        for name, value in dense_figures(single.delta().double(), part.delta()).items():
            assert getattr(found, name) == pytest.approx(value, rel=2e-4, abs=1e-6), name


@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
def test_figures_do_not_depend_on_how_an_update_is_factored(d_out, d_in, ranks):
    parts = updates(d_out, d_in, ranks)
    merged, again = updates(d_out, d_in, (3,), seed=5)[0], regauged(updates(d_out, d_in, (3,), seed=5))[0]
    for one, other in zip(overlaps(merged, parts), overlaps(again, regauged(parts)), strict=True):
        for name in FIGURES:
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9, abs=1e-7)


@given(st.floats(0.1, 3.0), st.integers(0, 5))
def test_an_adapter_alone_is_wholly_left(scale, seed):
    [tau] = updates(7, 12, (3,), seed)
    [found] = overlaps(tau, [tau])
    assert found.cosine == pytest.approx(1)
    assert found.interference == pytest.approx(0, abs=1e-12)
    [half] = overlaps(LoraFactors(tau.A, tau.B * scale, tau.scale), [tau])
    assert half.interference == pytest.approx(abs(1 - scale))
    assert half.cosine == pytest.approx(1)


def test_components_that_say_the_same_twice_count_once():
    [tau] = updates(7, 12, (3,))
    [merged] = updates(7, 12, (2,), seed=5)
    twice = LoraFactors(torch.cat([tau.A, tau.A]), torch.cat([tau.B * 3, tau.B * -2], dim=1), tau.scale)
    [one], [other] = overlaps(merged, [tau]), overlaps(merged, [twice])
    for name in FIGURES:
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-6)


def test_what_is_zero():
    [tau], nothing = updates(7, 12, (3,)), LoraFactors(torch.zeros(1, 12), torch.zeros(7, 1))
    [found] = overlaps(nothing, [tau])
    assert (found.cosine, found.interference) == (0, 1)
    [found] = overlaps(tau, [nothing.to(dtype=torch.float64)])
    assert (found.cosine, found.interference) == (None, None)
    assert effective_rank(nothing) == 0


@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
def test_the_spectrum_of_a_sum(d_out, d_in, ranks):
    parts = updates(d_out, d_in, ranks)
    scales = [1.0, -0.5, 3.0, 0.25][: len(parts)]
    dense = sum(c * part.delta() for c, part in zip(scales, parts, strict=True))
    expected = torch.linalg.svdvals(dense).square().tolist()
    found = summed(parts).squares(scales)
    size = expected[0]
    for k in range(max(len(found), len(expected))):
        one = found[k] if k < len(found) else 0.0
        other = expected[k] if k < len(expected) else 0.0
        assert one == pytest.approx(other, rel=1e-8, abs=1e-9 * size)


def test_a_spectrum_that_is_not_cheap_is_left_out():
    big = LoraFactors(torch.zeros(MOST_COMPONENTS, 4), torch.zeros(4, MOST_COMPONENTS))
    assert summed([big]) is not None
    assert summed([big, updates(4, 4, (1,))[0]]) is None


@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
def test_effective_rank(d_out, d_in, ranks):
    for part in updates(d_out, d_in, ranks):
        shares = torch.linalg.svdvals(part.delta()).square()
        shares = shares / shares.sum()
        assert effective_rank(part) == pytest.approx(float(1 / shares.square().sum()), rel=1e-10)
        assert 1 - 1e-9 <= effective_rank(part) <= part.rank + 1e-9


@pytest.mark.parametrize(("a", "b"), [(1e36, 1.0), (1.0, 1e36), (1e18, 1e18), (1e-36, 1.0), (1e-18, 1e-18)])
def test_very_large_and_small_updates_have_the_figures_of_others(tmp_path, a, b):
    """In the record, where nothing is NaN, infinite or zero by overflow."""
    tables = [tiny.chain_factors(tiny.chain([9, 8, 7]), 3, seed) for seed in range(2)]

    def record(name, a, b):
        scaled = [{m: (A * a, B * b) for m, (A, B) in table.items()} for table in tables]
        folders = [tiny.write_adapter(tmp_path / name / f"e{n}", table) for n, table in enumerate(scaled)]
        return samerge.merge(None, folders, method="linear").report.record

    plain, extreme = record("plain", 1.0, 1.0), record("extreme", a, b)
    for name, figures in plain.adapters.items():
        found = extreme.adapters[name]
        assert found.norm == pytest.approx(figures.norm * a * b, rel=1e-4, abs=0)
        for key in ("cosine", "interference", "sign_conflict"):
            assert getattr(found, key) == pytest.approx(getattr(figures, key), rel=1e-4, abs=0), key
    for module, layer in plain.layers.items():
        assert extreme.layers[module].effective_rank == pytest.approx(layer.effective_rank, rel=1e-4)
    assert extreme.whole.best_cosine == pytest.approx(plain.whole.best_cosine, rel=1e-4)


def test_sign_counts_are_those_of_every_element():
    parts = updates(12, 9, (2, 3, 1, 4))
    parts[0].B[3] = 0  # a row without signs
    rows = sample_rows((12, 9), sample=63)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 7
    found = sign_counts(parts, rows)
    tiles = [part.delta()[rows].sign() for part in parts]
    pairs = list(itertools.combinations(range(4), 2))
    for i, j in pairs:
        assert int(found.opposed[i, j]) == int((tiles[i] * tiles[j] < 0).sum())
        assert int(found.compared[i, j]) == int((tiles[i] * tiles[j] != 0).sum())
    opposed = sum(int(found.opposed[pair]) for pair in pairs)
    assert found.among(4).share == opposed / sum(int(found.compared[pair]) for pair in pairs)
    assert found.among(1).share is None
    assert sample_rows((3, 100), sample=10).tolist() == [1]
    assert sample_rows((3, 2)).tolist() == [0, 1, 2]
