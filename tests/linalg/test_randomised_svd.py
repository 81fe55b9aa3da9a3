"""The streamed truncated SVD against the dense one: exact where it is exact, near the optimum elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samerge.adapters import read_adapter
from samerge.linalg.randomised_svd import truncated_svd

ADAPTERS = Path(__file__).parents[2] / "examples" / "adapters" / "minilm"


def from_spectrum(rows: int, columns: int, values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(
        torch.randn(rows, columns, generator=generator, dtype=torch.float64), full_matrices=False
    )
    return ((u * values) @ vh).float()


def svd(matrix: torch.Tensor, rank: int, **options):
    """The result, and its error as a multiple of the optimum's."""
    factors, values, lost = truncated_svd(lambda i, j: matrix[i:j], tuple(matrix.shape), rank, **options)
    exact = matrix.double()
    optimum = torch.linalg.svdvals(exact)[rank:].square().sum().sqrt()
    error = (exact - factors.delta().double()).norm()
    assert lost == pytest.approx(float((error / exact.norm()) ** 2), abs=1e-5)
    return factors, values, float(error / optimum) if optimum > 0 else 1.0


DECAYS = {
    "flat": lambda k: torch.ones_like(k),
    "1/sqrt(k)": lambda k: k**-0.5,
    "1/k": lambda k: 1 / k,
    "exponential": lambda k: torch.exp(-k / 8),
    "cliff": lambda k: torch.where(k <= 12, 1.0, 1e-3),
}


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("shape", [(200, 200), (160, 400), (400, 160)])
def test_near_the_optimum_whatever_the_spectrum(decay, shape):
    values = DECAYS[decay](torch.arange(1, min(shape) + 1, dtype=torch.float64))
    for rank in (4, 12):
        assert svd(from_spectrum(*shape, values), rank)[2] < 1.01


def test_near_the_optimum_without_any_structure():
    """A Gaussian matrix: a long tail without a gap is the hardest spectrum for a range finder."""
    matrix = torch.randn(512, 384, generator=torch.Generator().manual_seed(0))
    assert svd(matrix, 16)[2] < 1.01
    assert svd(matrix, 16, power=0)[2] > 1.02  # it is the passes that do it


@pytest.mark.parametrize("module", ["attention.self.query", "attention.output.dense", "intermediate.dense"])
def test_within_one_percent_on_real_updates_masked_by_elements(module):
    """The merge of four real adapters, each masked to its top tenth."""
    adapters = [read_adapter(ADAPTERS / name, name) for name in ("mail", "movies", "reuters", "tweets")]
    for layer in (0, 5):
        taus = [a.modules[f"encoder.layer.{layer}.{module}"].load().to(dtype=torch.float32).delta() for a in adapters]
        merged = sum(taus)
        for score in (lambda tau: tau * merged, lambda tau: tau.abs()):  # noqa: B023
            masked = torch.zeros_like(merged)
            for tau in taus:
                threshold = score(tau).flatten().kthvalue(int(0.9 * tau.numel())).values
                masked += tau * (score(tau) > threshold)
            assert svd(masked, 16)[2] < 1.01


@given(
    rows=st.integers(1, 30), columns=st.integers(1, 30), rank=st.integers(1, 40), seed=st.integers(0, 99),
)  # fmt: skip
def test_small_matrices_are_decomposed_exactly(rows, columns, rank, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    factors, values, _ = svd(matrix, rank, step=4)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    torch.testing.assert_close(values, s[:rank], rtol=1e-6, atol=1e-6)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    torch.testing.assert_close(factors.delta().double(), best, rtol=0, atol=1e-6 * float(s[0]))
    assert factors.rank == min(rank, rows, columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_low_rank_matrix_is_found_whole(dtype):
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(300, 5, generator=generator, dtype=dtype) @ torch.randn(5, 200, generator=generator, dtype=dtype)
    factors, _, lost = truncated_svd(lambda i, j: low[i:j], (300, 200), 5, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(factors.delta(), low, rtol=0, atol=tolerance * float(low.abs().max()))
    assert lost < tolerance


def test_factors_are_balanced_ordered_and_of_fixed_sign():
    values = 1 / torch.arange(1, 101, dtype=torch.float64)
    factors, found, _ = svd(from_spectrum(120, 100, values), 6)
    torch.testing.assert_close(factors.A.norm(dim=1), factors.B.norm(dim=0), rtol=1e-5, atol=0)
    torch.testing.assert_close(factors.A.norm(dim=1).square().double(), found, rtol=1e-5, atol=0)
    assert torch.equal(found, found.sort(descending=True).values)
    assert bool((factors.A.gather(1, factors.A.abs().argmax(1, keepdim=True)) > 0).all())


def test_only_row_tiles_are_asked_for_and_left_as_they_are():
    matrix = torch.randn(100, 90, generator=torch.Generator().manual_seed(0))
    before, asked = matrix.clone(), []

    def rows(start: int, stop: int) -> torch.Tensor:
        asked.append((start, stop))
        return matrix[start:stop]

    truncated_svd(rows, (100, 90), 3, step=32, power=2)
    assert asked == [(0, 32), (32, 64), (64, 96), (96, 100)] * 4  # power + 2 passes
    assert torch.equal(matrix, before)


def test_the_same_every_time_and_no_global_randomness():
    matrix = torch.randn(100, 90, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    first, again = (svd(matrix, 4)[0] for _ in range(2))
    torch.testing.assert_close(first.A, again.A, rtol=0, atol=1e-5)
    torch.testing.assert_close(first.B, again.B, rtol=0, atol=1e-5)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("size", [8, 100])
def test_zero_stays_zero(size):
    factors, values, lost = truncated_svd(lambda i, j: torch.zeros(j - i, size), (size, size), 3)
    assert factors.rank == 3
    assert not factors.delta().any()
    assert not values.any()
    assert lost == 0.0


def test_tiny_and_huge_units_change_nothing():
    matrix = torch.randn(100, 90, generator=torch.Generator().manual_seed(0))
    _, values, one = svd(matrix, 4)
    for unit in (1e-25, 1e12):
        _, scaled, times, = svd(matrix * unit, 4)  # fmt: skip
        torch.testing.assert_close(scaled / unit, values, rtol=1e-4, atol=0)
        assert times == pytest.approx(one, abs=1e-4)


@pytest.mark.parametrize("size", [10, 120])
def test_energy_picks_the_smallest_rank(size):
    values = 1 / torch.arange(1, size + 1, dtype=torch.float64)
    matrix = from_spectrum(size, size, values)
    shares = values.square().cumsum(0) / values.square().sum()
    for energy in (0.5, 0.7, 0.9):
        factors, _, lost = truncated_svd(lambda i, j: matrix[i:j], (size, size), 16, energy=energy)
        assert factors.rank == int((shares < energy).sum()) + 1
        assert lost <= 1 - energy
    assert truncated_svd(lambda i, j: matrix[i:j], (size, size), 2, energy=1.0)[0].rank == 2  # rank is the limit


@pytest.mark.parametrize("options", [{"rank": 0}, {"power": -1}, {"energy": 0.0}, {"energy": 1.5}])
def test_arguments_out_of_range(options):
    with pytest.raises(ValueError, match="truncated_svd needs rank >= 1"):
        truncated_svd(lambda i, j: torch.zeros(j - i, 4), (4, 4), **{"rank": 2, **options})


@pytest.mark.parametrize("size", [4, 100])
def test_broken_tiles(size):
    with pytest.raises(ValueError, match=f"gave \\({size}, 3\\); expected \\({size}, {size}\\)"):
        truncated_svd(lambda i, j: torch.zeros(j - i, 3), (size, size), 2)
    with pytest.raises(ValueError, match="hold NaN or infinite values"):
        truncated_svd(lambda i, j: torch.full((j - i, size), float("nan")), (size, size), 2)
