"""`spectrum="flat"` against a dense SVD."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge
from samerge.linalg.factors import LoraFactors, concatenate
from samerge.linalg.spectrum import flatten


def draw(rank: int, d_out: int = 9, d_in: int = 7, seed: int = 0, dtype=torch.float64) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(
        torch.randn(rank, d_in, generator=generator, dtype=dtype),
        torch.randn(d_out, rank, generator=generator, dtype=dtype),
        scale=0.7,
    )


def dense_flat(matrix: torch.Tensor, rank: int | None = None) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    count = min(int((s > 1e-6 * s[0]).sum()), rank or len(s))
    return s[:count].square().mean().sqrt() * u[:, :count] @ vh[:count]


@pytest.mark.parametrize("rank", [1, 3, 7, 12])
def test_against_a_dense_svd(rank):
    f = draw(rank)
    torch.testing.assert_close(flatten(f).delta(), dense_flat(f.delta()), rtol=1e-10, atol=1e-10)
    assert float(flatten(f).delta().norm()) == pytest.approx(float(f.delta().norm()))
    torch.testing.assert_close(flatten(flatten(f)).delta(), flatten(f).delta(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_directions_that_are_zero_stay_zero(dtype):
    """More components than rank, in another gauge, and a component of zeros: noise of rounding is not blown up."""
    f = draw(3, dtype=dtype)
    twice = concatenate([f, draw(3, dtype=dtype), LoraFactors(torch.zeros(2, 7, dtype=dtype), draw(2, dtype=dtype).B)])
    flat = flatten(twice)
    assert flat.rank == 3
    torch.testing.assert_close(flat.delta().double(), dense_flat(f.delta()) * 2, rtol=1e-4, atol=1e-4)
    none = flatten(LoraFactors(torch.zeros(2, 7, dtype=dtype), torch.zeros(9, 2, dtype=dtype)))
    assert none.rank == 0
    assert none.shape == (9, 7)


@pytest.mark.parametrize("svd_rank", [2, 4, 9])
def test_after_the_truncation(tmp_path, svd_rank):
    """Where the rank of the layer is below svd_rank, only what is there is made flat."""
    base = chain([10, 9, 8])
    tables = [chain_factors(base, rank, seed) for seed, rank in enumerate([3, 2])]
    adapters = {f"e{n}": write_adapter(tmp_path / f"e{n}", table) for n, table in enumerate(tables)}
    merged = samerge.merge(None, adapters, method="linear", svd_rank=svd_rank, spectrum="flat")
    for module in ("layers.0", "layers.1"):
        exact = sum(table[module][1].double() @ table[module][0].double() for table in tables)
        expected = dense_flat(exact, min(svd_rank, 5))
        torch.testing.assert_close(merged.delta(module).double(), expected, rtol=1e-4, atol=1e-4)
        assert merged.report.record["layers"][module]["rank"] == min(svd_rank, 5)


def test_what_cancels_is_not_blown_up(tmp_path):
    base = chain([10, 9, 8])
    table = chain_factors(base, 3, 0)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turned = {module: (Q.T @ A, B @ Q) for module, (A, B) in table.items()}
    adapters = [write_adapter(tmp_path / "a", table), write_adapter(tmp_path / "b", turned)]
    with pytest.warns(UserWarning, match="cancel each other, but for rounding"):
        merged = samerge.merge(None, adapters, weights=[1.0, -1.0], method="linear", spectrum="flat", scaling="auto")
    exact = table["layers.0"][1] @ table["layers.0"][0]
    assert float(merged.delta("layers.0").norm()) < 1e-5 * float(exact.norm())


def test_another_word_is_refused(tmp_path):
    adapter = write_adapter(tmp_path / "a", chain_factors(chain([4, 5]), 2, 0))
    with pytest.raises(samerge.OptionError, match="spectrum='even' is not known; choose one of kept, flat"):
        samerge.merge(None, [adapter], method="linear", spectrum="even")
