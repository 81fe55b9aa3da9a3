"""Saliency of single elements (Park, Lee and Sohn, ICML 2026, arXiv 2606.00511), streamed.

For expert n with surviving elements m_n, W_n = theta0 + m_n * tau_n, and the merge T = sum_i w_i m_i * tau_i,

    S_n = dR_n/dtau_n * T = sign(W_n) * (beta alpha^T) * T               agreement="paper"
    S_n = |dR_n/dtau_n| * w_n tau_n * T                                  agreement="task"

Each iteration keeps, in every tensor and of every expert, the elements with the largest S_n among those that survive:
a pruned element has tau = 0 but not S = 0, and would waste a place. All experts are scored against the state at the
start of the iteration: the walk backwards knows alpha and beta at each weight, so that a weight can be scored and
pruned there and then, after its flow was taken with the old masks.

Memory: the masks, one bit an element and expert, and of the largest weight a float tensor, and one more a thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from samerge.graph import FlowGraph, Weight
from samerge.linalg.largest import keep_largest
from samerge.options.module_names import expert_of
from samerge.parallel.threads import Workers, workers
from samerge.saliency.element_masks import Masks
from samerge.saliency.flows import Stream, live_weights, walk
from samerge.saliency.kernels import native_elements
from samerge.saliency.kernels.backend import choose
from samerge.saliency.scores import kept_count
from samerge.saliency.task_vectors import TaskVectors, rows_of, shape_of
from samerge.weights import WeightSource
from samerge.weights.tiling import spans

#: Entries of a tile: every pass over it is bound by memory, so it should stay in a core's cache.
TILE_ELEMENTS = 1 << 17


class Pruner:
    """Several experts' task vectors over one base, and which of their elements survive.

    Args:
        source: the base weights.
        vectors: the experts' task vectors.
        weights: one for each expert.
        masks: the survivors; starts empty, everything survives.
        device: where to compute.
        dtype: what to compute in.
        own: the weights at the keys where they are others.
    """

    def __init__(
        self,
        source: WeightSource,
        vectors: TaskVectors,
        weights: Sequence[float],
        masks: Masks,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        own: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.source, self.vectors, self.weights, self.masks = source, vectors, weights, masks
        self.device, self.dtype, self.own = device, dtype, own or {}

    def weight(self, expert: int, key: str) -> float:
        """An expert's weight at a key."""
        return self.own.get(key, self.weights)[expert]

    def task_vector(self, expert: int, key: str, start: int, theta: Tensor) -> Tensor:
        """m_n * tau_n on a tile, a fresh tensor."""
        tau = self.vectors.tile(expert, key, start, theta)
        kept = self.masks.numbers(expert, key, start, start + theta.shape[0], theta)
        return tau if kept is None else tau.mul_(kept)

    def merged_rows(self, key: str, start: int, stop: int) -> Tensor:
        """The merge's rows, sum_n w_n m_n * tau_n, (stop - start, columns)."""
        return self.merged_tile(key, start, rows_of(self.source, key, start, stop, self.device, self.dtype))

    def merged_tile(self, key: str, start: int, theta: Tensor) -> Tensor:
        """The merge's rows that belong to the tile theta, whose first row is `start`."""
        merged = torch.zeros_like(theta)
        for n in range(self.vectors.count):
            if self.vectors.has(n, key):
                merged.add_(self.task_vector(n, key, start, theta), alpha=self.weight(n, key))
        return merged

    def tiles(self, key: str) -> Iterator[tuple[int, int]]:
        """First row and one past the last row of every tile of a weight."""
        return spans(shape_of(self.source, key), TILE_ELEMENTS)

    def run(
        self,
        graph: FlowGraph,
        density: float,
        iterations: int,
        task_agreement: bool,
        advance: Callable[[int], None] = lambda entries: None,
    ) -> tuple[float, ...]:
        """Prune `iterations` times.

        Args:
            graph: how the weights feed one another; pruned is every one that an expert changes, on a path to an output.
            density: the share that each expert keeps of a weight at the end, in (0, 1].
            iterations: T.
            task_agreement: which of the two scores.
            advance: called with the number of entries swept.

        Returns:
            log R of every expert at the start of the last iteration.
        """
        logs: tuple[float, ...] = ()
        native = choose(self.device, self.dtype).name == "native"
        # Without the kernel by torch's own threads: its passes over a tile are too short for Python's to share them.
        with workers(self.device) if native else nullcontext(Workers(1, None)) as crew:
            for step in range(1, iterations + 1):
                flow = _Elements(self, graph, density, (step, iterations), task_agreement, native, crew, advance)
                logs = walk(graph, self.source.shapes, self.vectors.count, flow, self.device, self.dtype)
        return logs


class _Elements:
    """What a weight with element-wise updates does to the flows; scores and prunes it on the way back."""

    def __init__(
        self,
        pruner: Pruner,
        graph: FlowGraph,
        density: float,
        step: tuple[int, int],
        task_agreement: bool,
        native: bool,
        crew: Workers,
        advance: Callable[[int], None],
    ) -> None:
        self.pruner, self.density, self.step = pruner, density, step
        self.task_agreement, self.native, self.crew, self.advance = task_agreement, native, crew, advance
        self.uses = Counter(edge.key for edge in live_weights(graph))
        self.flows: dict[str, list[tuple[Stream, Stream]]] = {}

    def forward(self, edge: Weight, alpha: Stream) -> Tensor:
        """|W_n| alpha_n."""
        return self._flow(edge, alpha.values, along_rows=not edge.transposed)

    def backward(self, edge: Weight, beta: Stream, alpha: Stream) -> Tensor:
        """|W_n|^T beta_n; then, once every edge that uses this weight was passed, pruning."""
        experts = [n for n in range(self.pruner.vectors.count) if self.pruner.vectors.has(n, edge.key)]
        merged = torch.zeros(shape_of(self.pruner.source, edge.key), dtype=self.pruner.dtype, device=self.pruner.device)
        values = self._flow(edge, beta.values, along_rows=edge.transposed, merged=merged)
        sides = (alpha, beta) if edge.transposed else (beta, alpha)  # along the rows, along the columns
        self.flows.setdefault(edge.key, []).append(sides)
        if len(self.flows[edge.key]) == self.uses[edge.key]:
            pairs = self.flows.pop(edge.key)
            for n, kept, count in self.crew.map(lambda n: self._pruned(n, edge.key, merged, pairs), experts):
                if isinstance(kept, Tensor):
                    self.pruner.masks.put(n, edge.key, kept)
                elif kept is not None:
                    self.pruner.masks.put_packed(n, edge.key, kept, merged.shape[1], count)
        return values

    def _flow(self, edge: Weight, flow: Tensor, along_rows: bool, merged: Tensor | None = None) -> Tensor:
        """One product for all experts, (N, width); fills `merged` with the aggregate task vector on the way."""
        pruner, key = self.pruner, edge.key
        rows, columns = shape_of(pruner.source, key)
        result = flow.new_empty(flow.shape[0], rows) if along_rows else flow.new_zeros(flow.shape[0], columns)
        flow = flow.contiguous()
        dtype = self._dtype(key)

        def work(tile: tuple[int, int]) -> tuple[slice, Tensor]:
            part = slice(*tile)
            theta = rows_of(pruner.source, key, *tile, pruner.device, dtype)
            found = flow.new_zeros(flow.shape[0], len(theta) if along_rows else columns)
            for n in range(flow.shape[0]):
                vector = flow[n] if along_rows else flow[n, part]
                self._tile(
                    n, key, tile[0], theta, vector, found[n], along_rows, None if merged is None else merged[part]
                )
            return part, found

        for part, found in self.crew.map(work, pruner.tiles(key)):
            if along_rows:
                result[:, part] = found
            else:
                result += found
            self.advance((part.stop - part.start) * columns)
        return result

    def _tile(
        self,
        n: int,
        key: str,
        start: int,
        theta: Tensor,
        vector: Tensor,
        out: Tensor,
        along_rows: bool,
        merged: Tensor | None,
    ) -> None:
        """An expert's part of a product, into `out`; its part of the aggregate is added to `merged`."""
        pruner = self.pruner
        has, weight = pruner.vectors.has(n, key), pruner.weight(n, key)
        if self.native:
            own, whole = self._own(n, key, start, theta) if has else (None, False)
            bits = pruner.masks.packed(n, key, start, start + len(theta))
            native_elements.flow(theta.contiguous(), own, bits, vector, out, along_rows, merged, weight, whole)
            return
        strength = theta
        if has:
            strength = pruner.task_vector(n, key, start, theta)
            if merged is not None:
                merged.add_(strength, alpha=weight)
            strength.add_(theta)
        strength = strength.abs()
        out.copy_(strength @ vector if along_rows else strength.T @ vector)

    def _dtype(self, key: str) -> torch.dtype:
        """What the tiles of a weight are given to the kernel in: as they are stored where it can widen them itself."""
        stored = {self.pruner.source.dtype(expert_of(key)[0])} if self.native else set()
        alike = stored == {torch.bfloat16} == self.pruner.vectors.dtypes(key)
        return torch.bfloat16 if alike else self.pruner.dtype

    def _own(self, n: int, key: str, start: int, theta: Tensor) -> tuple[Tensor, bool]:
        """An expert's tile for the kernel: its own weight where it is stored, and whether it is that."""
        weight = self.pruner.vectors.weight(n, key, start, theta)
        found = self.pruner.vectors.tile(n, key, start, theta) if weight is None else weight
        return found.contiguous(), weight is not None

    def _pruned(
        self, n: int, key: str, merged: Tensor, pairs: Sequence[tuple[Stream, Stream]]
    ) -> tuple[int, Tensor | native_elements.Bits | None, int]:
        """The elements of an expert with the largest saliency among those that survive; None where none has to go."""
        pruner = self.pruner
        count = kept_count(merged.numel(), self.density, *self.step)
        alive = pruner.masks.count(n, key)
        alive = merged.numel() if alive is None else alive
        if count == alive:
            return n, None, count
        largest = max(float(u.logs[n] + v.logs[n]) for u, v in pairs)
        flows = [(u.values[n] * float((u.logs[n] + v.logs[n] - largest).exp()), v.values[n]) for u, v in pairs]
        if self.native:
            selection = native_elements.Selection(merged, flows, self.task_agreement, pruner.weight(n, key), alive)
            dtype = self._dtype(key)
            for start, stop in pruner.tiles(key):
                theta = rows_of(pruner.source, key, start, stop, pruner.device, dtype).contiguous()
                own, whole = self._own(n, key, start, theta)
                selection.add(theta, own, pruner.masks.packed(n, key, start, stop), start, whole)
            return n, selection.kept(count, pruner.masks.packed(n, key, 0, len(merged))), count
        scores = torch.empty_like(merged)

        for start, stop in pruner.tiles(key):
            theta = rows_of(pruner.source, key, start, stop, pruner.device, pruner.dtype)
            tau = pruner.task_vector(n, key, start, theta)
            score = torch.outer(flows[0][0][start:stop], flows[0][1], out=scores[start:stop])
            for u, v in flows[1:]:
                score.addr_(u[start:stop], v)
            score.mul_(merged[start:stop])
            sign = (theta + tau).sign_()
            score.mul_(sign.abs_().mul_(tau).mul_(pruner.weight(n, key)) if self.task_agreement else sign)
            gone = pruner.masks.numbers(n, key, start, stop, score, alive=0.0, dead=-torch.inf)
            if gone is not None:
                score.add_(gone)

        return n, keep_largest(scores, count), count
