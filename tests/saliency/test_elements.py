"""Element-wise pruning, streamed, against autograd of R over dense tensors: the same masks, bit for bit."""

import pytest
import torch
from herd import dense_elementwise, make_herd, schedule

from samerge.graph import FlowGraph, Weight, build_graph
from samerge.graph.widths import local_graph
from samerge.saliency import elements as prune
from samerge.saliency.element_masks import Masks
from samerge.saliency.elements import Pruner
from samerge.saliency.flows import live_weights
from samerge.saliency.task_vectors import CheckpointVectors
from samerge.weights import FolderSource

CPU = torch.device("cpu")
FAMILIES = ("llama", "gpt2", "bert", "t5", "vit", "albert")
WEIGHTS = (1.0, 0.5, -0.7)


@pytest.fixture(scope="module")
def herd_of(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = make_herd(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


class Watched(Masks):
    """Masks that note how many survive and refuse that anything returns."""

    def __init__(self):
        super().__init__()
        self.history = {}

    def put(self, expert, key, kept):
        before = self.rows(expert, key, 0, kept.shape[0], CPU)
        if before is not None:
            assert not (kept & ~before).any(), "a pruned element came back"
        super().put(expert, key, kept)
        self.history.setdefault((expert, key), []).append(int(kept.sum()))


def pruner_of(herd, graph, dtype=torch.float64, masks=None):
    source = FolderSource(herd.base)
    experts = [FolderSource(folder) for folder in herd.experts.values()]
    keys = frozenset(edge.key for edge in graph.edges if isinstance(edge, Weight))
    vectors = CheckpointVectors(experts, [keys] * len(experts))
    return Pruner(source, vectors, WEIGHTS, masks or Watched(), CPU, dtype)


def graph_of(herd, residual=True):
    source = FolderSource(herd.base)
    return build_graph(source.config, source.shapes, residual=residual)


def mask_of(pruner, n, key):
    rows = pruner.source.shapes[key][0]
    return pruner.masks.rows(n, key, 0, rows, CPU)


@pytest.mark.parametrize("task", [False, True], ids=["paper", "task"])
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_equal_the_dense_merge(herd_of, family, task, monkeypatch):
    monkeypatch.setattr(prune, "TILE_ELEMENTS", 200)  # several tiles of every weight
    herd = herd_of(family)
    graph = graph_of(herd, residual=not task)
    pruner = pruner_of(herd, graph)
    logs = pruner.run(graph, 0.1, 4, task)
    base, experts = herd.weights()
    masks, merged = dense_elementwise(graph, base, experts, WEIGHTS, 0.1, 4, task)
    assert len(logs) == 3
    for name in graph.tensors:
        elements = base[name].numel()
        for n in range(3):
            assert torch.equal(mask_of(pruner, n, name), masks[n][name]), (name, n)
            assert pruner.masks.history[n, name] == [schedule(elements, 0.1, t, 4) for t in range(1, 5)]
        found = pruner.merged_rows(name, 0, base[name].shape[0])
        torch.testing.assert_close(found, merged[name], rtol=1e-12, atol=1e-15)


def test_log_connectivity_is_that_of_the_last_iteration(herd_of):
    from oracles import graph_network

    herd = herd_of("bert")
    graph = graph_of(herd)
    pruner = pruner_of(herd, graph)
    logs = pruner.run(graph, 0.3, 1, False)
    _, experts = herd.weights()
    for log, expert in zip(logs, experts, strict=True):
        assert log == pytest.approx(float(graph_network(graph)(expert).log()), rel=1e-12)


@pytest.mark.parametrize("density", [0.25, 1.0])
def test_every_expert_keeps_the_density_of_every_weight(herd_of, density):
    herd = herd_of("llama")
    graph = graph_of(herd)
    pruner = pruner_of(herd, graph)
    pruner.run(graph, density, 3, False)
    base, _ = herd.weights()
    for name in graph.tensors:
        kept = None if density == 1 else round(base[name].numel() * density)  # None: everything survives, no bits
        assert [pruner.masks.count(n, name) for n in range(3)] == [kept] * 3


def test_the_smallest_density_leaves_one(herd_of):
    herd = herd_of("gpt2")
    graph = graph_of(herd)
    pruner = pruner_of(herd, graph)
    pruner.run(graph, 1e-9, 2, False)
    assert {pruner.masks.count(n, name) for n in range(3) for name in graph.tensors} == {1}


def test_local_graphs(herd_of):
    herd = herd_of("bert")
    graph = local_graph([edge for edge in graph_of(herd).edges if isinstance(edge, Weight)])
    pruner = pruner_of(herd, graph)
    pruner.run(graph, 0.2, 2, False)
    base, experts = herd.weights()
    masks, _ = dense_elementwise(graph, base, experts, WEIGHTS, 0.2, 2)
    assert all(torch.equal(mask_of(pruner, n, name), masks[n][name]) for n in range(3) for name in graph.tensors)


def test_an_expert_that_does_not_change_a_weight(herd_of):
    herd = herd_of("llama")
    graph = graph_of(herd)
    alone = "model.layers.0.mlp.up_proj.weight"
    pruner = pruner_of(herd, graph)
    keys = frozenset(graph.tensors)
    pruner.vectors = CheckpointVectors(pruner.vectors.experts, [keys, keys - {alone}, keys])
    pruner.run(graph, 0.2, 2, False)
    base, experts = herd.weights()
    masks, _ = dense_elementwise(
        graph, base, [experts[0], {**experts[1], alone: base[alone]}, experts[2]], WEIGHTS, 0.2, 2
    )
    assert pruner.masks.count(1, alone) is None
    for name in graph.tensors:
        for n in range(3):
            assert (n, name) == (1, alone) or torch.equal(mask_of(pruner, n, name), masks[n][name])


def test_a_weight_that_leads_nowhere_is_not_pruned(herd_of):
    herd = herd_of("llama")
    up, gate, down = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "gate", "down"))
    edges = [Weight("x", "h", up), Weight("h", "y", down), Weight("x", "nowhere", gate)]
    graph = FlowGraph(edges, ["x"], ["y"])
    assert {edge.key for edge in live_weights(graph)} == {up, down}
    pruner = pruner_of(herd, graph)
    pruner.run(graph, 0.2, 2, False)
    assert pruner.masks.count(0, gate) is None
    assert pruner.masks.count(0, up) is not None


def test_threads_change_nothing(herd_of, monkeypatch):
    monkeypatch.setattr(prune, "TILE_ELEMENTS", 100)
    herd = herd_of("llama")
    graph = graph_of(herd)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        try:
            torch.set_num_threads(threads)
            pruner = pruner_of(herd, graph)
            pruner.run(graph, 0.1, 2, False)
        finally:
            torch.set_num_threads(before)
        found.append(pruner)
    for name in graph.tensors:
        assert all(torch.equal(mask_of(found[0], n, name), mask_of(found[1], n, name)) for n in range(3))


def test_files_hold_the_same_masks(herd_of, tmp_path):
    herd = herd_of("t5")
    graph = graph_of(herd)
    one, two = pruner_of(herd, graph), pruner_of(herd, graph, masks=Masks(tmp_path))
    for pruner in (one, two):
        pruner.run(graph, 0.1, 2, False)
    for name in graph.tensors:
        assert all(torch.equal(mask_of(one, n, name), mask_of(two, n, name)) for n in range(3))
    assert len(list(tmp_path.iterdir())) == 3 * len(graph.tensors)
