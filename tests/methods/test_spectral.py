"""`tsv`, `iso-c` and `star` against their formulas on dense updates, and through `merge`."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge
from methods.dense import SHAPES, close, combined, svd, updates
from samerge.methods import star

WEIGHTS = [1.0, -0.5, 2.0, 0.7]


def dense_tsv(deltas, weights, density):
    lefts, values, rights = [], [], []
    for w, delta in zip(weights, deltas, strict=False):
        u, s, v = svd(delta)
        k = max(1, round(density * len(s)))
        lefts.append(u[:, :k])
        values.append(w * s[:k])
        rights.append(v[:, :k])

    def polar(columns):
        x, _, yh = torch.linalg.svd(columns, full_matrices=False)
        return x @ yh

    return polar(torch.cat(lefts, 1)) @ torch.diag(torch.cat(values)) @ polar(torch.cat(rights, 1)).T


def dense_star(deltas, weights, eta):
    merged = torch.zeros_like(deltas[0])
    for w, delta in zip(weights, deltas, strict=False):
        u, s, v = svd(delta)
        k = next(k for k in range(1, len(s) + 1) if s[:k].sum() >= eta * s.sum() * (1 - 1e-12))
        merged += w * s.sum() / s[:k].sum() * u[:, :k] @ torch.diag(s[:k]) @ v[:, :k].T
    return merged / len(deltas)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_tsv(shape, density):
    parts = updates(*shape)
    weights = WEIGHTS[: len(parts)]
    ours = combined("tsv", parts, weights, density=density)
    close(ours, dense_tsv([p.delta() for p in parts], weights, density))


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c(shape):
    parts = updates(*shape)
    weights = WEIGHTS[: len(parts)]
    ours = combined("iso-c", parts, weights)
    u, s, v = svd(sum(w * p.delta() for w, p in zip(weights, parts, strict=True)))
    close(ours, s.mean() * u @ v.T)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eta", [0.2, 0.4, 0.8, 1.0])
def test_star(shape, eta, monkeypatch):
    if eta != 0.4:  # which is that of the product
        monkeypatch.setattr(star, "_ETA", eta)
    parts = updates(*shape)
    weights = WEIGHTS[: len(parts)]
    ours = combined("star", parts, weights)
    close(ours, dense_star([p.delta() for p in parts], weights, eta))


def test_star_keeps_the_nuclear_norm():
    (part,) = updates(12, 9, (5,))
    merged = combined("star", [part], [1.0])
    nuclear = torch.linalg.matrix_norm(part.delta(), "nuc")
    close(torch.linalg.matrix_norm(merged, "nuc"), nuclear)
    assert torch.linalg.matrix_rank(merged) < 5


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spectral")
    base = chain([8, 9, 7])
    adapters, deltas = {}, {}
    for n, rank in enumerate([2, 3]):
        factors = chain_factors(base, rank, seed=n)
        if n:
            del factors["layers.1"]
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", factors)
        for module, (A, B) in factors.items():
            deltas.setdefault(module, []).append(B.double() @ A.double())
    return adapters, deltas


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("tsv", lambda d, n: dense_tsv(d, [1.0] * len(d), 1.0)),
        ("star", lambda d, n: dense_star(d, [1.0] * len(d), 0.4) * len(d) / n),
        ("iso-c", lambda d, n: (lambda u, s, v: s.mean() * u @ v.T)(*svd(sum(d)))),
    ],
)
def test_through_merge(case, method, expected, tmp_path):
    adapters, deltas = case
    merged = samerge.merge(None, adapters, method=method)
    for module, found in deltas.items():
        torch.testing.assert_close(merged.delta(module).double(), expected(found, 2), rtol=1e-5, atol=1e-5)
    merged.save(tmp_path / "out")
    assert merged.report.record.options.get("density") == (1.0 if method == "tsv" else None)


def test_options_of_the_method_alone(case):
    adapters, deltas = case
    merged = samerge.merge(None, adapters, method="tsv", density=0.5)
    expected = dense_tsv(deltas["layers.0"], [1.0] * 2, 0.5)
    torch.testing.assert_close(merged.delta("layers.0").double(), expected, rtol=1e-5, atol=1e-5)
    wrong = (("tsv", {"mu": 1}), ("linear", {"mu": 1}), ("tsv", {"density": 2.0}), ("tsv", {"density": "much"}))
    for method, own in wrong:
        with pytest.raises(samerge.OptionError, match=next(iter(own))):
            samerge.merge(None, adapters, method=method, **own)
    with pytest.raises(samerge.OptionError, match="density"):
        samerge.merge(None, adapters, method="tsv", density="adaptive")
