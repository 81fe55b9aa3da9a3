"""Exact selection against a stable sort."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samerge.linalg import largest as select
from samerge.linalg.largest import keep_largest


def sorted_selection(scores, count):
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[torch.sort(scores.flatten(), descending=True, stable=True).indices[:count]] = True
    return kept.view(scores.shape)


KINDS = {
    "random": lambda g, n: torch.randn(n, generator=g),
    "ties": lambda g, n: torch.randint(-3, 4, (n,), generator=g).float(),
    "zeros of both signs": lambda g, n: torch.where(torch.rand(n, generator=g) < 0.5, 0.0, -0.0),
    "zeros among others": lambda g, n: torch.randn(n, generator=g) * (torch.rand(n, generator=g) < 0.5),
    "pruned": lambda g, n: torch.randn(n, generator=g).masked_fill(torch.rand(n, generator=g) < 0.7, -torch.inf),
    "both infinities": lambda g, n: torch.tensor([torch.inf, -torch.inf, 1.0])[torch.randint(0, 3, (n,), generator=g)],
    "tiny and huge": lambda g, n: torch.randn(n, generator=g) * 10.0 ** torch.randint(-44, 38, (n,), generator=g),
    "close": lambda g, n: 1 + torch.randint(0, 40, (n,), generator=g) * torch.finfo(torch.float32).eps,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 11), (300, 901)])  # sorted; by histograms, in two chunks
def test_equals_a_stable_sort(kind, dtype, shape):
    generator = torch.Generator().manual_seed(len(kind))
    size = shape[0] * shape[1]
    scores = KINDS[kind](generator, size).to(dtype).view(shape)
    before = scores.clone()
    for count in (0, 1, size // 3, size // 2, size - 1, size):
        kept = keep_largest(scores, count)
        assert kept.sum() == count
        assert torch.equal(kept, sorted_selection(scores, count)), count
    assert torch.equal(scores, before)  # what came in stays as it was


@given(
    st.lists(st.floats(allow_nan=False, width=32), min_size=1, max_size=60), st.data(), st.sampled_from(["32", "64"])
)
def test_any_scores_by_histograms(values, data, width):
    scores = torch.tensor(values, dtype=torch.float32 if width == "32" else torch.float64)
    count = data.draw(st.integers(1, len(values)))
    flat = scores.reshape(-1)
    threshold, ties = select._threshold(flat, count)
    keys = select.ordered(flat)
    kept = keys > threshold
    kept[(keys == threshold).nonzero().flatten()[:ties]] = True
    assert torch.equal(kept, sorted_selection(scores, count))


@pytest.mark.parametrize("count", [-1, 5])
def test_a_count_out_of_range(count):
    with pytest.raises(ValueError, match=f"cannot keep {count} of 4"):
        keep_largest(torch.zeros(4), count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_that_misleads(dtype):
    """Every value that the sample takes is far above all others."""
    size = 300 * 901
    scores = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    scores[:: max(1, size // select._SAMPLE)] += 100
    assert select._bracketed(scores.numpy(), size // 2) is None
    for count in (1, size // 50, size // 2, size - 5):
        assert torch.equal(keep_largest(scores, count), sorted_selection(scores, count))
