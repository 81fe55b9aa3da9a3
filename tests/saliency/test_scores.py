"""eta, scores, schedule, budgets and selection, each against the plain words of its definition."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samerge.saliency.scores import kept_count, score, shares, top


def test_scores():
    gamma, eta = torch.tensor([-1.0, 2.0, 3.0]), torch.tensor([5.0, -7.0, 1.0])
    assert score(gamma, eta, 1.0, signed=False).tolist() == [5.0, 14.0, 3.0]
    assert score(gamma, eta, -2.0, signed=False).tolist() == [10.0, 28.0, 6.0]
    assert score(gamma, eta, 1.0, signed=True).tolist() == [5.0, -14.0, 3.0]
    assert score(gamma, eta, -2.0, signed=True).tolist() == [-10.0, 28.0, -6.0]


@pytest.mark.parametrize(
    ("available", "fraction", "steps", "counts"),
    [
        (16, 0.1, 10, [13, 10, 8, 6, 5, 4, 3, 3, 2, 2]),
        (16, 0.125, 1, [2]),
        (16, 1.0, 3, [16, 16, 16]),
        (4, 0.1, 2, [1, 1]),  # never none
        (1, 0.5, 1, [1]),
        (5, 0.5, 1, [2]),  # half to even
        (7, 0.5, 1, [4]),
        (0, 0.5, 3, [0, 0, 0]),
    ],
)
def test_the_schedule(available, fraction, steps, counts):
    assert [kept_count(available, fraction, t, steps) for t in range(1, steps + 1)] == counts


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 12))
def test_the_schedule_arrives_and_never_climbs(available, goal, steps):
    goal = min(goal, available)
    counts = [kept_count(available, goal / available, t, steps) for t in range(1, steps + 1)]
    assert counts[-1] == goal
    assert sorted(counts, reverse=True) == counts


@given(st.lists(st.integers(0, 40), min_size=1, max_size=50), st.integers(1, 200))
def test_a_budget_is_spent_to_the_last(ranks, budget):
    parts = shares(ranks, budget)
    assert sum(parts) == min(budget, sum(ranks))
    assert all(0 <= part <= rank for part, rank in zip(parts, ranks, strict=True))
    living = sum(rank > 0 for rank in ranks)
    if budget >= living:
        assert all(part > 0 for part, rank in zip(parts, ranks, strict=True) if rank)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=20), st.integers(1, 200))
def test_shares_are_the_quotas_rounded_by_largest_remainder(ranks, budget):
    parts = shares(ranks, budget)
    if sum(ranks) <= budget:
        return
    quotas = [budget * rank / sum(ranks) for rank in ranks]
    if min(quotas) >= 1:  # nobody had to be lifted to one
        assert all(abs(part - quota) < 1 for part, quota in zip(parts, quotas, strict=True))
        up = [q % 1 for p, q in zip(parts, quotas, strict=True) if p > q]
        down = [q % 1 for p, q in zip(parts, quotas, strict=True) if p < q]
        assert not up or not down or min(up) >= max(down) - 1e-9
    larger = sorted(range(len(ranks)), key=lambda i: ranks[i])
    assert all(parts[i] <= parts[j] + 1 for i, j in itertools.pairwise(larger))


def test_shares_by_hand():
    assert shares([16] * 3, 16) == [6, 5, 5]
    assert shares([8, 8, 20], 20) == [5, 4, 11]
    assert shares([64, 1, 1], 3) == [1, 1, 1]
    assert shares([4, 0, 4], 5) == [3, 0, 2]


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(0, 35))
def test_top_takes_the_largest_and_of_equals_the_first(scores, count):
    expected = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])
    assert top(torch.tensor(scores, dtype=torch.float64), count).tolist() == expected
