"""Exact order statistics against a sort."""

from __future__ import annotations

import pytest
import torch

from samerge.linalg.order_statistics import largest_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_a_sort(dtype):
    generator = torch.Generator().manual_seed(0)
    pieces = [(g, torch.randn(7, 13, generator=generator, dtype=dtype) * 10.0**g) for g in (0, 1, -30, 0, 1, 0)]
    pieces.append((1, torch.tensor([0.0, -0.0, 1.0, 1.0, 1.0, -1.0, torch.inf, -torch.inf], dtype=dtype)))
    whole = {g: torch.cat([v.flatten() for h, v in pieces if h == g]).sort(descending=True).values for g in (0, 1, -30)}
    ranks = {g: [1, 2, len(v) // 2, len(v) - 1, len(v)] for g, v in whole.items()}
    found = largest_of(lambda: iter(pieces), ranks, dtype)
    for g, values in whole.items():
        assert found[g] == tuple(float(values[k - 1]) for k in ranks[g])


def test_equal_values():
    found = largest_of(lambda: iter([("x", torch.ones(5)), ("x", torch.zeros(5))]), {"x": [1, 5, 6, 10]})
    assert found == {"x": (1.0, 1.0, 0.0, 0.0)}
