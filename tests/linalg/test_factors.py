"""Low-rank factors against the dense matrices that they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samerge.linalg.factors import LoraFactors, balanced, concatenate, gram, norm, pad


def factors(rank: int = 3, out: int = 5, into: int = 4, scale: float = 0.5, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(
        torch.randn(rank, into, generator=generator, dtype=dtype),
        torch.randn(out, rank, generator=generator, dtype=dtype),
        scale,
    )


def test_delta_rank_and_shape():
    f = factors()
    assert (f.rank, f.shape) == (3, (5, 4))
    torch.testing.assert_close(f.delta(), 0.5 * f.B @ f.A)


@pytest.mark.parametrize(("a", "b"), [((2, 3), (4, 3)), ((3,), (4, 3)), ((2, 3, 1), (4, 2))])
def test_factors_that_do_not_belong_together(a, b):
    with pytest.raises(ValueError, match=r"needs A \(r, d_in\) and B \(d_out, r\); got A \("):
        LoraFactors(torch.zeros(a), torch.zeros(b))


def test_folding_selecting_and_padding_keep_the_update():
    f = factors(rank=4)
    torch.testing.assert_close(f.folded().delta(), f.delta())
    assert f.folded().scale == 1.0
    torch.testing.assert_close(f.select(torch.tensor([2, 0])).delta(), 0.5 * f.B[:, [2, 0]] @ f.A[[2, 0]])
    padded = pad(f, 7)
    assert padded.rank == 7
    torch.testing.assert_close(padded.delta(), f.delta())
    assert pad(f, 4) is f
    with pytest.raises(ValueError, match="cannot pad factors of rank 4 down to rank 3; truncate"):
        pad(f, 3)


def test_existing_leaves_out_what_is_exactly_zero():
    f = factors(rank=4)
    A, B = f.A.clone(), f.B.clone()
    A[1], B[:, 3] = 0, 0
    dead = LoraFactors(A, B, f.scale)
    alive = dead.existing()
    assert alive.rank == 2
    torch.testing.assert_close(alive.delta(), dead.delta())
    assert alive.existing() is alive
    assert LoraFactors(torch.zeros(2, 3), torch.zeros(4, 2)).existing().rank == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.data())
def test_concatenation_is_the_weighted_sum(ranks, data):
    weights = data.draw(st.lists(st.floats(-2, 2), min_size=len(ranks), max_size=len(ranks)))
    parts = [factors(rank=r, scale=0.3 + i, seed=i) for i, r in enumerate(ranks)]
    whole = concatenate(parts, weights)
    assert whole.rank == sum(ranks)
    assert whole.scale == 1.0
    torch.testing.assert_close(whole.delta(), sum(w * p.delta() for w, p in zip(weights, parts, strict=True)))
    torch.testing.assert_close(concatenate(parts).delta(), sum(p.delta() for p in parts))


def test_concatenation_wants_a_weight_for_each():
    with pytest.raises(ValueError, match="zip"):
        concatenate([factors(), factors()], [1.0])


def test_gram_holds_the_inner_products_of_the_components():
    f = factors(rank=3)
    parts = [f.select(torch.tensor([k])).delta() for k in range(3)]
    expected = torch.tensor([[float((x * y).sum()) for y in parts] for x in parts], dtype=torch.float64)
    torch.testing.assert_close(gram(f), expected)


@given(st.integers(0, 6), st.floats(-3, 3), st.integers(0, 99))
def test_norm_is_frobenius(rank, scale, seed):
    f = factors(rank=rank, scale=scale, seed=seed)
    torch.testing.assert_close(norm(f), f.delta().norm())
    assert norm(f.to(dtype=torch.float32)).dtype == torch.float64


def test_norm_of_what_cancels_is_no_nan():
    f = factors()
    assert float(norm(concatenate([f, f], [1.0, -1.0]))) < 1e-7


@given(st.integers(-40, 40), st.integers(0, 99))
def test_balancing_is_exact_and_brings_both_sides_to_like_size(power, seed):
    f = factors(seed=seed, dtype=torch.float32)
    lopsided = LoraFactors(f.A * 2.0**power, f.B * 2.0**-power, f.scale)
    even = balanced(lopsided)
    # powers of two: each component moves between the sides without a rounding
    whole = lopsided.folded()
    for k in range(even.rank):
        assert torch.equal(torch.outer(even.B[:, k], even.A[k]), torch.outer(whole.B[:, k], whole.A[k]))
    ratio = even.B.abs().amax(0) / even.A.abs().amax(1)
    assert ((ratio > 0.4) & (ratio < 2.6)).all()


def test_balancing_leaves_zero_components_alone():
    A, B = torch.ones(3, 4), torch.ones(5, 3) * 8
    A[0], B[:, 1] = 0, 0
    even = balanced(LoraFactors(A, B))
    assert torch.equal(even.delta(), B @ A)
    assert torch.isfinite(even.A).all()
    assert torch.isfinite(even.B).all()
    assert balanced(LoraFactors(torch.zeros(0, 4), torch.zeros(5, 0))).rank == 0


def test_half_precision_keeps_a_balanced_update():
    """A singular value that sits in B alone would fall below fp16's range."""
    f = LoraFactors(torch.randn(2, 8, generator=torch.Generator().manual_seed(0)), torch.full((6, 2), 1e-7))
    half = balanced(f).to(dtype=torch.float16)
    error = (half.to(dtype=torch.float32).delta() - f.delta()).norm() / f.delta().norm()
    assert error < 2e-3


def test_moving_keeps_scale_and_values():
    f = factors().to("cpu", torch.float32)
    assert (f.A.dtype, f.B.dtype, f.scale) == (torch.float32, torch.float32, 0.5)
