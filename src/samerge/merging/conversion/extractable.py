"""Which tensors of a model an adapter can update, and how PEFT would store the factors: by names and shapes alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from samerge.adapters.config import place
from samerge.adapters.layouts import Layout
from samerge.errors import GraphError
from samerge.graph import Weight
from samerge.graph.conv1d import is_conv1d
from samerge.merging.alignment.architecture import base_graph
from samerge.merging.conversion.changes import Change
from samerge.weights import WeightSource

_EMBEDDING = re.compile(
    r"(wte|wpe|shared|relative_attention_bias|tok_embeddings|embed_(tokens|in|positions).*|.*embeddings?)"
)
_ROUTER = re.compile(r"(gate|router|classifier)")


@dataclass(frozen=True)
class Candidate:
    """One linear map that an adapter can update.

    Args:
        module: its name in an adapter.
        tensor: its tensor.
        layout: how PEFT stores its factors.
        expert: which matrix of a stack it is.
    """

    module: str
    tensor: str
    layout: Layout
    expert: int | None = None

    @property
    def key(self) -> str:
        """The weight's key."""
        return self.tensor if self.expert is None else f"{self.tensor}[{self.expert}]"


def candidates(source: WeightSource, found: Sequence[Change], embeddings: bool) -> tuple[list[Candidate], list[Change]]:
    """What an adapter takes of the changed tensors, by module's name, and what it leaves.

    Args:
        source: the base.
        found: the changes.
        embeddings: whether embeddings are taken.
    """
    try:
        graph = base_graph(source)
    except GraphError:
        edges: dict[str, Weight] = {}
    else:
        edges = {edge.tensor: edge for edge in graph.edges if isinstance(edge, Weight)}
    taken, left = [], []
    for change in found:
        if change.norm == 0:
            continue
        maps = _maps(source, change.tensor, edges.get(change.tensor), embeddings)
        taken += maps
        left += [] if maps else [change]
    return sorted(taken, key=lambda one: one.module), left


def _maps(source: WeightSource, tensor: str, edge: Weight | None, embeddings: bool) -> list[Candidate]:
    shape = source.shapes[tensor]
    stem, _, leaf = tensor.rpartition(".")
    short = stem.rpartition(".")[2]
    if edge is not None and edge.expert is not None and len(shape) == 3:
        layout = Layout("parameter", edge.transposed, experts=shape[0] if shape[0] > 1 else 0, place=place(leaf))
        return [Candidate(f"{tensor}[{e}]" if shape[0] > 1 else tensor, tensor, layout, e) for e in range(shape[0])]
    if len(shape) != 2 or leaf != "weight" or not stem:
        return []
    if edge is not None:
        return [Candidate(stem, tensor, Layout(transposed=edge.transposed))]
    if _EMBEDDING.fullmatch(short):
        return [Candidate(stem, tensor, Layout("embedding", transposed=True))] if embeddings else []
    if _ROUTER.fullmatch(short) and any("expert" in key for key in source.config):
        return []
    return [Candidate(stem, tensor, Layout(transposed=is_conv1d(source.config.get("model_type"), stem)))]
