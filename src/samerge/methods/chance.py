"""Random numbers of a tile: seeded by the seed, the adapter's name, the module and the row, and by nothing else.

So neither the order of the adapters nor the number of passes changes what is dropped, and the global generator is not
touched. Drawn on the CPU, so that every device drops the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.methods.rows import Layer
from samerge.options.kinds import whole
from samerge.options.option import Options, option


@dataclass(frozen=True)
class SeedOptions(Options):
    """Options of a random method."""

    seed: int = option(whole(least=0), 0, "Of the random numbers.")


def uniform(layer: Layer, start: int, tiles: Tensor, seed: int) -> Tensor:
    """Uniform numbers in [0, 1) for the tiles of a layer that begin at row `start`, of their shape."""
    drawn = torch.empty(len(layer.parts), *tiles.shape[1:])
    for own, n in zip(drawn, layer.parts, strict=True):
        torch.rand(own.shape, generator=generator(seed, layer.names[n], layer.module, start), out=own)
    return drawn.to(tiles.device)


def generator(seed: int, name: str, module: str, place: int | str) -> torch.Generator:
    """A generator of its own for an adapter's place in a module."""
    digest = hashlib.sha256(f"{seed}|{name}|{module}|{place}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
