"""`svc` against its formula, direction by direction on dense updates."""

from __future__ import annotations

import pytest
import torch

from methods.dense import SHAPES, close, combined, held, svd, updates

WEIGHTS = [1.0, -0.5, 2.0, 0.7]


def dense_svc(deltas, weights, alpha):
    taus = [w * delta for w, delta in zip(weights, deltas, strict=False)]
    u, s, v = svd(sum(taus))
    values = []
    for r in range(len(s)):
        counted = 0.0
        for tau in taus:
            response = u[:, r] @ tau
            size = float(response @ response)
            own = float(s[r] * v[:, r] @ response) / size if size > 1e-20 else 0.0
            counted += max(alpha, own)
        values.append(s[r] * len(taus) / counted)
    return u @ torch.diag(torch.stack(values)) @ v.T


@pytest.mark.parametrize("alpha", [1 / 3, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_svc(shape, alpha):
    parts = updates(*shape)
    weights = WEIGHTS[: len(parts)]
    given = {} if alpha == 1 / 3 else {"alpha": alpha}  # which is the default
    close(combined("svc", parts, weights, **given), dense_svc([p.delta() for p in parts], weights, alpha))


def test_copies_count_once():
    """What is in the sum N times is brought back to once: N copies merge to one of them."""
    (part,) = updates(12, 9, (5,))
    close(combined("svc", [part] * 4, [1.0] * 4), part.delta())


def test_adapters_that_share_nothing_are_added():
    """Who does nothing in a direction counts with alpha there."""
    a, b = torch.zeros(2, 8, 6, dtype=torch.float64)
    a[0, 0], b[1, 1] = 3.0, 2.0
    close(combined("svc", [held(a), held(b)], [1.0, 1.0], alpha=1.0), a + b)
    close(combined("svc", [held(a), held(b)], [1.0, 1.0], alpha=0.5), (a + b) * 2 / 1.5)


def test_it_is_the_authors_merge_of_a_sum_at_another_strength():
    """The sum at lambda with alpha is the sum itself with alpha / lambda."""
    parts = updates(11, 9, (2, 3, 2))
    deltas = [p.delta() for p in parts]
    u, s, v = svd(0.3 * sum(deltas))
    values = []
    for r in range(len(s)):
        own = [float(s[r] * v[:, r] @ (u[:, r] @ tau)) / float((u[:, r] @ tau).square().sum()) for tau in deltas]
        values.append(s[r] * len(deltas) / sum(max(0.1, one) for one in own))
    close(combined("svc", parts, [1.0] * 3), u @ torch.diag(torch.stack(values)) @ v.T)


def test_updates_that_cancel():
    (part,) = updates(12, 9, (5,))
    assert float(combined("svc", [part, part], [1.0, -1.0]).abs().max()) < 1e-6
