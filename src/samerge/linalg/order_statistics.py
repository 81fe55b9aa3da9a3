"""Exact order statistics of many values that are only ever seen some at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from samerge.linalg.largest import DIGIT, Narrowing, ordered, shifts

Group = TypeVar("Group", bound=Hashable)
#: Gives all values anew, in pieces, each with the group that it belongs to.
Pieces = Callable[[], Iterable[tuple[Group, Tensor]]]


def largest_of(
    pieces: Pieces[Group], ranks: Mapping[Group, Sequence[int]], dtype: torch.dtype = torch.float32
) -> dict[Group, tuple[float, ...]]:
    """For each group the values that are the k-th largest in it, by a histogram that is refined pass by pass.

    Args:
        pieces: called twice for float32, four times for float64; must give the same values each time, all of `dtype`.
        ranks: for each group the wanted k, 1 to the number of its values.
        dtype: float32 or float64.

    Returns:
        The values, in the order of the ranks. Memory: 65536 counts for each.

    Example:
        >>> parts = [("a", torch.tensor([3.0, 1.0])), ("b", torch.tensor([7.0])), ("a", torch.tensor([-2.0, 3.0]))]
        >>> largest_of(lambda: iter(parts), {"a": [1, 3], "b": [1]})
        {'a': (3.0, 1.0), 'b': (7.0,)}
    """
    found = {group: [Narrowing(k) for k in wanted] for group, wanted in ranks.items()}
    for shift in shifts(dtype):
        totals = {group: torch.zeros(len(own), 2**DIGIT, dtype=torch.int64) for group, own in found.items()}
        for group, values in pieces():
            keys = ordered(values.reshape(-1))
            for one, counts in zip(found[group], totals[group], strict=True):
                counts += one.counted(keys, shift).cpu()
        for group, own in found.items():
            for one, counts in zip(own, totals[group], strict=True):
                one.narrow(counts)
    return {group: tuple(_value(one.prefix or 0, dtype) for one in own) for group, own in found.items()}


def largest_in(values: Tensor, ranks: Sequence[int]) -> tuple[float, ...]:
    """The values that are the k-th largest of those at hand.

    Args:
        values: (n,), in any order; no NaN.
        ranks: the wanted k, 1 to n.

    Example:
        >>> largest_in(torch.tensor([3.0, 1.0, -2.0, 3.0]), [1, 3])
        (3.0, 1.0)
    """
    places = [len(values) - k for k in ranks]
    parted = np.partition(values.cpu().numpy(), places)
    return tuple(float(parted[place]) for place in places)


def _value(key: int, dtype: torch.dtype) -> float:
    """The float of an ordered integer."""
    kind = torch.int64 if dtype == torch.float64 else torch.int32
    raw = torch.tensor([key if key >= 0 else key ^ torch.iinfo(kind).max], dtype=kind)
    return float(raw.view(dtype)[0])
