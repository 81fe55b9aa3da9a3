"""Exact selection of the k largest of many scores without sorting them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

#: Bits of a score's ordered integer that one histogram resolves.
_DIGIT = 16

#: Scores looked at together: what is made on the way lies in a core's cache.
_CHUNK = 1 << 18


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Which elements are the `count` largest; among equal ones the lower index stays.

    A radix selection: floats are mapped to integers of the same order, and a histogram of 16 bits at a time narrows
    down the threshold; two passes for float32, four for float64. Cost O(n), memory one bool an element. Short tensors
    are sorted.

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
    if flat.numel() < 2**_DIGIT:  # a histogram would be longer than the scores
        kept = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
        kept[torch.sort(flat, descending=True, stable=True).indices[:count]] = True
        return kept.view(scores.shape)
    threshold, ties = _threshold(flat, count)
    kept = torch.empty(flat.shape, dtype=torch.bool, device=flat.device)
    for span, keys in _chunks(flat):
        torch.gt(keys, threshold, out=kept[span])
        if ties:
            equal = (keys == threshold).nonzero().flatten()[:ties]
            kept[span][equal] = True
            ties -= len(equal)
    return kept.view(scores.shape)


def _threshold(flat: Tensor, count: int) -> tuple[int, int]:
    """The `count`-th largest score as an ordered integer, and how many that equal it are among the largest."""
    bits = flat.element_size() * 8
    prefix, wanted = 0, count
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        first = shift == bits - _DIGIT
        totals = torch.zeros(2**_DIGIT, dtype=torch.int64, device=flat.device)
        for _, keys in _chunks(flat):
            if not first:
                keys = keys[(keys >> (shift + _DIGIT)) == prefix]
            digits = (keys >> shift) & (2**_DIGIT - 1)
            if first:
                digits = digits ^ (1 << (_DIGIT - 1))  # the sign bit: negative integers come first
            totals += torch.bincount(digits, minlength=2**_DIGIT)
        above = totals.flip(0).cumsum(0)  # counts from the top
        place = int(torch.searchsorted(above, wanted))
        wanted -= int(above[place - 1]) if place else 0
        digit = 2**_DIGIT - 1 - place
        prefix = digit - (1 << (_DIGIT - 1)) if first else (prefix << _DIGIT) | digit
    return prefix, wanted


def _chunks(flat: Tensor) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, flat.numel(), _CHUNK):
        yield slice(start, start + _CHUNK), ordered(flat[start : start + _CHUNK])


def ordered(scores: Tensor) -> Tensor:
    """Integers in the order of the floats; 0.0 and -0.0 alike."""
    kind = torch.int64 if scores.dtype == torch.float64 else torch.int32
    raw = (scores + 0.0).view(kind)
    return raw ^ ((raw >> (raw.element_size() * 8 - 1)) & torch.iinfo(kind).max)
