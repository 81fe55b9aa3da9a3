"""eta, scores, schedule, budgets and selection, each against the plain words of its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samerge.saliency.scores import kept_count, score, top


def test_scores():
    gamma, eta = torch.tensor([-1.0, 2.0, 3.0]), torch.tensor([5.0, -7.0, 1.0])
    assert score(gamma, eta).tolist() == [5.0, 14.0, 3.0]


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


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(0, 35))
def test_top_takes_the_largest_and_of_equals_the_first(scores, count):
    expected = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])
    assert top(torch.tensor(scores, dtype=torch.float64), count).tolist() == expected
