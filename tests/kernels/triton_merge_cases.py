"""Whole scorings with the Triton kernel in its interpreter; run by `test_triton.py`."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import MixtralConfig, MixtralModel

from samerge.graph import Weight, build_graph
from samerge.linalg.factors import LoraFactors
from samerge.saliency.connectivity import connectivity
from samerge.weights import FolderSource, ModelSource


def source_of(name, zoo):
    if name != "mixtral":
        return FolderSource(zoo(name).folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    return ModelSource(MixtralModel(MixtralConfig(**sizes, num_hidden_layers=1, num_local_experts=3, vocab_size=40)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_gammas_and_flows_are_those_of_torch(zoo, name, monkeypatch):
    """Weights stored (out, in), (in, out), and in stacks; one expert leaves half of them alone."""
    source = source_of(name, zoo)
    graph = build_graph(source.config, source.shapes)
    generator = torch.Generator().manual_seed(0)
    experts = [{}, {}, {}]
    edges = {edge.key: edge for edge in graph.edges if isinstance(edge, Weight)}
    for place, (_, edge) in enumerate(sorted(edges.items())):
        rows, columns = source.shapes[edge.tensor][-2:]
        out, into = (columns, rows) if edge.transposed else (rows, columns)
        for n, rank in enumerate((4, 17, 2)):
            if n < 2 or place % 2:
                A, B = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
                experts[n][edge.key] = LoraFactors(A, 0.1 * B, 0.5)
    monkeypatch.setenv("SAMERGE_KERNEL", "torch")
    expected = connectivity(graph, source, experts)
    monkeypatch.setenv("SAMERGE_KERNEL", "triton")
    found = connectivity(graph, source, experts)
    assert (expected.kernel, found.kernel) == ("torch", "triton")
    assert found.log_connectivity == pytest.approx(expected.log_connectivity, rel=1e-5)
    for ours, theirs in zip(found.gamma, expected.gamma, strict=True):
        assert set(ours) == set(theirs)
        for key, one in theirs.items():
            got = ours[key].values.double() * math.exp(ours[key].log - one.log)
            assert float((got - one.values).abs().max()) < 1e-4 * float(one.values.abs().max())
