"""Pieces of work that several processes share out: who has which, and how all get what each of them found.

A piece has a `module` by which it is named and an `owner`, the process that does it; None where every process does it.
With one process there is nothing to share, and everything here does the work where it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import torch

from samerge.linalg.factors import LoraFactors
from samerge.parallel.processes import Group, group
from samerge.parallel.supply import elsewhere, send_all


class Piece(Protocol):
    """A piece of work."""

    @property
    def module(self) -> str:
        """Its name."""

    @property
    def owner(self) -> int | None:
        """The process that does it; None where every process does."""


P = TypeVar("P", bound=Piece)
T = TypeVar("T")


def own(pieces: Sequence[P]) -> tuple[P, ...]:
    """Those that this process does."""
    rank = group().rank
    return tuple(piece for piece in pieces if piece.owner in (None, rank))


def sharers(pieces: Sequence[Piece]) -> Group:
    """The processes that share these pieces out; this one alone where all do everything."""
    return group() if any(piece.owner is not None for piece in pieces) else Group()


def everywhere(pieces: Sequence[P], work: Callable[[P], T], mine: Iterable[P] | None = None) -> dict[str, T]:
    """`work(piece)` for all pieces, by module: every process does its own, and has everything afterwards.

    Args:
        pieces: all of them.
        work: gives something small that can be pickled; what it raises is raised in every process.
        mine: this process's, where something shall happen between them, such as progress.
    """

    def done() -> dict[str, T]:
        return {piece.module: work(piece) for piece in (own(pieces) if mine is None else mine)}

    found = {module: result for part in sharers(pieces).each(done) for module, result in part.items()}
    return {piece.module: found[piece.module] for piece in pieces}


def collected(
    pieces: Sequence[Piece],
    shapes: Mapping[str, tuple[int, int]],
    mine: Mapping[str, LoraFactors],
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, LoraFactors]:
    """The factors of all pieces, by module: this process's own, and those that the others send.

    Args:
        pieces: all of them.
        shapes: (out, in) of each.
        mine: this process's factors, all of one rank and dtype.
        rank: of all.
        dtype: of all.
        device: where they are sent through.
    """
    found = dict(mine)
    for piece in pieces:
        if piece.owner is not None:
            ours = mine.get(piece.module, elsewhere(rank, shapes[piece.module], dtype))
            [sent] = send_all(sharers(pieces), piece.owner, [ours], device)
            if piece.module not in mine:  # with a storage for each tensor, as files want it
                found[piece.module] = LoraFactors(sent.A.clone(), sent.B.clone())
    return found
