"""How often gamma is computed anew, and in what: against the dense algorithm, and what is read."""

from __future__ import annotations

import oracles
import pytest
import torch
from tiny import chain, chain_factors, write_adapter, write_base

import samerge
from samerge.errors import OptionError
from samerge.graph import FlowGraph, Weight
from samerge.weights import FolderSource

STEPS = 6


def chain_graph(base) -> FlowGraph:
    names = sorted(base)
    return FlowGraph([Weight(f"s{i}", f"s{i + 1}", name) for i, name in enumerate(names)], ["s0"], [f"s{len(names)}"])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refresh")
    base = chain([24, 22, 26, 20])
    adapters, experts = {}, []
    for n, (rank, alpha) in enumerate([(20, 40), (16, 12), (12, 9)]):
        factors = chain_factors(base, rank, seed=n)
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", factors, alpha=alpha)
        experts.append({f"{m}.weight": (A, B, alpha / rank) for m, (A, B) in factors.items()})
    return write_base(folder / "base", base), adapters, base, experts


def merge(case, **options):
    folder, adapters, base, _ = case
    return samerge.merge(
        folder,
        adapters,
        method="saliency",
        basis="native",
        density=0.25,
        iterations=STEPS,
        connectivity=chain_graph(base),
        **options,
    )


def kept(merged) -> dict[str, dict[str, list[int]]]:
    layers = merged.report.record["layers"]
    return {
        module: {name: share["kept"] for name, share in layer["experts"].items()} for module, layer in layers.items()
    }


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("refresh", [0, 1, 2, 4])
def test_masks_are_those_of_the_dense_algorithm(case, refresh, precision):
    _, _, base, experts = case
    network = oracles.chain_network(sorted(base))
    _, chosen = oracles.paper_merge(network, base, experts, [1.0] * 3, 0.25, STEPS, refresh)
    assert kept(merge(case, refresh=refresh, precision=precision)) == {
        module: {f"e{n}": chosen[n][f"{module}.weight"] for n in range(3)}
        for module in ("layers.0", "layers.1", "layers.2")
    }


def test_refreshing_makes_a_difference(case):
    assert kept(merge(case, refresh=0)) != kept(merge(case, refresh=1))


def test_the_base_is_read_as_often_as_that(case, monkeypatch):
    read = []
    real = FolderSource.read

    def counted(self, tensor, start, stop, expert=None):
        found = real(self, tensor, start, stop, expert)
        read[-1] += found.numel()
        return found

    monkeypatch.setattr(FolderSource, "read", counted)
    for refresh in (100, 1, 2, 4, 0):
        read.append(0)
        merge(case, refresh=refresh)
    assert [entries / read[0] for entries in read] == [1, STEPS, 3, 2, 1]


def test_the_kernel_is_in_the_record(case, monkeypatch):
    monkeypatch.setenv("SAMERGE_KERNEL", "torch")
    assert merge(case).report.record["kernel"] == "torch"
    monkeypatch.setenv("SAMERGE_KERNEL", "native")
    assert merge(case).report.record["kernel"] == "native"
    folder, adapters, _, _ = case
    assert samerge.merge(folder, adapters, method="linear").report.record["kernel"] is None


def test_native_and_torch_choose_alike(case, monkeypatch):
    found = []
    for kernel in ("torch", "native"):
        monkeypatch.setenv("SAMERGE_KERNEL", kernel)
        found.append(merge(case))
    assert kept(found[0]) == kept(found[1])
    for module in found[0].factors:
        torch.testing.assert_close(found[0].delta(module), found[1].delta(module))


def test_what_they_may_be(case):
    with pytest.raises(OptionError, match="refresh=-1 must be a whole number of at least 0"):
        merge(case, refresh=-1)
    with pytest.raises(OptionError, match="precision='bfloat16' is not known; choose one of float32, float64"):
        merge(case, precision="bfloat16")
    with pytest.raises(OptionError, match="precision='float64' on device='mps', which has none"):
        merge(case, precision="float64", device="mps")
    folder, adapters, _, _ = case
    with pytest.raises(OptionError, match="no option 'refresh'"):
        samerge.merge(folder, adapters, method="linear", refresh=0)
