"""`saliency` and `even` against the dense definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from oracles import Expert, Network, bert_network, chain_network, llama_network, local_network
from tiny import Beast, chain, chain_factors, write_adapter, write_base

import samerge
from methods.dense_chain import DenseLayer, dense_chain, voices
from samerge.graph import FlowGraph, Weight

METHODS = ["saliency", "even"]
WEIGHTS = [(1.0, 1.0, 1.0), (1.0, 0.5, -0.3), (-1.0, 2.0, 0.7), (0.0, 1.0, 0.4)]


def chain_graph(base) -> FlowGraph:
    names = sorted(base)
    return FlowGraph([Weight(f"s{i}", f"s{i + 1}", name) for i, name in enumerate(names)], ["s0"], [f"s{len(names)}"])


def hold(merged: samerge.MergedAdapter, expected: Mapping[str, DenseLayer], names: list[str]) -> None:
    """Every layer is the dense one, and keeps the same triplets."""
    layers = merged.report.record.layers
    for module in merged.factors:
        found, dense = merged.delta(module).double(), expected.get(f"{module}.weight")
        if dense is None:  # filled in: no adapter has it
            assert not found.any(), module
            continue
        assert dense.gap > 1e-3, f"{module}: rounding decides what is kept, choose another case"
        if dense.kept is not None:
            mine = {name: list(share.kept) for name, share in layers[module].adapters.items()}
            assert mine == {names[n]: picked for n, picked in dense.kept.items()}, module
        assert float((found - dense.delta).norm()) <= 1e-3 * max(float(dense.delta.norm()), 1e-6), module
    assert {f"{module}.weight" for module in merged.factors} >= set(expected)


class ChainCase:
    """A chain and adapters of it, on disk and dense."""

    def __init__(self, folder: Path, base: Mapping, tables: list[Mapping]) -> None:
        self.base, self.folder = base, write_base(folder / "base", base)
        self.names = [f"e{n}" for n in range(len(tables))]
        self.adapters = {name: write_adapter(folder / name, t) for name, t in zip(self.names, tables, strict=True)}
        self.experts: list[Expert] = [{f"{m}.weight": (A, B, 1.0) for m, (A, B) in t.items()} for t in tables]

    def check(self, method: str, weights, **options) -> dict[str, DenseLayer]:
        given = {"connectivity": chain_graph(self.base)} if method == "saliency" else {}
        merged = samerge.merge(
            self.folder, self.adapters, method=method, weights=list(weights), progress=False, **given, **options
        )
        network = chain_network(sorted(self.base)) if method == "saliency" else None
        expected = dense_chain(network, self.base, self.experts, weights, **options)
        hold(merged, expected, self.names)
        return expected


def unequal(widths=(24, 26, 30, 22), ranks=(8, 5, 3), sizes=(1.0, 4.0, 0.3), seed=0) -> tuple[dict, list[dict]]:
    """Adapters of different ranks and norms; the last layer is the first one's alone."""
    base = chain(list(widths), seed)
    tables = []
    for n, (rank, size) in enumerate(zip(ranks, sizes, strict=True)):
        tables.append({m: (A, B * size) for m, (A, B) in chain_factors(base, rank, seed + 1 + n).items()})
    for table in tables[1:]:
        del table[f"layers.{len(widths) - 2}"]
    return base, tables


OPTIONS = [
    {},
    {"rank": 5},
    {"rank": 1},
    {"rank": 40},
    {"density": 0.5},
    {"density": 0.1},
    {"density": 1.0},
]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_chain(tmp_path, method, options, weights):
    ChainCase(tmp_path, *unequal()).check(method, weights, **options)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("options", [{"rank": 6, "iterations": 3}, {"density": 0.3, "iterations": 4}], ids=str)
def test_in_several_rounds(tmp_path, options, weights):
    ChainCase(tmp_path, *unequal()).check("saliency", weights, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_far_smaller_adapter_stays_relatively_small(tmp_path, method):
    """Ten times as strong at most; its flow is that of what the balance made of it."""
    base, tables = unequal(sizes=(1.0, 2.0, 1e-3))
    case = ChainCase(tmp_path, base, tables)
    expected = case.check(method, (1.0, 1.0, 1.0), rank=6)
    assert all(layer.kept[2] == [] for layer in expected.values() if layer.kept)


@pytest.mark.parametrize("rank", [4, 9, 30])
@pytest.mark.parametrize("method", METHODS)
def test_more_components_than_the_layer_is_wide(tmp_path, method, rank):
    base, tables = unequal(widths=(12, 14, 10), ranks=(8, 8, 8), sizes=(1.0, 1.5, 0.5))
    ChainCase(tmp_path, base, tables).check(method, (1.0, 0.5, -0.3), rank=rank)


@pytest.mark.parametrize("rank", [4, 7, 12])
@pytest.mark.parametrize("method", METHODS)
def test_copies(tmp_path, method, rank):
    """The first and the third are one adapter, the third twice as strong before the balance."""
    base, tables = unequal(widths=(24, 26, 22), ranks=(4, 4, 4), sizes=(1.0, 1.0, 1.0))
    tables[2] = {m: (A, 2 * B) for m, (A, B) in tables[0].items() if m in tables[1]}
    ChainCase(tmp_path, base, tables).check(method, (1.0, 0.6, 0.37), rank=rank)


@pytest.mark.parametrize("rank", [3, 4, 9])
@pytest.mark.parametrize("method", METHODS)
def test_adapters_with_a_common_start(tmp_path, method, rank):
    """One A for all: the right stack has not full column rank, the left one has."""
    base, tables = unequal(widths=(24, 26, 22), ranks=(4, 4, 4))
    tables = [{m: (tables[0][m][0], B) for m, (_, B) in table.items()} for table in tables]
    ChainCase(tmp_path, base, tables).check(method, (1.0, 0.5, -0.3), rank=rank)


@pytest.mark.parametrize("weights", [(1.0, -1.0, 1.0), (-1.0, 1.0, 0.5), (0.9, -1.0, 0.9), (1.0, 1.0, -0.7)])
@pytest.mark.parametrize("rank", [3, 4, 9])
@pytest.mark.parametrize("method", METHODS)
def test_copies_at_opposite_weights(tmp_path, method, rank, weights):
    """The first two are one adapter, or all three: what one says the other takes back."""
    base, tables = unequal(widths=(24, 26, 22), ranks=(4, 4, 4), sizes=(1.0, 1.0, 1.0))
    for count, third in ((2, tables[2]), (3, tables[0])):
        same = {m: factors for m, factors in tables[0].items() if m in tables[1]}
        case = ChainCase(tmp_path / f"{count}", base, [same, same, {m: third[m] for m in same}])
        given = {"connectivity": chain_graph(base)} if method == "saliency" else {}
        merged = samerge.merge(
            case.folder, case.adapters, method=method, weights=list(weights), rank=rank, progress=False, **given
        )
        network = chain_network(sorted(base)) if method == "saliency" else None
        expected = dense_chain(network, base, case.experts, weights, rank=rank)
        for module in same:  # which of two copies is kept is no matter
            delta = expected[f"{module}.weight"].delta
            assert float((merged.delta(module).double() - delta).norm()) <= 1e-3 * float(delta.norm()), module
        if count == 2 and weights == (1.0, -1.0, 1.0):  # nothing of the first two is left
            one = {m: B.double() @ A.double() for m, (A, B) in same.items()}
            for name, tau in one.items():
                delta = expected[f"{name}.weight"].delta
                assert abs(float((delta * tau).sum())) < 0.2 * float(delta.norm() * tau.norm())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_an_adapter_less_its_copy_is_nothing(tmp_path, method, noise):
    base = chain([40, 44, 36])
    one, other = chain_factors(base, 6, 1), chain_factors(base, 6, 2)
    near = {m: tuple(x + noise * y for x, y in zip(one[m], other[m], strict=True)) for m in one}
    case = ChainCase(tmp_path, base, [one, near])
    given = {"connectivity": chain_graph(base)} if method == "saliency" else {}
    options = {"method": method, "weights": [1.0, -1.0], "progress": False, **given}
    if noise:
        merged = samerge.merge(case.folder, case.adapters, **options)
    else:
        with pytest.warns(UserWarning, match="zero in every layer"):
            merged = samerge.merge(case.folder, case.adapters, **options)
    for module, (A, B) in one.items():
        assert float(merged.delta(module).norm()) < (0.02 if noise else 1e-6) * float((B @ A).norm())


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("rank", [4, 6, 9, 40])
@pytest.mark.parametrize("method", METHODS)
def test_copies_keep_the_size_of_one(tmp_path, method, rank, count):
    """At any rank, also in a layer that is narrower than the adapter's: with fewer places the best components' size."""
    base = chain([40, 44, 5, 36])
    one = chain_factors(base, 6, 1)
    case = ChainCase(tmp_path, base, [one] * count)
    given = {"connectivity": chain_graph(base)} if method == "saliency" else {}
    merged = samerge.merge(case.folder, case.adapters, method=method, rank=rank, progress=False, **given)
    for module, (A, B) in one.items():
        S = torch.linalg.svdvals(B.double() @ A.double())[:6]
        found = float(merged.delta(module).norm())
        if rank >= 6:
            assert found == pytest.approx(float(S.norm()), rel=1e-3)
        else:
            assert float(S[-rank:].norm()) * 0.999 <= found <= float(S.norm())


@pytest.mark.parametrize("rank", [2, 4, 9])
@pytest.mark.parametrize(("alike", "weights"), [(0.0, (1.0, 0.4)), (0.7, (1.0, 1.0)), (0.7, (-1.0, 0.5))])
@pytest.mark.parametrize("method", METHODS)
def test_between_one_voice_and_two(tmp_path, method, alike, weights, rank):
    """The second has something of the first, or weighs less: louder than one adapter, but not as two are."""
    base = chain([40, 44, 36])
    one, other = chain_factors(base, 4, 1), chain_factors(base, 4, 2)
    mixed = {m: tuple(alike * x + (1 - alike) * y for x, y in zip(one[m], other[m], strict=True)) for m in one}
    case = ChainCase(tmp_path, base, [one, mixed])
    expected = case.check(method, weights, rank=rank)
    for module in expected:
        taus = [case.experts[n][module][1].double() @ case.experts[n][module][0].double() for n in (0, 1)]
        heard = voices([w * tau / tau.norm() for w, tau in zip(weights, taus, strict=True)])
        assert 1.05 < heard < 1.95, "not the case that this is about"


def flat(base, rank: int, seed: int) -> dict:
    """An adapter whose singular values are all equal, as those of a merged one."""
    table = {}
    for module, (A, B) in chain_factors(base, rank, seed, torch.float64).items():
        u, v = torch.linalg.qr(B)[0], torch.linalg.qr(A.T)[0]
        table[module] = (v.T.float().contiguous(), (2 * u).float())
    return table


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, -0.3)])
@pytest.mark.parametrize("rank", [1, 3, 8, 12])
@pytest.mark.parametrize("method", METHODS)
def test_adapters_of_equal_singular_values(tmp_path, method, rank, weights):
    base = chain([18, 20, 17])
    tables = [flat(base, 5, 1), flat(base, 4, 2), chain_factors(base, 6, 3)]
    case = ChainCase(tmp_path, base, tables)
    given = {"connectivity": chain_graph(base)} if method == "saliency" else {}
    merged = samerge.merge(case.folder, case.adapters, method=method, rank=rank, weights=weights, **given)
    network = chain_network(sorted(base)) if method == "saliency" else None
    expected = dense_chain(network, base, case.experts, weights, rank=rank)
    assert all(layer.gap > 1e-3 for layer in expected.values())
    for module in merged.factors:
        dense = expected[f"{module}.weight"]
        assert float((merged.delta(module) - dense.delta).norm()) <= 1e-3 * float(dense.delta.norm()), module


def experts_of(beast: Beast) -> tuple[dict, list[Expert]]:
    """A tiny model's weights and its adapters' factors, read by PEFT."""
    base = {name: parameter.detach() for name, parameter in beast.model().named_parameters()}
    layers = dict(beast.peft_model().get_base_model().named_modules())
    experts = []
    for name in beast.adapters:
        own = {m: layer for m, layer in layers.items() if name in getattr(layer, "lora_A", {})}
        experts.append(
            {
                f"{m}.weight": (
                    layer.lora_A[name].weight.detach(),
                    layer.lora_B[name].weight.detach(),
                    layer.scaling[name],
                )
                for m, layer in own.items()
            }
        )
    return base, experts


def network_of(family: str, residual: bool) -> Network:
    return llama_network(2, 4, 2, residual) if family == "llama" else bert_network(2, residual)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("options", [{}, {"rank": 6}, {"density": 0.4}, {"rank": 6, "residual": False}], ids=str)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_saliency_on_a_transformer(zoo, family, options, weights):
    """Through the family's graph; BERT's pooler lies outside of R."""
    beast = zoo(family)
    base, experts = experts_of(beast)
    network = network_of(family, options.get("residual", True))
    merged = samerge.merge(beast.base, beast.adapters, weights=list(weights), progress=False, **options)
    counts = {name: value for name, value in options.items() if name != "residual"}
    hold(merged, dense_chain(network, base, experts, weights, **counts), list(beast.adapters))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("options", [{}, {"rank": 6}, {"density": 0.4}], ids=str)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_even_on_a_transformer(zoo, family, options, weights):
    beast = zoo(family)
    base, experts = experts_of(beast)
    merged = samerge.merge(beast.base, beast.adapters, method="even", weights=list(weights), progress=False, **options)
    hold(merged, dense_chain(None, base, experts, weights, **options), list(beast.adapters))


def test_outside_of_the_graph_gamma_counts_as_one(tmp_path):
    """A graph of the first layer alone: the second one is ranked by its agreement."""
    base, tables = unequal(widths=(24, 26, 30, 22))
    case = ChainCase(tmp_path, base, tables)
    graph = FlowGraph([Weight("in", "out", "layers.0.weight")], ["in"], ["out"])
    merged = samerge.merge(case.folder, case.adapters, connectivity=graph, rank=6, progress=False)
    expected = dense_chain(chain_network(["layers.0.weight"]), base, case.experts, [1.0] * 3, 6, outside=list(base)[1:])
    hold(merged, expected, case.names)


def test_every_layer_by_itself(tmp_path):
    case = ChainCase(tmp_path, *unequal())
    merged = samerge.merge(case.folder, case.adapters, connectivity="local", rank=6, progress=False)
    expected = dense_chain(lambda w: local_log(w, case.experts), case.base, case.experts, [1.0] * 3, 6)
    hold(merged, expected, case.names)


def local_log(weights, experts: list[Expert]) -> torch.Tensor:
    """R of `connectivity="local"`: the sum over the adapted layers."""
    return local_network({name: weights[name] for name in sorted({m for e in experts for m in e})})


@pytest.mark.parametrize("residual", [True, False])
def test_log_connectivity_is_reported(bert: Beast, residual):
    """Of every adapter as the balance left it."""
    merged = samerge.merge(bert.base, bert.adapters, residual=residual, progress=False)
    base, experts = experts_of(bert)
    balance = {
        name: {
            m: layer.adapters[name].balance
            for m, layer in merged.report.record.layers.items()
            if name in layer.adapters
        }
        for name in bert.adapters
    }
    for name, expert in zip(bert.adapters, experts, strict=True):
        weights = {key: tensor.double() for key, tensor in base.items()}
        for key, (A, B, s) in expert.items():
            factor = balance[name][key.removesuffix(".weight")]
            weights[key] = weights[key] + factor * s * B.double() @ A.double()
        R = bert_network(2, residual)(weights)
        assert merged.report.record.log_connectivity[name] == pytest.approx(math.log(R), rel=1e-6)


def test_the_larger_connectivity_does_not_take_every_place(tmp_path):
    """On a deep model R of an adapter that strengthens the weights is hundreds of times that of its opposite."""
    base = {name: w.abs() for name, w in chain([10] * 13).items()}
    tables = [
        {m: (A.abs(), sign * B.abs()) for m, (A, B) in chain_factors(base, 3, seed).items()}
        for seed, sign in ((1, 1.0), (2, -1.0))
    ]
    case = ChainCase(tmp_path, base, tables)
    expected = case.check("saliency", (1.0, 1.0), rank=3)
    logs = samerge.merge(case.folder, case.adapters, connectivity=chain_graph(base)).report.record.log_connectivity
    assert logs["e0"] - logs["e1"] > math.log(100)
    assert sum(len(layer.kept[1]) for layer in expected.values()) >= len(expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_two_copies_of_an_adapter_are_one(tmp_path, method, noise):
    """As two checkpoints of one run nearly are: no component takes two places, and the noise of one gets none."""
    base = chain([40, 44, 36])
    one = chain_factors(base, 6, 1)
    chance = torch.Generator().manual_seed(0)  # one draw in forty turns two near-equal components into each other
    near = {
        m: tuple(x + noise * x.std() * torch.randn(x.shape, generator=chance) for x in factors)
        for m, factors in one.items()
    }
    case = ChainCase(tmp_path, base, [one, near])
    given = {"connectivity": chain_graph(base)} if method == "saliency" else {}
    merged = samerge.merge(case.folder, case.adapters, method=method, dtype="float32", progress=False, **given)
    for module, (A, B) in one.items():
        U, S, Vh = torch.linalg.svd(B.double() @ A.double(), full_matrices=False)
        flat = U[:, :6] @ Vh[:6] * float(S.square().mean().mul(len(S) / 6).sqrt())  # one voice, one strength
        found = merged.delta(module).double()
        assert float((found * flat).sum() / found.norm() / flat.norm()) > (0.999 if noise == 0 else 0.98), module
        assert float(found.norm()) == pytest.approx(float(flat.norm()), rel=0.05), module
