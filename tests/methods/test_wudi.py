"""`wudi` against gradient descent run to convergence, and against its formulas on dense updates."""

from __future__ import annotations

import pytest
import torch

from methods.dense import SHAPES, close, combined, updates
from samerge.linalg.factors import LoraFactors
from samerge.methods import wudi

WEIGHTS = [1.0, 0.5, 2.0, -0.7]


def loss(M, targets, deltas):
    return sum(((M - t) @ d.T).square().sum() / d.square().sum() for t, d in zip(targets, deltas, strict=True))


def descended(targets, deltas, steps=200000):
    """Gradient descent with momentum from zero, in float64, by autograd."""
    M = torch.zeros_like(deltas[0], requires_grad=True)
    top = float(torch.linalg.eigvalsh(sum(d.T @ d / d.square().sum() for d in deltas))[-1])
    previous = M.detach().clone()
    for step in range(steps):
        (gradient,) = torch.autograd.grad(loss(M, targets, deltas), M)
        if float(gradient.norm()) < 1e-12:
            break
        with torch.no_grad():
            new = M - gradient / (2 * top)
            moved = new + step / (step + 3) * (new - previous) * (1 if step % 400 else 0)
            previous = new
            M.copy_(moved)
    return M.detach()


@pytest.mark.parametrize("cutoff", [1e-6, 1e-14])  # that of the product, and next to none
@pytest.mark.parametrize("shape", [(11, 9, (2, 3, 2)), (7, 14, (3, 4, 2)), (15, 5, (3, 4, 1))])
def test_gradient_descent_ends_there(shape, cutoff, monkeypatch):
    """Where the stacked A have full row rank the minimum is 0; the third case has more rows than d_in."""
    parts = updates(*shape)
    deltas = [p.delta() for p in parts]
    targets = [w * d for w, d in zip(WEIGHTS, deltas, strict=False)]
    found = descended(targets, deltas)
    if cutoff != 1e-6:
        monkeypatch.setattr(wudi, "_CUTOFF", cutoff)
    ours = combined("wudi", parts, WEIGHTS)
    scale = float(loss(torch.zeros_like(found), targets, deltas))
    assert float(loss(ours, targets, deltas)) <= float(loss(found, targets, deltas)) + 1e-12 * scale
    assert float((ours - found).norm()) < 1e-10 * float(found.norm())


@pytest.mark.parametrize("shape", [s for s in SHAPES if sum(s[2]) <= min(s[:2])])
def test_it_solves_on_every_row_space(shape, monkeypatch):
    """M a = w_i tau_i a for every a in the row space of A_i; M = [w_i tau_i A_i^T] (A A^T)^-1 A."""
    parts = updates(*shape)
    monkeypatch.setattr(wudi, "_CUTOFF", 1e-14)
    ours = combined("wudi", parts, WEIGHTS)
    for w, part in zip(WEIGHTS, parts, strict=False):
        torch.testing.assert_close(ours @ part.A.T, w * part.delta() @ part.A.T, rtol=1e-7, atol=1e-7)
    A = torch.cat([p.A for p in parts])
    right = torch.cat([w * p.delta() @ p.A.T for w, p in zip(WEIGHTS, parts, strict=False)], dim=1)
    torch.testing.assert_close(ours, right @ torch.linalg.inv(A @ A.T) @ A, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mu", [0.0, 0.1, 10.0])
def test_against_the_formula_on_dense_updates(shape, mu):
    parts = updates(*shape)
    deltas = [p.delta() for p in parts]
    weights = WEIGHTS[: len(parts)]
    C = [d.T @ d / d.square().sum() for d in deltas]
    total = sum(C)
    target = sum(w * d @ c for w, d, c in zip(weights, deltas, C, strict=True))
    values = torch.linalg.eigvalsh(total)
    cut = 1e-6
    if mu:
        ridge = mu * values[values > cut * values[-1]].mean()
        plain = sum(w * d for w, d in zip(weights, deltas, strict=True))
        eye = torch.eye(len(total), dtype=torch.float64)
        expected = (target + ridge * plain) @ torch.linalg.inv(total + ridge * eye)
    else:
        expected = target @ torch.linalg.pinv(total, rtol=cut, hermitian=True)
    close(combined("wudi", parts, weights, mu=mu), expected)


@pytest.mark.parametrize("mu", [1e-8, 1e-10, 1e-12, 1e-14])
def test_a_small_ridge_is_none(mu, monkeypatch):
    """Also where C has directions that no expert has: two adapters with one A."""
    first, other = updates(11, 9, (2, 3))
    parts = [first, LoraFactors(first.A, first.B.flip(0)), other]
    monkeypatch.setattr(wudi, "_CUTOFF", 1e-14)
    none, small = (combined("wudi", parts, [1.0] * 3, mu=m) for m in (0.0, mu))
    assert float((small - none).norm()) < 1e-6 * float(none.norm())


def test_a_large_ridge_is_the_sum():
    parts = updates(11, 9, (2, 3))
    merged = combined("wudi", parts, [1.0, 1.0], mu=1e9)
    torch.testing.assert_close(merged, sum(p.delta() for p in parts), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_aswudi_keeps_the_leading_eigenvectors(shape):
    parts = updates(*shape)
    deltas = [p.delta() for p in parts]
    C = [d.T @ d / d.square().sum() for d in deltas]
    values, vectors = torch.linalg.eigh(sum(C))
    values = values.clamp_min(0)
    values[values < 1e-6 * values[-1]] = 0
    count = max(1, round(float(values.sqrt().sum() ** 2 / values.sum())))
    lead, kept = vectors[:, -count:], values[-count:]
    target = sum(d @ c for d, c in zip(deltas, C, strict=True))
    close(combined("aswudi", parts, [1.0] * len(parts)), target @ lead / kept @ lead.T)
