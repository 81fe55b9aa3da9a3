"""`saliency`: how many components it keeps, and whose."""

from __future__ import annotations

import pytest
from tiny import chain, chain_factors, write_adapter, write_base

import samerge
from samerge.graph import FlowGraph, Weight


def chain_graph(base) -> FlowGraph:
    names = sorted(base)
    return FlowGraph([Weight(f"s{i}", f"s{i + 1}", name) for i, name in enumerate(names)], ["s0"], [f"s{len(names)}"])


def kept(merged, module: str) -> dict[str, list[int]]:
    return {
        name: None if share.kept is None else list(share.kept)
        for name, share in merged.report.record.layers[module].adapters.items()
    }


def components(merged, module: str) -> int:
    factors = merged.factors[module]
    return int(((factors.A != 0).any(1) & (factors.B != 0).any(0)).sum())


@pytest.mark.parametrize(
    ("count", "rank", "own"), [(2, 4, 4), (3, 4, 4), (5, 8, 3), (20, 16, 4), (50, 16, 3), (50, 3, 2)]
)
@pytest.mark.parametrize("iterations", [1, 4])
def test_every_layer_has_exactly_rank_components(tmp_path, count, rank, own, iterations):
    base = chain([12, 10, 11])
    adapters = {f"e{n:02}": write_adapter(tmp_path / f"e{n}", chain_factors(base, own, n)) for n in range(count)}
    folder = write_base(tmp_path / "base", base)
    merged = samerge.merge(
        folder,
        adapters,
        method="saliency",
        rank=rank,
        iterations=iterations,
        connectivity=chain_graph(base),
        progress=False,
    )
    assert merged.settings["r"] == rank
    for module in ("layers.0", "layers.1"):
        assert components(merged, module) == rank
        counts = [len(picked) for picked in kept(merged, module).values()]
        assert sum(counts) == rank
    if count > rank:
        assert any(not picked for picked in kept(merged, "layers.0").values())


@pytest.mark.parametrize(("density", "count"), [(0.5, 10), (0.1, 2), (0.01, 1), (1.0, 20)])
@pytest.mark.parametrize("method", ["saliency", "even"])
def test_density_counts_the_components_of_all_adapters(tmp_path, method, density, count):
    """In place of the rank, which may become larger than any adapter's; a layer of one adapter alone is untouched."""
    base = chain([30, 28, 26])
    tables = [chain_factors(base, rank, rank) for rank in (8, 7, 5)]
    for table in tables[1:]:
        del table["layers.1"]
    adapters = {f"e{n}": write_adapter(tmp_path / f"e{n}", table) for n, table in enumerate(tables)}
    given = {"connectivity": chain_graph(base)} if method == "saliency" else {}
    merged = samerge.merge(write_base(tmp_path / "base", base), adapters, method=method, density=density, **given)
    layers = merged.report.record.layers
    assert layers["layers.0"].rank == count
    assert layers["layers.1"].rank == 8
    assert merged.settings["r"] == max(8, count)


@pytest.mark.parametrize("method", ["saliency", "even"])
def test_the_rank_by_default_is_the_largest_of_any_source(tmp_path, method):
    base = chain([24, 22, 26, 20])
    adapters = {f"e{n}": write_adapter(tmp_path / f"e{n}", chain_factors(base, r, n)) for n, r in enumerate((12, 9, 7))}
    given = {"connectivity": chain_graph(base)} if method == "saliency" else {}
    folder = write_base(tmp_path / "base", base)
    merged = samerge.merge(folder, adapters, method=method, **given)
    assert merged.settings["r"] == 12
    assert all(sum(map(len, kept(merged, f"layers.{i}").values())) == 12 for i in range(3))
    without = samerge.merge(folder, adapters, method=method, weights=[0, 1, 1], **given)
    assert without.settings["r"] == 9


@pytest.mark.parametrize("method", ["saliency", "even"])
def test_rank_and_density_together_are_an_error(tmp_path, method):
    adapter = write_adapter(tmp_path / "a", chain_factors(chain([6, 5]), 3, 1))
    with pytest.raises(samerge.OptionError, match="both say how many components are kept; give one"):
        samerge.merge(None, [adapter], method=method, rank=3, density=0.5)


def test_a_louder_adapter_has_more_components(tmp_path):
    """A weight is a strength; |w_n| is a factor of the saliency of what it owns, and of what it agrees with."""
    base = chain([16, 18])
    adapters = {f"e{n}": write_adapter(tmp_path / f"e{n}", chain_factors(base, 6, n)) for n in range(3)}
    folder = write_base(tmp_path / "base", base)
    options = {"connectivity": chain_graph(base), "rank": 6}
    equal = kept(samerge.merge(folder, adapters, **options), "layers.0")
    loud = kept(samerge.merge(folder, adapters, weights=[100.0, 1.0, 1.0], **options), "layers.0")
    assert len(loud["e0"]) == 6 > len(equal["e0"])
