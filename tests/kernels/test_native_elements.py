"""The kernel of single elements against NumPy, at widths that are no whole number of bytes, with ties and two uses."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from samerge.saliency.kernels import native_elements

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


def drawn(rows: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """theta, tau, and bools of what survives; some weights are zero."""
    generator = torch.Generator().manual_seed(seed)
    theta, tau = (torch.randn(rows, columns, generator=generator) for _ in range(2))
    theta[0, 0] = tau[0, 0] = 0.0
    theta[-1, -1] = -tau[-1, -1]
    return theta, tau, (torch.rand(rows, columns, generator=generator) < 0.6).numpy()


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 31, 32, 45, 64, 100])
@pytest.mark.parametrize("along_rows", [True, False])
@pytest.mark.parametrize("pruned", [True, False])
def test_flow(columns, along_rows, pruned):
    theta, tau, alive = drawn(5, columns)
    alive = alive if pruned else np.ones_like(alive)
    left = tau * torch.from_numpy(alive)
    strength = (theta + left).abs()
    vector = torch.rand(columns if along_rows else 5)
    out, merged = torch.zeros(5 if along_rows else columns), torch.ones(5, columns)
    bits = np.packbits(alive, axis=1) if pruned else None
    native_elements.flow(theta, tau, bits, vector, out, along_rows, merged, -0.5)
    torch.testing.assert_close(out, strength @ vector if along_rows else strength.T @ vector)
    torch.testing.assert_close(merged, 1 - 0.5 * left)
    out.zero_()
    native_elements.flow(theta, None, None, vector, out, along_rows, None, 1.0)
    torch.testing.assert_close(out, theta.abs() @ vector if along_rows else theta.abs().T @ vector)


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 45, 64])
@pytest.mark.parametrize("task", [True, False])
@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("uses", [1, 2])
def test_selection(columns, task, pruned, ties, uses):
    rows = 6
    theta, tau, alive = drawn(rows, columns, seed=columns)
    alive = alive if pruned else np.ones_like(alive)
    merged = torch.randn(rows, columns)
    if ties:  # few values, exact in floating point
        theta, tau, merged = (t.sign() for t in (theta, tau * 2, merged))
        pairs = [(torch.ones(rows), torch.ones(columns)) for _ in range(uses)]
    else:
        pairs = [(torch.rand(rows), torch.rand(columns)) for _ in range(uses)]
    W = theta + tau * torch.from_numpy(alive)
    score = sum(torch.outer(u, v) for u, v in pairs) * merged
    score = score * W.sign().abs() * tau * 2.0 if task else score * W.sign()
    places = np.flatnonzero(alive)
    order = places[np.argsort(-(score.numpy().ravel()[places] + 0.0), kind="stable")]
    bits = np.packbits(alive, axis=1) if pruned else None
    for count in {1, max(1, len(places) // 3), len(places)}:
        selection = native_elements.Selection(merged, pairs, task, 2.0, len(places))
        for start, stop in ((0, 4), (4, rows)):
            selection.add(theta[start:stop], tau[start:stop], None if bits is None else bits[start:stop], start)
        kept = np.unpackbits(selection.kept(count, bits), axis=1, count=columns)
        assert set(np.flatnonzero(kept)) == set(order[:count])


@pytest.mark.parametrize("columns", [1, 7, 8, 45, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_weights_as_they_are_stored(columns, dtype):
    """An expert's own weight in place of tau, and both in bfloat16."""
    theta, tau, alive = drawn(6, columns)
    theta, own = theta.to(dtype), (theta + tau).to(dtype)
    tau, bits = own.float() - theta.float(), np.packbits(alive, axis=1)
    for along_rows in (True, False):
        found, expected = [torch.zeros(6 if along_rows else columns) for _ in range(2)]
        both = torch.ones(2, 6, columns)
        vector = torch.rand(columns if along_rows else 6)
        native_elements.flow(theta, own, bits, vector, found, along_rows, both[0], -0.5, whole=True)
        native_elements.flow(theta.float(), tau, bits, vector, expected, along_rows, both[1], -0.5)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(both[0], both[1])
    if dtype == torch.bfloat16:  # the base alone, at the end of its columns too
        native_elements.flow(theta, None, None, torch.ones(columns), out := torch.zeros(6), True, None, 1.0)
        torch.testing.assert_close(out, theta.float().abs().sum(dim=1))
    count, pairs = int(alive.sum()), [(torch.rand(6), torch.rand(columns))]
    merged, kept = torch.randn(6, columns), []
    for base, change, whole in ((theta, own, True), (theta.float(), tau, False)):
        selection = native_elements.Selection(merged, pairs, False, 2.0, count)
        selection.add(base, change, bits, 0, whole)
        kept.append(selection.kept(max(1, count // 2), bits))
    assert np.array_equal(*kept)
