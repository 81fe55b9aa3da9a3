"""From a weight under the names that adapters and base have in common back to the tensors that hold it on the disk."""

from __future__ import annotations

from dataclasses import dataclass

from samerge.graph.widths import matrix_shape
from samerge.merging.alignment.fused import FusedSource
from samerge.merging.alignment.views import RenamedSource
from samerge.weights import WeightSource


@dataclass(frozen=True)
class Place:
    """Rows of a weight, and the tensor that holds them.

    Args:
        tensor: under the name that the innermost source has for it.
        expert: the matrix of a stack; None for a tensor that is a matrix itself.
        first: the first row of the weight that it holds.
        rows: how many.
    """

    tensor: str
    expert: int | None
    first: int
    rows: int


def places(source: WeightSource, tensor: str, expert: int | None = None) -> list[Place]:
    """Where the rows of a weight are.

    Args:
        source: the base under the names that all have in common.
        tensor: a name of it.
        expert: of a stack, which matrix.

    Example:
        >>> places(source, "mlp.experts.gate_up_proj", 3)  # doctest: +SKIP
        [Place('mlp.experts.3.w1.weight', None, 0, 14336), Place('mlp.experts.3.w3.weight', None, 14336, 14336)]
    """
    if isinstance(source, RenamedSource):
        return places(source.source, source.names[tensor], expert)
    if isinstance(source, FusedSource):
        found, first = [], 0
        for piece, number in source.pieces(tensor, expert):
            for place in places(source.source, piece, number):
                found.append(Place(place.tensor, place.expert, first + place.first, place.rows))
            first += matrix_shape(source.source.shapes[piece], number)[0]
        return found
    shape = source.shapes[tensor]
    return [Place(tensor, expert, 0, matrix_shape(shape, expert)[0] if shape else 1)]
