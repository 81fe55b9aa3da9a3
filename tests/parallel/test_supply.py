"""Components that travel: packed, unpacked, and asked for in the order in which a sweep comes to the weights."""

import pytest
import torch

from samerge.graph import FlowGraph, Gather, Weight
from samerge.linalg.factors import LoraFactors
from samerge.parallel.processes import Group
from samerge.parallel.supply import Lending, Supply, elsewhere, packed, unpacked
from samerge.saliency.flows import Stream, visits, walk


def made(rank: int, shape: tuple[int, int], scale: float = 1.0) -> LoraFactors:
    return LoraFactors(torch.randn(rank, shape[1]), torch.randn(shape[0], rank), scale)


def test_what_was_packed_comes_out_again() -> None:
    parts = [made(3, (5, 4), 0.5), made(0, (5, 4)), made(2, (5, 4))]
    buffer = packed(parts)
    assert len(buffer) == 5 * (5 + 4)
    like = [elsewhere(part.rank, part.shape) for part in parts]
    for part, found in zip(parts, unpacked(buffer, like), strict=True):
        torch.testing.assert_close(found.delta(), part.delta())


def test_values_of_another_process_cannot_be_used() -> None:
    with pytest.raises(NotImplementedError, match="meta"):
        elsewhere(2, (3, 4)).to("cpu").delta()


class Seen:
    """Notes which weights the walk comes to."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def forward(self, edge: Weight, alpha: Stream) -> torch.Tensor:
        self.keys.append(edge.key)
        return alpha.values

    def backward(self, edge: Weight, beta: Stream, alpha: Stream) -> torch.Tensor:
        self.keys.append(edge.key)
        return beta.values


@pytest.mark.parametrize("outputs", [["y"], ["y", "side"], ["x"]])
def test_visits_are_those_of_the_walk(outputs: list[str]) -> None:
    graph = FlowGraph(
        edges=[
            Weight("x", "h", "up"),
            Weight("x", "h", "gate"),
            Gather("x", "y"),
            Weight("h", "y", "down"),
            Weight("h", "side", "dead.one"),
            Weight("side", "end", "dead.two"),
            Weight("h", "g", "stack", expert=1),
            Gather("g", "y"),
        ],
        inputs=["x"],
        outputs=outputs,
    )
    shapes = dict.fromkeys(("up", "gate", "down", "dead.one", "dead.two"), (4, 4)) | {"stack": (2, 4, 4)}
    seen = Seen()
    walk(graph, shapes, 2, seen, torch.device("cpu"), torch.float32)
    assert [edge.key for edge in visits(graph)] == seen.keys


def test_a_sweep_in_another_order_is_refused() -> None:
    supply = Supply([{}], Lending(Group(0, 2), {}), iter(["a", "b"]), torch.device("cpu"), torch.float32)
    assert supply.at("a") == [None]
    with pytest.raises(RuntimeError, match="came to 'c', where the processes had agreed on 'b'"):
        supply.at("c")
