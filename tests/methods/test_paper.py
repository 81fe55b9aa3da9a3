"""`paper` against a literal dense transcription of the paper, and its bases."""

from __future__ import annotations

import oracles
import pytest
import torch
from tiny import Beast, chain, chain_factors, write_adapter, write_base

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


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A chain of three layers and adapters of ranks 20, 12 and 7, as (folder, adapters, base, experts)."""
    folder = tmp_path_factory.mktemp("saliency")
    base = chain([24, 22, 26, 20])
    adapters, experts = {}, []
    for n, (rank, alpha) in enumerate([(20, 40), (12, 12), (7, 3)]):
        factors = chain_factors(base, rank, seed=n)
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", factors, alpha=alpha)
        experts.append({f"{m}.weight": (A, B, alpha / rank) for m, (A, B) in factors.items()})
    return write_base(folder / "base", base), adapters, base, experts


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, -0.7, 2.0]])
def test_the_papers_algorithm(case, weights):
    folder, adapters, base, experts = case
    merged = samerge.merge(folder, adapters, weights=weights, method="paper", connectivity=chain_graph(base))
    expected, chosen = oracles.paper_merge(oracles.chain_network(sorted(base)), base, experts, weights)
    for module in ("layers.0", "layers.1", "layers.2"):
        assert kept(merged, module) == {f"e{n}": chosen[n][f"{module}.weight"] for n in range(3)}
        torch.testing.assert_close(merged.delta(module).double(), expected[f"{module}.weight"], rtol=1e-4, atol=1e-5)
    assert [len(one["layers.0.weight"]) for one in chosen] == [2, 1, 1]


def test_on_a_transformer(bert: Beast):
    """Through the family's graph, without residual edges; the pooler lies outside R, unpruned and summed."""
    merged = samerge.merge(bert.base, bert.adapters, method="paper")
    source = bert.model()
    base = {name: parameter.detach() for name, parameter in source.named_parameters()}
    layers = dict(bert.peft_model().get_base_model().named_modules())
    experts = [
        {
            f"{module}.weight": (
                layer.lora_A[name].weight.detach(),
                layer.lora_B[name].weight.detach(),
                layer.scaling[name],
            )
            for module, layer in layers.items()
            if name in getattr(layer, "lora_A", {})
        }
        for name in bert.adapters
    ]
    network = oracles.bert_network(2, residual=False)
    expected, chosen = oracles.paper_merge(network, base, experts, [1.0] * 3)
    for tensor, delta in expected.items():
        module = tensor.removesuffix(".weight")
        mine = {name: picked[tensor] for name, picked in zip(bert.adapters, chosen, strict=True) if tensor in picked}
        assert kept(merged, module) == mine, module
        torch.testing.assert_close(merged.delta(module).double(), delta, rtol=1e-4, atol=1e-6)
    assert merged.report.record.layers["bert.pooler.dense"].outside
    assert len(kept(merged, "bert.pooler.dense")["talk"]) == 6


@pytest.mark.parametrize("iterations", [1, 3])
def test_other_densities_and_iterations_too(case, iterations):
    folder, adapters, base, experts = case
    options = {"density": 0.4, "iterations": iterations, "connectivity": chain_graph(base)}
    merged = samerge.merge(folder, adapters, method="paper", **options)
    network = oracles.chain_network(sorted(base))
    _, chosen = oracles.paper_merge(network, base, experts, [1.0] * 3, density=0.4, iterations=iterations)
    for module in ("layers.0", "layers.1", "layers.2"):
        assert kept(merged, module) == {f"e{n}": chosen[n][f"{module}.weight"] for n in range(3)}


def test_the_svd_basis_is_the_same_algorithm_on_singular_triplets(case):
    folder, adapters, base, experts = case
    options = {"density": 0.4, "iterations": 3, "connectivity": chain_graph(base)}
    merged = samerge.merge(folder, adapters, method="paper", basis="svd", **options)
    turned = []
    for expert in experts:
        by_name = {}
        for name, (A, B, s) in expert.items():
            U, S, Vh = torch.linalg.svd(s * B.double() @ A.double(), full_matrices=False)
            by_name[name] = (Vh[: len(A)], (U * S)[:, : len(A)], 1.0)
        turned.append(by_name)
    network = oracles.chain_network(sorted(base))
    expected, chosen = oracles.paper_merge(network, base, turned, [1.0] * 3, density=0.4, iterations=3)
    for module in ("layers.0", "layers.1", "layers.2"):
        assert kept(merged, module) == {f"e{n}": chosen[n][f"{module}.weight"] for n in range(3)}
        torch.testing.assert_close(merged.delta(module).double(), expected[f"{module}.weight"], rtol=1e-4, atol=1e-4)


def test_negative_weights_take_part_in_the_agreement(tmp_path):
    """eta of both adapters' second directions is strengthened, not cancelled, by taking the other away."""
    base = {"w.weight": torch.ones(4, 4)}
    eye = torch.eye(4)
    A = eye[:2]
    one = write_adapter(tmp_path / "one", {"w": (A, torch.stack([1.5 * eye[0], 2.0 * eye[1]], dim=1))})
    two = write_adapter(tmp_path / "two", {"w": (A, torch.stack([-1.5 * eye[0], 2.0 * eye[1]], dim=1))})
    folder = write_base(tmp_path / "base", base)
    options = {"method": "paper", "density": 0.5, "iterations": 1, "connectivity": "local"}
    for weight, first in ((1.0, [1]), (-1.0, [0])):  # eta of one: (0, 8) and (4.5, 0)
        merged = samerge.merge(folder, {"one": one, "two": two}, weights=[1.0, weight], **options)
        assert kept(merged, "w") == {"one": first, "two": first}


def test_defaults_are_the_papers(case):
    folder, adapters, base, _ = case
    merged = samerge.merge(folder, adapters, method="paper", connectivity=chain_graph(base))
    options = merged.report.record.options
    told = {name: options[name] for name in ("density", "iterations", "basis", "residual", "scaling", "balance")}
    assert told == {
        "density": 0.1,
        "iterations": 10,
        "basis": "native",
        "residual": False,
        "scaling": 1.0,
        "balance": "none",
    }
    assert merged.settings["r"] == 4  # two of 20, one of 12, one of 7


def test_what_lies_outside_the_graph_is_not_pruned(bert):
    merged = samerge.merge(bert.base, bert.adapters, method="paper")
    share = merged.report.record.layers["bert.pooler.dense"].adapters["talk"]
    assert share.energy_kept == pytest.approx(1.0)
