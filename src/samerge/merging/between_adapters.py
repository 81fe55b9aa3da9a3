"""How several adapters of one base agree with each other, before any merge: no base, no data, no dense update.

Over all layers together, tau_i standing for the adapter's updates side by side:

    cosine(i, j)   <tau_i, tau_j> / (||tau_i|| ||tau_j||)
    rows(i, j)     ||V_i^T V_j||_F^2 / min(r_i, r_j)     inputs that both react to; columns(i, j) likewise for outputs
    signs(i, j)    share of the elements with opposite signs, on a sample

The overlap of subspaces is 1 where one holds the other, 0 where they are orthogonal, and about max(r_i, r_j) / d where
they are drawn at random; it is the mean over the layers that both adapt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samerge.adapters import Adapter
from samerge.linalg.factors import LoraFactors
from samerge.linalg.sign_conflicts import sample_rows, sign_counts
from samerge.linalg.truncation import svd_basis
from samerge.merging.alignment import assemble
from samerge.merging.alignment.spelling import together
from samerge.merging.conversion.dora import check_dora
from samerge.report.picture import Heat

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Conflicts:
    """Several adapters, each with each.

    Args:
        names: the adapters.
        norms: Frobenius norm of each adapter's whole update.
        cosine: of the whole updates; None for an adapter that is zero.
        rows: overlap of the row spaces (inputs), the mean over common layers; None without any.
        columns: overlap of the column spaces (outputs).
        sign_conflict: share of the sampled elements with opposite signs.
        chance: what `rows` would be on the mean of the layers for subspaces drawn at random.
        layers: for each module and pair of adapters that both adapt it, their cosine there.
        sampled: elements that were looked at for signs, and of how many.
    """

    names: tuple[str, ...]
    norms: tuple[float, ...]
    cosine: Matrix
    rows: Matrix
    columns: Matrix
    sign_conflict: Matrix
    chance: float | None
    layers: Mapping[str, Mapping[tuple[int, int], float]] = field(repr=False)
    sampled: tuple[int, int]

    def pairs(self) -> list[tuple[int, int]]:
        """Every two adapters once."""
        return [(i, j) for i in range(len(self.names)) for j in range(i + 1, len(self.names))]

    def worst(self, count: int) -> list[dict[str, Any]]:
        """The layers in which two adapters work against each other most: lowest cosine first, ties by name."""
        found = [(cosine, module, pair) for module, own in self.layers.items() for pair, cosine in own.items()]
        return [
            {"module": module, "adapters": [self.names[n] for n in pair], "cosine": cosine}
            for cosine, module, pair in sorted(found)[:count]
        ]

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "adapters": list(self.names),
            "norms": list(self.norms),
            **{key: [list(row) for row in getattr(self, key)] for key in ("cosine", "rows", "columns")},
            "sign_conflict": [list(row) for row in self.sign_conflict],
            "chance": self.chance,
            "sampled": list(self.sampled),
        }

    def picture(self, path: str | Path) -> Path:
        """Draw the cosines as a heat map.

        Args:
            path: the file to write; its ending says the kind (png, svg, pdf).

        Returns:
            The file.

        Raises:
            OptionError: matplotlib is not installed, or the ending is none that it knows.
        """
        return self.heat().draw(path)

    def heat(self) -> Heat:
        """What the picture shows."""
        how = (
            "A row and a column are an adapter each. Blue: they change the model the same way; no colour: they have "
            "nothing in common; red: they cancel."
        )
        return Heat("Cosine between the adapters' updates", self.names, self.names, self.cosine, -1.0, 1.0, how)


def conflicts(adapters: Sequence[Adapter]) -> Conflicts:
    """Compare adapters of one base with each other.

    Args:
        adapters: at least two, of any ranks and modules.

    Raises:
        AdapterError: one is a DoRA adapter, whose update is not low-rank and needs the base.
        BaseModelError: they do not fit each other.
    """
    way = (
        "Compare what it is without: samerge compress ADAPTER --rank RANK --base BASE --dora exact --out FOLDER "
        "(in Python compress_adapter) makes a plain LoRA of it"
    )
    check_dora(adapters, None, None, "comparing", way)
    count = len(adapters)
    sums = _Sums(count)
    layers: dict[str, dict[tuple[int, int], float]] = {}
    for site in assemble.align(together(adapters, None, strict=False).adapters, None):
        parts = {n: svd_basis(a.load().to(dtype=torch.float32).folded()) for n, a in site.experts.items()}
        inner = sums.add(parts, site.shape)
        layers[site.module] = {
            (n, m): float(inner[n, m]) / math.sqrt(float(inner[n, n] * inner[m, m]))
            for n in parts
            for m in parts
            if n < m and inner[n, n] > 0 and inner[m, m] > 0
        }
    return sums.conflicts(tuple(adapter.name for adapter in adapters), layers)


class _Sums:
    """What adds up over the layers, (N, N) each, in float64."""

    def __init__(self, count: int) -> None:
        tables = (torch.zeros(count, count, dtype=torch.float64) for _ in range(6))
        self.inner, self.rows, self.columns, self.together, self.opposed, self.compared = tables
        self.chances: list[float] = []
        self.sampled = (0, 0)

    def add(self, parts: Mapping[int, LoraFactors], shape: tuple[int, int]) -> Tensor:
        """Take in one layer's updates, as singular triplets by number of the adapter; gives their inner products."""
        index = torch.tensor(list(parts))
        place = (index[:, None], index[None, :])
        inner, rows, columns, exist = _products(list(parts.values()))
        self.inner[place] += inner
        self.rows[place] += rows
        self.columns[place] += columns
        self.together[place] += exist
        picked = sample_rows(shape)
        signs = sign_counts(list(parts.values()), picked)
        self.opposed[place] += signs.opposed
        self.compared[place] += signs.compared
        self.sampled = (self.sampled[0] + len(picked) * shape[1], self.sampled[1] + shape[0] * shape[1])
        self.chances.append(max(part.rank for part in parts.values()) / shape[1])
        full = torch.zeros_like(self.inner)
        full[place] = inner
        return full

    def conflicts(self, names: tuple[str, ...], layers: Mapping[str, Mapping[tuple[int, int], float]]) -> Conflicts:
        norms = self.inner.diagonal().clamp_min(0).sqrt()
        return Conflicts(
            names=names,
            norms=tuple(norms.tolist()),
            cosine=_ratios(self.inner, norms[:, None] * norms[None, :]),
            rows=_ratios(self.rows, self.together),
            columns=_ratios(self.columns, self.together),
            sign_conflict=_ratios(self.opposed, self.compared),
            chance=sum(self.chances) / len(self.chances) if self.chances else None,
            layers=layers,
            sampled=self.sampled,
        )


def _products(parts: Sequence[LoraFactors]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inner products, overlaps of row and column spaces, and whether both exist, (n, n) each.

    A part has orthonormal rows A = V^T and columns B = U diag(s).
    """
    A = torch.cat([part.A for part in parts])  # (R, d_in)
    B = torch.cat([part.B for part in parts], dim=1)  # (d_out, R)
    sizes = torch.linalg.vector_norm(B, dim=0, dtype=torch.float64)
    unit = B / sizes.clamp_min(torch.finfo(B.dtype).tiny).to(B.dtype)  # before the product, whose squares may overflow
    right, units = (A @ A.T).double(), (unit.T @ unit).double()  # (R, R)
    left = units * sizes[:, None] * sizes[None, :]
    ranks = [part.rank for part in parts]
    least = torch.tensor([[min(a, b) for b in ranks] for a in ranks], dtype=torch.float64)
    inner, rows, columns = (_blocks(matrix, ranks) for matrix in (left * right, right.square(), units.square()))
    return inner, rows / least.clamp_min(1), columns / least.clamp_min(1), (least > 0).double()


def _blocks(matrix: Tensor, ranks: Sequence[int]) -> Tensor:
    """The sum of every block, (n, n)."""
    owner = torch.repeat_interleave(torch.tensor(ranks))  # (R,)
    member = torch.nn.functional.one_hot(owner, len(ranks)).to(matrix.dtype)  # (R, n)
    return member.T @ matrix @ member


def _ratios(over: Tensor, under: Tensor) -> Matrix:
    return tuple(
        tuple(a / b if b > 0 else None for a, b in zip(one, other, strict=True))
        for one, other in zip(over.tolist(), under.tolist(), strict=True)
    )
