"""Adaptive density: even tensors are pruned harder, the mean is held; in the saliency and the element-wise merge."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_adapter, write_base

import samerge
from samerge.linalg.adaptive_density import adaptive_densities, evenness
from samerge.options.kinds import mean_of

SOME = st.lists(st.tuples(st.floats(0.01, 1.0), st.integers(0, 1000)), min_size=1, max_size=8)


@given(tensors=SOME, mean=st.floats(0.001, 1.0))
def test_the_mean_is_held_and_even_tensors_keep_less(tensors, mean):
    evennesses, counts = [p for p, _ in tensors], [n for _, n in tensors]
    densities = adaptive_densities(evennesses, counts, mean)
    assert all(0 < d <= 1 for d in densities)
    kept = sum(d * n for d, n in zip(densities, counts, strict=True))
    assert kept == pytest.approx(mean * sum(counts), rel=1e-9, abs=1e-9)
    present = sorted((p, d) for p, d, n in zip(evennesses, densities, counts, strict=True) if n)
    for (p, d), (q, e) in pairwise(present):
        assert e <= d * (1 + 1e-9)
        if d < 1:  # below the ceiling it is inverse proportion
            assert p * d == pytest.approx(q * e, rel=1e-6)


def test_equal_tensors_have_equal_densities():
    assert adaptive_densities([0.6] * 4, [5, 10, 1, 3], 0.25) == pytest.approx([0.25] * 4)
    assert adaptive_densities([0.3, 0.9], [7, 9], 1.0) == [1.0, 1.0]


@pytest.mark.parametrize(("values", "expected"), [([2.0, -2.0], 1.0), ([3.0, 0.0, 0.0, 0.0], 0.25), ([0.0], 1.0)])
def test_evenness(values, expected):
    x = torch.tensor(values)
    assert evenness(float(x.abs().sum()), float(x.square().sum()), len(values)) == pytest.approx(expected)


def spectrum(values: list[float], seed: int, width: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of an update with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(width, len(values), generator=generator))[0] for _ in range(2))
    return v.T.contiguous(), (u * torch.tensor(values)).contiguous()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Two layers; each adapter has a flat spectrum in one of them and a steep one in the other."""
    folder = tmp_path_factory.mktemp("adaptive")
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.weight": torch.randn(24, 24, generator=generator) for i in range(2)}
    flat, steep = [1.0] * 16, [4.0 * 0.5**k for k in range(16)]
    adapters = {
        "a": write_adapter(folder / "a", {"layers.0": spectrum(flat, 1), "layers.1": spectrum(steep, 2)}),
        "b": write_adapter(folder / "b", {"layers.0": spectrum(steep, 3), "layers.1": spectrum(flat, 4)}),
    }
    return write_base(folder / "base", base), adapters


def kept(merged, expert: str) -> list[int]:
    shares = [merged.report.record.layers[f"layers.{i}"].adapters[expert] for i in range(2)]
    return [share.elements[0] if share.elements else len(share.kept) for share in shares]


@pytest.mark.parametrize("basis", ["svd", "native"])
def test_paper_keeps_more_of_a_steep_spectrum(case, basis):
    folder, adapters = case
    merged = samerge.merge(folder, adapters, method="paper", connectivity="local", density="adaptive:0.25", basis=basis)
    assert sum(kept(merged, "a")) == sum(kept(merged, "b")) == 8  # a quarter of 32, as with a density of 0.25
    p = [1.0, sum(0.5**k for k in range(16)) ** 2 / (16 * sum(0.25**k for k in range(16)))]
    expected = [max(1, round(16 * d)) for d in adaptive_densities(p, [16, 16], 0.25)]
    assert expected[0] < expected[1]
    assert kept(merged, "a") == expected
    assert kept(merged, "b") == expected[::-1]
    assert merged.report.record.options["density"] == "adaptive:0.25"


def test_elementwise_keeps_more_of_a_sparse_update(case, tmp_path):
    folder, _ = case
    generator = torch.Generator().manual_seed(0)
    dense = (torch.randn(4, 24, generator=generator), torch.randn(24, 4, generator=generator))
    sparse = tuple(part * (torch.rand(part.shape, generator=generator) < 0.3) for part in dense)
    adapters = {
        "a": write_adapter(tmp_path / "a", {"layers.0": dense, "layers.1": sparse}),
        "b": write_adapter(tmp_path / "b", {"layers.0": dense}),
    }
    merged = samerge.merge(folder, adapters, method="elementwise", connectivity="local", density="adaptive:0.2")
    taus = [(B @ A).double() for A, B in (dense, sparse)]
    p = [float(t.abs().sum() ** 2 / (t.numel() * t.square().sum())) for t in taus]
    expected = [round(576 * d) for d in adaptive_densities(p, [576, 576], 0.2)]
    assert kept(merged, "a") == expected
    assert expected[0] < 0.2 * 576 < expected[1]
    assert abs(sum(expected) - 0.2 * 2 * 576) <= 1
    assert merged.report.record.layers["layers.0"].adapters["b"].elements[0] == round(0.2 * 576)


def test_what_lies_outside_the_graph_is_not_pruned(bert):
    merged = samerge.merge(bert.base, bert.adapters, method="paper", density="adaptive")
    share = merged.report.record.layers["bert.pooler.dense"].adapters["talk"]
    assert share.energy_kept == pytest.approx(1.0)


@pytest.mark.parametrize(("density", "mean"), [("adaptive", 0.1), ("adaptive:0.2", 0.2), (0.3, 0.3)])
def test_the_mean_of_a_density(density, mean):
    assert mean_of(density) == mean


@pytest.mark.parametrize(
    "density", ["adaptive:0", "adaptive:1.5", "adaptive:", "adaptive:x", "adapted", "adaptive:nan"]
)
def test_words_that_are_no_density(case, density):
    folder, adapters = case
    with pytest.raises(samerge.OptionError, match=r"must lie in \(0, 1\]"):
        samerge.merge(folder, adapters, method="paper", connectivity="local", density=density)


def test_the_default_chooses_over_all_adapters_and_has_none(case):
    folder, adapters = case
    with pytest.raises(samerge.OptionError, match=r"density='adaptive' must lie in \(0, 1\]"):
        samerge.merge(folder, adapters, method="saliency", connectivity="local", density="adaptive")
