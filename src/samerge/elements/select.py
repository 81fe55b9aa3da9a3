"""Exact selection of the k largest of many scores without sorting them."""

from __future__ import annotations

import torch
from torch import Tensor

#: Bits of a score's ordered integer that one histogram resolves.
_DIGIT = 16


def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Which elements are the `count` largest; among equal ones the lower index stays.

    A radix selection: floats are mapped to integers of the same order, and a histogram of 16 bits at a time narrows
    down the threshold; two passes for float32, four for float64. Cost O(n), memory one integer and one bool an element.

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
    keys = _ordered(scores).flatten()
    if count in (0, scores.numel()):
        return torch.full(scores.shape, count > 0, device=scores.device)
    bits = keys.element_size() * 8
    pool, wanted, threshold = keys, count, 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        digits = (pool >> shift) & (2**_DIGIT - 1)
        if shift == bits - _DIGIT:
            digits = digits ^ (1 << (_DIGIT - 1))  # the sign bit: negative integers come first
        above = torch.bincount(digits, minlength=2**_DIGIT).flip(0).cumsum(0)  # counts from the top
        place = int(torch.searchsorted(above, wanted))
        digit = 2**_DIGIT - 1 - place
        wanted -= int(above[place - 1]) if place else 0
        pool = pool[digits == digit]
        if shift == bits - _DIGIT:
            digit ^= 1 << (_DIGIT - 1)
        threshold |= digit << shift
    if threshold >= 1 << (bits - 1):
        threshold -= 1 << bits
    kept = keys > threshold
    ties = (keys == threshold).nonzero().flatten()[:wanted]
    kept[ties] = True
    return kept.view(scores.shape)


def _ordered(scores: Tensor) -> Tensor:
    """Integers in the order of the floats; 0.0 and -0.0 alike."""
    kind = torch.int64 if scores.dtype == torch.float64 else torch.int32
    raw = (scores + 0.0).contiguous().view(kind)
    return raw ^ ((raw >> (raw.element_size() * 8 - 1)) & torch.iinfo(kind).max)
