"""Cases of the Triton kernel that run anywhere in Triton's interpreter; `test_triton.py` runs them in a process of
their own, because TRITON_INTERPRET=1 has to be set before Triton is imported."""

from __future__ import annotations

import pytest
import torch

from samerge.linalg.factors import LoraFactors
from samerge.saliency.kernels.tiles import Scratch, sweep_plain, sweep_tile, update
from samerge.saliency.kernels.triton_tiles import INTERPRETED, Blocks, TritonKernel, pack, sweep

DEVICE = "cpu" if INTERPRETED else "cuda"
SMALL = Blocks(32, 64, 4, 1)
PRECISE = {"ieee": 1e-5, "tf32x3": 1e-5, "bf16x3": 1e-3}


def problem(ranks, out=45, into=70, dtype=torch.float32, seed=0):
    """theta and, for each expert, factors of some rank; None for one that does not adapt the weight."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    theta = draw(out, into).to(dtype)
    factors = {
        n: LoraFactors(draw(rank, into), 0.5 * draw(out, rank)) for n, rank in enumerate(ranks) if rank is not None
    }
    alpha, beta = draw(len(ranks), into).abs(), draw(len(ranks), out).abs()
    return theta, factors, alpha, beta


def dense(theta, factors, alpha, beta):
    """Both flows and the gammas of every expert, in float64, from the whole W."""
    forward, backward, gammas = [], [], {}
    for n in range(len(alpha)):
        weight = theta.double()
        if n in factors:
            weight = weight + factors[n].B.double() @ factors[n].A.double()
        a, b = alpha[n].double(), beta[n].double()
        forward.append(weight.abs() @ a)
        backward.append(weight.abs().T @ b)
        if n in factors:
            gradient = weight.sign() * b[:, None] * a
            gammas[n] = torch.einsum("ok,oi,ki->k", factors[n].B.double(), gradient, factors[n].A.double())
    return torch.stack(forward), torch.stack(backward), gammas


def on_device(*tensors):
    return [tensor.to(DEVICE) for tensor in tensors]


def run(theta, factors, alpha, beta, transposed=False, products="ieee", step=None, blocks=SMALL):
    """Both sweeps over a weight stored (out, in) or (in, out), in tiles of `step` rows."""
    stored, alpha, beta = on_device(theta.T.contiguous() if transposed else theta, alpha, beta)
    kernel = TritonKernel(products, blocks)
    own = [factors[n].to(DEVICE) if n in factors else None for n in range(len(alpha))]
    u, v = (alpha, beta) if transposed else (beta, alpha)
    there = kernel.sweep(own, transposed, (alpha, None) if transposed else (None, alpha), not transposed)
    back = kernel.sweep(own, transposed, (u, v), transposed)
    forward, backward, gammas = [], [], []
    for start in range(0, len(stored), step or len(stored)):
        tile = stored[start : start + (step or len(stored))]
        found, nothing = there(tile, start)
        assert nothing == []
        forward.append(found.cpu())
        found, gamma = back(tile, start)
        backward.append(found.cpu())
        gammas.append([part.cpu() for part in gamma])
    whole, summed = (backward, forward) if transposed else (forward, backward)
    whole, summed = torch.cat(whole, 1), sum(summed)
    adapting = [n for n, own in factors.items() if own.rank]
    gammas = {n: sum(parts) for n, parts in zip(adapting, zip(*gammas, strict=True), strict=True)}
    return (summed, whole, gammas) if transposed else (whole, summed, gammas)


def error(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


def check(theta, factors, alpha, beta, tolerance=1e-5, **options):
    forward, backward, gammas = run(theta, factors, alpha, beta, **options)
    expected = dense(theta, factors, alpha, beta)
    assert error(forward, expected[0]) < tolerance
    assert error(backward, expected[1]) < tolerance
    adapting = {n for n, factors in factors.items() if factors.rank}
    assert set(gammas) == adapting
    for n in adapting:
        assert error(gammas[n], expected[2][n]) < tolerance, n


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "ranks", [[1], [16, 16, 16], [20, 1, 33], [70, 3], [130, 64], [8, None, 4, None], [None, None], [0, 5]]
)
def test_ranks(ranks, transposed):
    check(*problem(ranks), transposed=transposed)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (32, 64), (70, 7), (33, 129)])
def test_shapes(shape, transposed):
    check(*problem([4, None, 18], *shape), transposed=transposed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dtypes(dtype):
    check(*problem([16, None], dtype=dtype))


@pytest.mark.parametrize("products", ["ieee", "tf32x3", "bf16x3"])
def test_products(products):
    check(*problem([16, 20, None], dtype=torch.bfloat16), products=products, tolerance=PRECISE[products])


def test_other_dtypes_are_converted():
    kernel = TritonKernel()
    assert kernel.tile_dtype(torch.bfloat16) == torch.bfloat16
    assert kernel.tile_dtype(torch.float64) == kernel.tile_dtype(torch.float8_e4m3fn) == torch.float32


@pytest.mark.parametrize("transposed", [False, True])
def test_tiles_add_up(transposed):
    check(*problem([16, None, 3]), transposed=transposed, step=13)


@pytest.mark.parametrize("blocks", [Blocks(16, 16, 4, 1), Blocks(64, 16, 4, 2), Blocks(32, 128, 4, 1)])
def test_block_sizes(blocks):
    check(*problem([16, 70]), blocks=blocks)


def test_the_plain_path_agrees():
    theta, factors, alpha, beta = problem([16, None, 5], dtype=torch.bfloat16)
    forward, backward, gammas = run(theta, factors, alpha, beta)
    tile = theta.float()
    updates = [update(n, f, False, beta[n], alpha[n]) for n, f in factors.items()]
    scratch = Scratch()
    found, sensed = sweep_tile(tile, 0, updates, beta, False, scratch)
    assert error(backward[[0, 2]], found.double()) < 1e-5
    assert error(backward[[1]], sweep_plain(tile, 0, beta[[1]], False).double()) < 1e-5
    assert error(forward[[0, 2]], sweep_tile(tile, 0, updates, alpha, True, scratch)[0].double()) < 1e-5
    for gamma, n in zip(sensed, factors, strict=True):
        assert error(gammas[n], gamma.double()) < 1e-5


def test_the_sign_of_zero_is_zero():
    theta, factors, alpha, beta = problem([3])
    A, B = factors[0].A, factors[0].B
    A, B = A.sign(), B.sign()  # left @ right in whole numbers, so that W is exactly zero where it should be
    factors = {0: LoraFactors(A, B)}
    theta = -(B @ A)
    theta[::2] = 1.0
    assert int((theta + B @ A == 0).sum()) > theta.numel() // 2
    check(theta, factors, alpha, beta)
    nothing = run(torch.zeros_like(theta), {0: LoraFactors(A, torch.zeros_like(B))}, alpha, beta)
    assert all(not part.any() for part in (nothing[0], nothing[1], nothing[2][0]))


def test_nan_shows():
    theta, factors, alpha, beta = problem([4, None])
    theta[7, 9] = float("nan")
    forward, backward, _ = run(theta, factors, alpha, beta)
    assert bool(forward[:, 7].isnan().all())
    assert bool(backward[:, 9].isnan().all())
    assert int(forward.isnan().sum()) == int(backward.isnan().sum()) == 2  # and nowhere else: nothing leaks by a mask


def test_a_strided_tile():
    theta, factors, alpha, beta = problem([4, 6])
    wide = torch.full((theta.shape[0], 2 * theta.shape[1]), 7.0)
    wide[:, ::2] = theta
    expected = run(theta, factors, alpha, beta)
    found = run(wide[:, ::2], factors, alpha, beta)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_missing_flow():
    theta, factors, alpha, _ = problem([4])
    with pytest.raises(ValueError, match="along the columns needs u"):
        sweep(theta, 0, pack([factors[0]], False, "cpu"), (None, alpha), False)
