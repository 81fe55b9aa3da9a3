"""Element-wise methods, a few rows at a time: v_i = w_i tau_i as dense tiles that exist one after the other.

Such a method is a function of the adapters' tiles, and perhaps of a threshold over a whole layer or a whole adapter; it
does not commute with orthogonal maps, so the core space is of no use to it. What it gives is no longer of low rank:
every merged layer is brought to its rank by the streamed SVD of
`samerge.linalg.randomised_svd`. What that loses of the energy is in the report.

Cost: O(R d_out d_in) for each pass over a layer: 2 for a threshold and one for the merge; 5 more where the layer is too
large to be held. Memory: the factors, the adapters' tiles, and a merged layer of up to 128 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samerge.linalg.factors import LoraFactors
from samerge.linalg.order_statistics import largest_in, largest_of
from samerge.linalg.randomised_svd import truncated_svd
from samerge.linalg.sign_conflicts import Conflict, conflict_among, sample_rows
from samerge.linalg.triplets import singular, zero
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, MergedLayer, Share
from samerge.methods.problem import Part, Problem, Site, iterate

#: Entries of one adapter's tile, and of the tiles of all adapters together.
TILE_ELEMENTS, TOGETHER_ELEMENTS = 1 << 18, 1 << 22

#: A merged layer of at most this many entries is held while it is truncated (128 MB), a larger one computed anew in
#: each pass. The single experts' updates are never held.
HELD_ELEMENTS = 1 << 25

#: Tensors as large as the adapters' tiles together that a method has at a time, at most.
_TILES = 10


@dataclass(frozen=True)
class Layer:
    """The weighted updates of one linear map.

    Args:
        module: its name.
        shape: (out, in).
        names: of the experts that adapt it, by number.
        parts: their updates w_i tau_i, by number, w_i and scales folded into B.
    """

    module: str
    shape: tuple[int, int]
    names: Mapping[int, str]
    parts: Mapping[int, LoraFactors]

    @property
    def size(self) -> int:
        """Number of elements of one update."""
        return self.shape[0] * self.shape[1]

    @property
    def step(self) -> int:
        """Rows of a tile."""
        entries = min(TILE_ELEMENTS, TOGETHER_ELEMENTS // max(1, len(self.parts)))
        return max(1, entries // max(1, self.shape[1]))

    def starts(self) -> range:
        """The first rows of its tiles."""
        return range(0, self.shape[0], self.step)

    def rows(self, start: int) -> Tensor:
        """The experts' tiles, (N, rows, in), in the order of `parts`; the same bits each time."""
        return torch.stack([self.own(n, start) for n in self.parts])

    def own(self, n: int, start: int) -> Tensor:
        """An expert's tile, (rows, in); the same bits as in `rows`."""
        return self.parts[n].B[start : min(start + self.step, self.shape[0])] @ self.parts[n].A


#: From a layer, the first row of a tile and the experts' tiles (N, rows, in): these as the method prunes them, and the
#: merged tile (rows, in).
Combine = Callable[[Layer, int, Tensor], tuple[Tensor, Tensor]]
#: Looks at all layers where it must (thresholds), and gives the function for a tile; from the layers and the options.
Prepare = Callable[[Sequence[Layer], Any], Combine]


def by_rows(prepare: Prepare) -> Callable[[Problem, Any], Begun]:
    """The method that runs `prepare` once, then its function on every tile, and truncates."""

    def begin(problem: Problem, options: Any) -> Begun:
        check_memory(problem, held=2, work=_tile_bytes)
        layers = {
            site.module: _layer(problem, site, problem.parts(site, hold=True)) for site in iterate(problem, "loading")
        }
        with problem.progress.task("preparing", 1) as advance:
            combine = prepare([layer for layer in layers.values() if layer.parts], options)
            advance(1)

        def merged(site: Site, parts: Mapping[int, Part]) -> MergedLayer:
            layer = layers.pop(site.module)
            return _merge(site, layer, combine, problem) if parts else MergedLayer(zero(site.shape), {})

        return Begun(merged)

    return begin


def magnitudes(
    layers: Sequence[Layer],
    ranks: Callable[[int], Sequence[int]],
    over: str = "adapter",
) -> Callable[[Layer, int], tuple[float, ...]]:
    """The k-th largest magnitudes of every expert, over its whole flattened adapter or in each layer.

    Args:
        layers: all layers.
        ranks: the wanted k, from the number of elements.
        over: "adapter" or "layer".

    Returns:
        A function of the layer and the expert.
    """
    if over == "layer":
        table = {(layer.module, n): _largest([layer], n, ranks(layer.size)) for layer in layers for n in layer.parts}
        return lambda layer, n: table[layer.module, n]
    whole = {
        n: _largest([one for one in layers if n in one.parts], n, ranks(size)) for n, size in sizes_of(layers).items()
    }
    return lambda layer, n: whole[n]


def sizes_of(layers: Sequence[Layer]) -> dict[int, int]:
    """The number of elements of every expert's flattened adapter."""
    sizes: dict[int, int] = {}
    for layer in layers:
        for n in layer.parts:
            sizes[n] = sizes.get(n, 0) + layer.size
    return sizes


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """One value for each expert, to go with their tiles: (N, 1, 1)."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def _largest(layers: Sequence[Layer], n: int, ranks: Sequence[int]) -> tuple[float, ...]:
    """The k-th largest magnitudes of an expert over some layers: held where they are not too many, else by passes."""

    def magnitudes() -> Iterator[Tensor]:
        for layer in layers:
            for start in layer.starts():
                yield layer.own(n, start).abs().flatten()

    like = layers[0].parts[n].A
    size = sum(layer.size for layer in layers)
    if size <= HELD_ELEMENTS:
        held, place = like.new_empty(size), 0
        for piece in magnitudes():
            held[place : place + len(piece)] = piece
            place += len(piece)
        return largest_in(held, ranks)
    return largest_of(lambda: ((n, piece) for piece in magnitudes()), {n: ranks}, like.dtype)[n]


def _tile_bytes(shape: tuple[int, int], components: int) -> int:
    """Bytes for the tiles, and for a merged layer or an adapter's values as they are held."""
    return 4 * _TILES * max(TOGETHER_ELEMENTS, shape[1]) + 12 * min(shape[0] * shape[1], HELD_ELEMENTS)


def _layer(problem: Problem, site: Site, parts: Mapping[int, Part]) -> Layer:
    weights = problem.weights_at(site)
    weighted = {n: LoraFactors(p.factors.A, p.factors.B * weights[n]) for n, p in parts.items()}
    return Layer(site.module, site.shape, {n: problem.names[n] for n in parts}, weighted)


def _merge(site: Site, layer: Layer, combine: Combine, problem: Problem) -> MergedLayer:
    merged, shares, conflict = _pass(layer, combine, problem.weights_at(site), hold=layer.size <= HELD_ELEMENTS)

    def rows(start: int, stop: int) -> Tensor:
        return combine(layer, start, layer.rows(start))[1] if merged is None else merged[start:stop]

    factors, _, lost = truncated_svd(rows, layer.shape, problem.target, step=layer.step, device=problem.device)
    return MergedLayer(singular(factors), shares, lost, conflict)


def merged_with_shares(layer: Layer, combine: Combine, weights: Sequence[float]) -> tuple[Tensor, dict[int, Share]]:
    """A merged layer as a whole, and what the pruning left of every expert."""
    merged, shares, _ = _pass(layer, combine, weights, hold=True)  # signs are the layer's, perhaps of other axes
    assert merged is not None
    return merged, shares


def _pass(
    layer: Layer, combine: Combine, weights: Sequence[float], hold: bool
) -> tuple[Tensor | None, dict[int, Share], Conflict]:
    """One pass over a layer: the merged layer where it shall be held, and what the pruning left: shares, and signs."""
    whole, left = torch.zeros(2, len(layer.parts), dtype=torch.float64)  # squared norms before and after
    counts = torch.zeros(len(layer.parts), dtype=torch.long)
    # What is kept is set down in one piece: small tensors between the tiles' large ones would scatter the memory.
    held = None
    sample = sample_rows(layer.shape)
    like = next(iter(layer.parts.values())).A
    looked = like.new_empty(len(layer.parts), len(sample), layer.shape[1])
    for start in layer.starts():
        tiles = layer.rows(start)
        kept, merged = combine(layer, start, tiles)
        if hold:
            held = merged.new_empty(layer.shape) if held is None else held
            held[start : start + layer.step] = merged
        inside = (sample >= start) & (sample < start + layer.step)
        looked[:, inside.to(like.device)] = kept[:, (sample[inside] - start).to(kept.device)]
        mask = kept != 0
        whole += _squares(tiles)
        left += _squares(tiles * mask)
        counts += mask.sum(dim=(1, 2)).cpu()
    shares = {
        n: Share(part.rank, None, after / before if before else 1.0, (count, layer.size))
        for (n, part), before, after, count in zip(
            layer.parts.items(), whole.tolist(), left.tolist(), counts.tolist(), strict=True
        )
    }
    unweighted = looked * column([weights[n] for n in layer.parts], looked).sign()
    return held, shares, conflict_among(list(unweighted))


def _squares(tiles: Tensor) -> Tensor:
    """The squared norm of each tile, (N,) in float64."""
    found: Tensor = torch.linalg.vector_norm(tiles.flatten(1), dim=1, dtype=torch.float64).square().cpu()
    return found
