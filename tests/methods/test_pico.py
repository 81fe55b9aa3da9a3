"""`pico` against its formula on dense matrices, through whole merges."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge
from samerge.methods.pico import damped


def dense_pico(parts, weights):
    """(A, B) of each adapter, B with its scale."""
    u, s, _ = torch.linalg.svd(torch.cat([B for _, B in parts], dim=1), full_matrices=False)
    shares = s**2 / (s**2).sum()
    calm = torch.eye(len(u), dtype=u.dtype) + u @ torch.diag(1 / (1 + (len(parts) - 1) * shares) - 1) @ u.T
    merged = sum(w * calm @ B @ A for w, (A, B) in zip(weights, parts, strict=True))
    wanted = sum(abs(w) * (B @ A).norm() for w, (A, B) in zip(weights, parts, strict=True)) / len(parts)
    return merged * wanted / merged.norm(), [float(((calm @ B @ A).norm() / (B @ A).norm()) ** 2) for A, B in parts]


@pytest.mark.parametrize("ranks", [(2, 3, 4), (5, 6, 6), (4,)])
def test_pico(ranks, tmp_path):
    """Also with more components than the layer has rows."""
    base = chain([14, 12, 13])
    weights = [1.0, -0.5, 2.0][: len(ranks)]
    tables = [chain_factors(base, rank, seed=n) for n, rank in enumerate(ranks)]
    adapters = {f"e{n}": write_adapter(tmp_path / f"e{n}", table, alpha=8) for n, table in enumerate(tables)}
    merged = samerge.merge(None, adapters, method="pico", weights=weights, progress=False)
    for module in base_modules(base):
        parts = [(A.double(), B.double() * 8 / len(A)) for A, B in (table[module] for table in tables)]
        expected, energies = dense_pico(parts, weights)
        torch.testing.assert_close(merged.delta(module).double(), expected, rtol=1e-4, atol=1e-4)
        kept = [one.energy_kept for one in merged.report.record.layers[module].adapters.values()]
        assert kept == pytest.approx(energies, rel=1e-4)


def base_modules(base) -> list[str]:
    return [name.removesuffix(".weight") for name in base]


def test_a_direction_that_all_share_is_damped_by_their_number():
    """s_1^2 is all there is: a factor of 1 / N."""
    column = torch.randn(7, 1, dtype=torch.float64)
    for B in damped([column] * 5):
        torch.testing.assert_close(B, column / 5)


def test_it_depends_on_the_gauge(tmp_path):
    """The law that it is not bound by: other factors of the same updates, another merge."""
    base = chain([14, 12])
    tables = [chain_factors(base, 4, seed=n) for n in range(2)]
    turn = torch.diag(torch.tensor([1.0, 4.0, 0.5, 2.0]))
    other = [{m: (torch.linalg.solve(turn, A), B @ turn) for m, (A, B) in table.items()} for table in tables]
    found = []
    for name, given in (("one", tables), ("other", other)):
        adapters = {f"e{n}": write_adapter(tmp_path / name / f"e{n}", table) for n, table in enumerate(given)}
        found.append(samerge.merge(None, adapters, method="pico", progress=False).delta("layers.0"))
    assert float((found[0] - found[1]).norm()) > 0.01 * float(found[0].norm())


def test_updates_that_cancel(tmp_path):
    base = chain([14, 12])
    table = chain_factors(base, 4, seed=1)
    adapters = {name: write_adapter(tmp_path / name, table) for name in ("a", "b")}
    with pytest.warns(UserWarning, match="zero in every layer"):
        merged = samerge.merge(None, adapters, method="pico", weights=[1.0, -1.0], progress=False)
    assert float(merged.delta("layers.0").norm()) < 1e-5
