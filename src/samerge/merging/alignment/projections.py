"""Projections that a model has in one piece and an adapter in several, or the other way round: exact in either form.

| the base has | the adapter has | becomes |
|---|---|---|
| `q_proj`, `k_proj`, `v_proj` | `qkv_proj`: A, B | for each part A and its rows of B |
| `qkv_proj` | some of the three: A_i, B_i | A_i one under the other, B_i each in its own rows |

Gate and up likewise. The base's names decide, and its shapes say how many rows each part has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from samerge.adapters import AdaptedModule, Adapter, widest
from samerge.adapters.layouts import Layout
from samerge.linalg.factors import LoraFactors
from samerge.merging.alignment.matching import Names
from samerge.options.module_names import joined
from samerge.weights import WeightSource

#: A projection in one piece -> its parts, one under the other. Those whose heads are interleaved are not here.
PARTS: Mapping[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "Wqkv": ("q_proj", "k_proj", "v_proj"),
    "W_pack": ("q_proj", "k_proj", "v_proj"),
    "to_qkv": ("to_q", "to_k", "to_v"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def as_the_base_has_them(adapter: Adapter, source: WeightSource) -> Adapter:
    """The adapter with its projections in as many pieces as the base has; as it is where they are.

    Args:
        adapter: under any names.
        source: the base.
    """
    ends = {end for whole, parts in PARTS.items() for end in (whole, *parts)}
    plain = {
        module: one
        for module, one in adapter.modules.items()
        if module.rpartition(".")[2] in ends and one.layout.kind == "linear" and not (one.bias or one.magnitude)
    }
    if not plain:
        return adapter
    names = Names(tensor for tensor, shape in source.shapes.items() if len(shape) == 2)
    absent = {module: one for module, one in plain.items() if not names.find(module)}
    kept = dict(adapter.modules)
    for whole, parts in PARTS.items():
        for owner in sorted({module.rpartition(".")[0] for module in absent}):
            one = absent.get(joined(owner, whole))
            there = {part: absent[joined(owner, part)] for part in parts if joined(owner, part) in absent}
            made = (
                _split(owner, parts, one, names, source)
                if one is not None
                else _fused(owner, whole, parts, there, names, source)
            )
            if made:
                for name in [whole] if one is not None else list(there):
                    del kept[joined(owner, name)], absent[joined(owner, name)]
                kept.update(made)
    return replace(adapter, modules=dict(sorted(kept.items())))


def _split(
    owner: str, parts: Sequence[str], one: AdaptedModule, names: Names, source: WeightSource
) -> dict[str, AdaptedModule]:
    """The parts of an update in one piece; nothing where the base has not all of them, or of other shapes."""
    tensors = [names.find(joined(owner, part)) for part in parts]
    if any(len(found) != 1 for found in tensors):
        return {}
    shapes = [source.shapes[tensor] for [tensor] in tensors]
    if sum(rows for rows, _ in shapes) != one.shape[0] or any(columns != one.shape[1] for _, columns in shapes):
        return {}
    found = {}
    start = 0
    for part, (rows, columns) in zip(parts, shapes, strict=True):
        load = partial(_rows, one, start, start + rows)
        found[joined(owner, part)] = AdaptedModule(Layout(), one.rank, (rows, columns), one.dtype, load)
        start += rows
    return found


def _rows(one: AdaptedModule, start: int, stop: int) -> LoraFactors:
    factors = one.load()
    return LoraFactors(factors.A, factors.B[start:stop], factors.scale)


def _fused(
    owner: str,
    whole: str,
    parts: Sequence[str],
    there: Mapping[str, AdaptedModule],
    names: Names,
    source: WeightSource,
) -> dict[str, AdaptedModule]:
    """The update in one piece of some of its parts; nothing where the base has none such, or of another shape."""
    tensors = names.find(joined(owner, whole))
    if not there or len(tensors) != 1:
        return {}
    rows, columns = source.shapes[tensors[0]]
    sizes = _sizes({part: one.shape[0] for part, one in there.items()}, parts, rows)
    if sizes is None or any(one.shape[1] != columns for one in there.values()):
        return {}
    rank = sum(one.rank for one in there.values())
    load = partial(stacked_rows, [(there.get(part), sizes[part]) for part in parts], rank, columns)
    dtype = widest(one.dtype for one in there.values())
    return {joined(owner, whole): AdaptedModule(Layout(), rank, (rows, columns), dtype, load)}


def _sizes(known: Mapping[str, int], parts: Sequence[str], rows: int) -> dict[str, int] | None:
    """The rows of each part; those of k and v are as many, and so are those of gate and up.

    Example:
        >>> _sizes({"q_proj": 8}, ("q_proj", "k_proj", "v_proj"), 16)
        {'q_proj': 8, 'k_proj': 4, 'v_proj': 4}
        >>> _sizes({"q_proj": 8, "k_proj": 3}, ("q_proj", "k_proj", "v_proj"), 16) is None
        True
    """
    *first, one, two = parts
    alike = known.get(one, known.get(two))
    if alike is None:
        alike = (rows - sum(known[name] for name in first)) // 2
    found = {**dict.fromkeys(first, rows - 2 * alike), one: alike, two: alike}
    fits = all(found[name] == size for name, size in known.items()) and min(found.values()) > 0
    return found if fits and sum(found.values()) == rows else None


def stacked_rows(parts: Sequence[tuple[AdaptedModule | None, int]], rank: int, columns: int) -> LoraFactors:
    """The update of several parts one under the other: side by side in A, and each in its own rows of B.

    Args:
        parts: each with its rows; None for one that is not adapted.
        rank: at least that of all parts together; there are zeros beyond.
        columns: of each.
    """
    A = torch.zeros(rank, columns)
    B = torch.zeros(sum(size for _, size in parts), rank)
    row = column = 0
    for part, size in parts:
        if part is not None:
            factors = part.load().to(dtype=torch.float32).folded()
            A[column : column + part.rank] = factors.A
            B[row : row + size, column : column + part.rank] = factors.B
            column += part.rank
        row += size
    return LoraFactors(A, B)
