"""gamma and log R against dense autograd of R, for networks written out by hand and for any graph."""

from __future__ import annotations

import math

import numpy as np
import oracles
import pytest
import torch
from alike import same_values
from tiny import Beast, chain, chain_factors

from samerge.errors import GraphError
from samerge.graph import FlowGraph, Gather, Weight, build_graph
from samerge.graph.widths import local_graph, stream_widths
from samerge.linalg.factors import LoraFactors
from samerge.saliency.connectivity import connectivity
from samerge.weights import FolderSource, ModelSource

HEAVY = 1e-9  # relative error in float64
LIGHT = 1e-4  # in float32


class Tensors:
    """A `WeightSource` over a dict."""

    name, config = "tensors", {}

    def __init__(self, tensors):
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def dtype(self, tensor):
        return self.tensors[tensor].dtype

    def read(self, tensor, start, stop, expert=None):
        matrix = self.tensors[tensor] if expert is None else self.tensors[tensor][expert]
        return matrix[start:stop]


def chain_graph(names) -> FlowGraph:
    names = list(names)
    return FlowGraph([Weight(f"s{i}", f"s{i + 1}", name) for i, name in enumerate(names)], ["s0"], [f"s{len(names)}"])


def expert_of(source, tensors, transposed: bool, rank: int, seed: int) -> dict[str, tuple]:
    """Random (A, B, scale) for every tensor of a graph, (out, in); as large as the weights, so that signs flip."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for tensor in tensors:
        out, into = source.shapes[tensor][::-1] if transposed else source.shapes[tensor]
        A = torch.randn(rank, into, generator=generator, dtype=torch.float64)
        B = torch.randn(out, rank, generator=generator, dtype=torch.float64)
        found[tensor] = (A, 0.3 * B, 0.5)
    return found


def factors_of(expert) -> dict[str, LoraFactors]:
    return {name: LoraFactors(A, B, s) for name, (A, B, s) in expert.items()}


def check(graph, source, base, experts, network, tolerance, transposed=False, **options) -> None:
    found = connectivity(graph, source, [factors_of(expert) for expert in experts], **options)
    for n, expert in enumerate(experts):
        gamma, R = oracles.dense_gamma(network, base, expert, transposed)
        assert found.log_connectivity[n] == pytest.approx(math.log(R), rel=tolerance, abs=tolerance)
        assert set(found.gamma[n]) == set(gamma)
        for name, expected in gamma.items():
            got = found.gamma[n][name].values.double() * math.exp(found.gamma[n][name].log)
            error = (got - expected).abs().max() / expected.abs().max()
            assert error < tolerance, (n, name, float(error))


def network_of(name: str, residual: bool):
    return {
        "llama": oracles.llama_network(2, heads=4, groups=2, residual=residual),
        "bert": oracles.bert_network(2, residual),
        "gpt2": oracles.gpt2_network(2, residual),
        "t5": oracles.t5_network(2, residual),
    }[name]


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "t5"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, HEAVY), (torch.float32, LIGHT)])
def test_gamma_is_autograds(zoo, name, residual, dtype, tolerance):
    source = FolderSource(zoo(name).folder)
    base = {tensor: source.read(tensor, 0, 10**9) for tensor in source.shapes}
    graph = build_graph(source.config, source.shapes, residual=residual)
    conv = name == "gpt2"
    # three experts at once: all weights, some weights, none
    everything = expert_of(source, graph.tensors, conv, rank=3, seed=1)
    some = expert_of(source, graph.tensors[::3], conv, rank=2, seed=2)
    check(graph, source, base, [everything, some, {}], network_of(name, residual), tolerance, conv, dtype=dtype)


def test_gamma_of_the_adapters_themselves(beast: Beast):
    """Every family, its own adapters and a live model, through the graph that was built for it."""
    model = beast.model()
    source = ModelSource(model)
    graph = build_graph(source.config, source.shapes)
    base = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    expert = expert_of(source, graph.tensors[::2], beast.species.fan_in_fan_out, rank=4, seed=3)
    network = oracles.graph_network(graph)
    check(graph, source, base, [expert], network, HEAVY, beast.species.fan_in_fan_out, dtype=torch.float64)


@pytest.mark.parametrize("tile", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_size_of_a_tile_does_not_matter(zoo, name, tile):
    source = FolderSource(zoo(name).folder)
    graph = build_graph(source.config, source.shapes)
    expert = factors_of(expert_of(source, graph.tensors, name == "gpt2", rank=3, seed=4))
    whole = connectivity(graph, source, [expert], dtype=torch.float64, tile_elements=1 << 30)
    tiled = connectivity(graph, source, [expert], dtype=torch.float64, tile_elements=tile)
    assert tiled.log_connectivity == pytest.approx(whole.log_connectivity, rel=1e-12)
    for tensor in graph.tensors:
        torch.testing.assert_close(tiled.gamma[0][tensor].values, whole.gamma[0][tensor].values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("tile", [64, None])
@pytest.mark.parametrize("kernel", ["native", "torch"])
def test_the_number_of_threads_does_not_matter(zoo, name, tile, kernel, monkeypatch):
    """To rounding: experts that adapt a weight and experts that do not, in few tiles and in many."""
    monkeypatch.setenv("SAMERGE_KERNEL", kernel)
    source = FolderSource(zoo(name).folder)
    graph = build_graph(source.config, source.shapes)
    tensors = graph.tensors
    experts = [factors_of(expert_of(source, tensors[n::2], name == "gpt2", rank=3, seed=n)) for n in range(2)]
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(connectivity(graph, source, [*experts, *experts, {}], tile_elements=tile))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    one, *others = found
    for other in others:
        assert other.log_connectivity == pytest.approx(one.log_connectivity, rel=1e-6)
        for mine, theirs in zip(one.gamma, other.gamma, strict=True):
            assert mine.keys() == theirs.keys()
            for tensor, sensitivity in mine.items():
                same_values(theirs[tensor].values, sensitivity.values)


def test_a_graph_of_ones_own():
    """Fan-out, fan-in, a slice, a repeat, a skip, one weight used twice, two inputs and two outputs."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    base = {"a": rand(6, 4), "b": rand(3, 6), "c": rand(5, 3), "d": rand(5, 5), "t": rand(5, 6), "e": rand(2, 4, 3)}
    graph = FlowGraph(
        [
            Weight("x", "h", "a"),
            Weight("h", "k", "b"),
            Gather("h", "k", np.array([0, 2, 2])),
            Weight("k", "y", "c"),
            Weight("z", "y", "d"),
            Gather("z", "y"),
            Weight("y", "u", "d"),
            Weight("y", "v", "t", transposed=True),
            Gather("h", "v"),
            Weight("k", "w", "e", expert=1),
        ],
        inputs=["x", "z"],
        outputs=["u", "v", "w"],
    )
    source = Tensors(base)
    weights = {**base, "e[1]": base["e"][1]}
    expert = {
        name: (rand(2, weights[name].shape[1]), rand(weights[name].shape[0], 2), 0.7)
        for name in ("a", "b", "d", "e[1]")
    }
    found = connectivity(graph, source, [factors_of(expert)], dtype=torch.float64)

    def network(weights):
        return oracles.graph_network(graph)({**weights, "e": torch.stack([base["e"][0], weights["e[1]"]])})

    gamma, R = oracles.dense_gamma(network, weights, expert)
    assert found.log_connectivity[0] == pytest.approx(math.log(R), rel=HEAVY)
    for name, expected in gamma.items():
        one = found.gamma[0][name]
        torch.testing.assert_close(one.values * math.exp(one.log), expected, rtol=1e-9, atol=1e-9)


def test_local_connectivity_looks_at_every_weight_alone():
    base = {name: tensor.double() for name, tensor in chain([4, 6, 5]).items()}
    source = Tensors(base)
    expert = expert_of(source, base, False, rank=2, seed=1)
    found = connectivity(
        local_graph(Weight("", "", n) for n in base), source, [factors_of(expert)], dtype=torch.float64
    )
    gamma, R = oracles.dense_gamma(oracles.local_network, base, expert)
    assert found.log_connectivity[0] == pytest.approx(math.log(R), rel=HEAVY)
    for name, expected in gamma.items():
        one = found.gamma[0][name]
        torch.testing.assert_close(one.values * math.exp(one.log), expected, rtol=1e-9, atol=1e-12)


def test_residual_edges_change_the_flow(llama: Beast):
    source = FolderSource(llama.folder)
    logs = [
        connectivity(build_graph(source.config, source.shapes, residual=r), source, [{}]).log_connectivity[0]
        for r in (True, False)
    ]
    assert logs[0] > logs[1] + 1e-3


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_two_hundred_layers_do_not_overflow(scale):
    base = chain([8] * 201, scale=scale)
    expert = expert_of(Tensors(base), list(base)[::50], False, rank=2, seed=1)
    expert = {name: (A.float(), (B * scale).float(), s) for name, (A, B, s) in expert.items()}
    found = connectivity(chain_graph(base), Tensors(base), [factors_of(expert)])
    log, x = 0.0, torch.ones(8, dtype=torch.float64)
    weights = oracles.effective(base, expert)
    for name in base:
        x = weights[name].abs() @ x
        log += math.log(x.sum())
        x = x / x.sum()
    assert abs(log) > 1000  # float64 ends at exp(709)
    assert found.log_connectivity[0] == pytest.approx(log, rel=1e-7)
    for one in found.gamma[0].values():
        assert torch.isfinite(one.values).all()
        assert one.values.abs().max() > 0


def test_a_dead_branch_does_not_drown_a_living_one():
    """A zero weight behind a huge flow adds nothing, and hides nothing."""
    base = {f"w{i}": torch.full((3, 3), 1e30) for i in range(6)} | {"dead": torch.zeros(3, 3), "live": torch.ones(3, 3)}
    edges = [Weight(f"s{i}", f"s{i + 1}", f"w{i}") for i in range(6)]
    graph = FlowGraph([*edges, Weight("s6", "y", "dead"), Weight("s0", "y", "live")], ["s0"], ["y"])
    assert connectivity(graph, Tensors(base), [{}]).log_connectivity[0] == pytest.approx(math.log(9))


def test_components_of_rank_zero_are_the_base():
    base = chain([3, 4])
    none = {"layers.0.weight": LoraFactors(torch.zeros(0, 3), torch.zeros(4, 0))}
    found = connectivity(chain_graph(base), Tensors(base), [none, {}])
    assert found.gamma[0] == {}
    assert found.log_connectivity[0] == found.log_connectivity[1]


def test_nothing_that_came_in_changes():
    base = chain([5, 6, 4])
    factors = {f"{m}.weight": LoraFactors(A, B, 2.0) for m, (A, B) in chain_factors(base, 2, seed=1).items()}
    before = {name: tensor.clone() for name, tensor in base.items()}
    copies = {name: (f.A.clone(), f.B.clone()) for name, f in factors.items()}
    connectivity(chain_graph(base), Tensors(base), [factors, {}])
    assert all(torch.equal(base[name], before[name]) for name in base)
    assert all(torch.equal(f.A, copies[n][0]) and torch.equal(f.B, copies[n][1]) for n, f in factors.items())


def test_progress_counts_every_entry_twice():
    base = chain([5, 6, 4])
    seen = []
    connectivity(chain_graph(base), Tensors(base), [{}], advance=seen.append)
    assert sum(seen) == 2 * sum(tensor.numel() for tensor in base.values())


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (FlowGraph([Weight("x", "y", "nowhere")], ["x"], ["y"]), "'nowhere', which the base model does not have"),
        (FlowGraph([Weight("x", "y", "a"), Weight("y", "z", "a")], ["x"], ["z"]), "does not chain: stream 'y' is 6"),
        (FlowGraph([Gather("x", "y")], ["x"], ["y"]), "nothing tells the width of the stream 'x'"),
    ],
)
def test_a_graph_that_does_not_fit(graph, words):
    with pytest.raises(GraphError, match=words):
        stream_widths(graph, {"a": (6, 4)})
