"""Exact selection of the k largest of many scores without sorting them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating[Any]]

#: Bits of a score's ordered integer that one histogram resolves.
DIGIT = 16

#: Scores looked at together: what is made on the way lies in a core's cache.
_CHUNK = 1 << 18

#: The same for NumPy's operations, which are shorter.
_STEP = 1 << 16

#: About how many scores make up the sample.
_SAMPLE = 1 << 14


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Which elements are the `count` largest; among equal ones the lower index stays.

    On the CPU a sample tells between which two values the threshold lies, but for bad luck; one pass counts what is
    above and gathers what is between, which is sorted. Elsewhere, or with bad luck, a radix selection: floats are
    mapped to integers of the same order, and a histogram of 16 bits at a time narrows down the threshold; two passes
    for float32, four for float64. Exact either way. Cost O(n), memory one bool an element. Short tensors are sorted.

    Args:
        scores: float32 or float64, any shape, no NaN; -inf for what must not be chosen before anything else.
        count: how many, 0 to the number of scores.

    Returns:
        A bool tensor of the same shape with exactly `count` True.

    Example:
        >>> keep_largest(torch.tensor([0.5, 2.0, -1.0, 2.0, 0.5]), 3)
        tensor([ True,  True, False,  True, False])
    """
    if not 0 <= count <= scores.numel():
        raise ValueError(f"cannot keep {count} of {scores.numel()} scores")
    if count in (0, scores.numel()):
        return torch.full(scores.shape, count > 0, device=scores.device)
    flat = scores.reshape(-1)
    if flat.numel() < 2**DIGIT:  # a histogram would be longer than the scores
        kept = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
        kept[torch.sort(flat, descending=True, stable=True).indices[:count]] = True
        return kept.view(scores.shape)
    if flat.device.type == "cpu":
        values = flat.detach().numpy()
        found = _bracketed(values, count)
        if found is not None:
            return torch.from_numpy(_kept(values, *found)).view(scores.shape)
    threshold, ties = _threshold(flat, count)
    kept = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    for span, keys in _chunks(flat):
        torch.gt(keys, threshold, out=kept[span])
        if ties:
            equal = (keys == threshold).nonzero().flatten()[:ties]
            kept[span][equal] = True
            ties -= len(equal)
    return kept.view(scores.shape)


def _bracketed(values: Floats, count: int) -> tuple[float, int, bool] | None:
    """The `count`-th largest value, how many that equal it are among the largest, and whether these are all.

    None where the sample was misleading.
    """
    sample = np.sort(values[:: max(1, len(values) // _SAMPLE)])[::-1]
    place = len(sample) * count // len(values)
    margin = 4 * int(len(sample) ** 0.5)
    # beyond the sample's ends the values have no bounds
    high = float(sample[place - margin]) if place >= margin else np.inf
    low = float(sample[place + margin]) if place + margin < len(sample) else -np.inf
    above, equal = 0, 0
    between = []
    for start in range(0, len(values), _STEP):
        part = values[start : start + _STEP]
        above += int(np.count_nonzero(part > high))
        if low == high:
            equal += int(np.count_nonzero(part == low))
        else:
            between.append(part[(part >= low) & (part <= high)])
    wanted = count - above
    if low == high:
        return (low, wanted, wanted == equal) if 0 < wanted <= equal else None
    middle = np.sort(np.concatenate(between))
    if not 0 < wanted <= len(middle):
        return None
    value = middle[len(middle) - wanted]
    first, last = np.searchsorted(middle, value, "left"), np.searchsorted(middle, value, "right")
    ties = wanted - (len(middle) - int(last))
    return float(value), ties, ties == int(last - first)


def _kept(values: Floats, threshold: float, ties: int, all_ties: bool) -> NDArray[np.bool_]:
    """What is above the threshold, and the first few that equal it."""
    kept = np.empty(len(values), dtype=np.bool_)
    for start in range(0, len(values), _STEP):
        part, out = values[start : start + _STEP], kept[start : start + _STEP]
        if all_ties:
            np.greater_equal(part, threshold, out=out)
            continue
        np.greater(part, threshold, out=out)
        if ties:
            equal = np.flatnonzero(part == threshold)[:ties]
            out[equal] = True
            ties -= len(equal)
    return kept


def _threshold(flat: Tensor, count: int) -> tuple[int, int]:
    """The `count`-th largest score as an ordered integer, and how many that equal it are among the largest."""
    found = Narrowing(count)
    for shift in shifts(flat.dtype):
        totals = torch.zeros(2**DIGIT, dtype=torch.int64, device=flat.device)
        for _, keys in _chunks(flat):
            totals += found.counted(keys, shift)
        found.narrow(totals)
    assert found.prefix is not None
    return found.prefix, found.wanted


class Narrowing:
    """The search for the k-th largest of many ordered integers, a digit at a time.

    Args:
        wanted: k, from 1; then the place among those that begin with `prefix`, the digits that are known.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.prefix: int | None = None

    def counted(self, keys: Tensor, shift: int) -> Tensor:
        """How many of the integers that begin with the prefix have which digit at `shift`."""
        if self.prefix is None:
            digits = (keys >> shift) & (2**DIGIT - 1) ^ (1 << (DIGIT - 1))  # the sign bit: negative ones come first
        else:
            digits = (keys[(keys >> (shift + DIGIT)) == self.prefix] >> shift) & (2**DIGIT - 1)
        return torch.bincount(digits, minlength=2**DIGIT)

    def narrow(self, totals: Tensor) -> None:
        """Go on with the digit that the wanted one has, from how many of all have which."""
        above = totals.flip(0).cumsum(0)  # counts from the top
        place = int(torch.searchsorted(above, self.wanted))
        self.wanted -= int(above[place - 1]) if place else 0
        digit = 2**DIGIT - 1 - place
        self.prefix = digit - (1 << (DIGIT - 1)) if self.prefix is None else (self.prefix << DIGIT) | digit


def shifts(dtype: torch.dtype) -> range:
    """Where the digits of a float's ordered integer begin, the first one first."""
    return range(torch.finfo(dtype).bits - DIGIT, -1, -DIGIT)


def _chunks(flat: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, flat.numel(), _CHUNK):
        yield slice(start, start + _CHUNK), ordered(flat[start : start + _CHUNK])


def ordered(scores: Tensor) -> Tensor:
    """Integers in the order of the floats; 0.0 and -0.0 alike."""
    kind = torch.int64 if scores.dtype == torch.float64 else torch.int32
    raw = (scores + 0.0).view(kind)
    return raw ^ ((raw >> (raw.element_size() * 8 - 1)) & torch.iinfo(kind).max)
