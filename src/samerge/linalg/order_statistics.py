"""Exact order statistics of many values that are only ever seen some at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from samerge.linalg.largest import ordered

#: Bits of a value's ordered integer that one histogram resolves.
_DIGIT = 16

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
    bits = torch.finfo(dtype).bits
    prefixes = {(group, j): 0 for group, wanted in ranks.items() for j in range(len(wanted))}
    left = {(group, j): k for group, wanted in ranks.items() for j, k in enumerate(wanted)}
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        first = shift == bits - _DIGIT
        totals = {place: torch.zeros(2**_DIGIT, dtype=torch.int64) for place in left}
        for group, values in pieces():
            keys = ordered(values.reshape(-1))
            for j in range(len(ranks[group])):
                digits = _digits(keys, shift, None if first else prefixes[group, j])
                totals[group, j] += torch.bincount(digits, minlength=2**_DIGIT).cpu()
        for place, counts in totals.items():
            above = counts.flip(0).cumsum(0)  # counts from the top
            index = int(torch.searchsorted(above, left[place]))
            left[place] -= int(above[index - 1]) if index else 0
            digit = 2**_DIGIT - 1 - index
            prefixes[place] = digit - (1 << (_DIGIT - 1)) if first else (prefixes[place] << _DIGIT) | digit
    return {
        group: tuple(_value(prefixes[group, j], dtype) for j in range(len(wanted))) for group, wanted in ranks.items()
    }


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


def _digits(keys: Tensor, shift: int, prefix: int | None) -> Tensor:
    """The digit at `shift` of the keys that begin with `prefix`; the sign bit turned where it is the first digit."""
    first = prefix is None
    chosen = keys if first else keys[(keys >> (shift + _DIGIT)) == prefix]
    digits: Tensor = (chosen >> shift) & (2**_DIGIT - 1)
    return digits ^ (1 << (_DIGIT - 1)) if first else digits


def _value(key: int, dtype: torch.dtype) -> float:
    """The float of an ordered integer."""
    kind = torch.int64 if dtype == torch.float64 else torch.int32
    raw = torch.tensor([key if key >= 0 else key ^ torch.iinfo(kind).max], dtype=kind)
    return float(raw.view(dtype)[0])
