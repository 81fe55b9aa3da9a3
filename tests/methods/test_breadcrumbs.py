"""`breadcrumbs` against a sort."""

from __future__ import annotations

import pytest

from methods.dense import close
from methods.streams import dense, layers, run


@pytest.mark.parametrize(("density", "top"), [(0.14, 0.01), (0.2, 0.1), (0.5, 0.0), (0.6, 0.4), (1.0, 0.0)])
def test_breadcrumbs(density, top):
    made = layers()
    for update, merged in zip(dense(made), run("breadcrumbs", made, density, top=top), strict=True):
        expected = 0
        for delta in update.values():
            order = delta.flatten().abs().argsort(descending=True)
            dropped = round(top * delta.numel())
            keep = order[dropped : dropped + max(1, round(density * delta.numel()))]
            crumbs = delta.flatten() * 0
            crumbs[keep] = delta.flatten()[keep]
            expected = expected + crumbs.view_as(delta)
        close(merged, expected)
