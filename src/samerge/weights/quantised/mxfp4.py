"""MXFP4 expert stacks (gpt-oss): 4-bit floats with a power of two for every 32 of them.

`X_blocks` (experts, out, groups, 16) bytes and `X_scales` (experts, out, groups) exponents make X, which the model has
as (experts, in, out): the last two dimensions change places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from samerge.weights.quantised.packing import Dequantised, Found, Loader, fp4, numbers, stems
from samerge.weights.stored import Held, Stored


def find(raw: Mapping[str, Stored], settings: Mapping[str, Any]) -> Iterator[Found]:
    """The stacks in MXFP4."""
    load, held = Loader(raw), Held(2)
    for stem in stems(raw, "_blocks"):
        if f"{stem}_scales" in raw and len(raw[f"{stem}_blocks"].shape) == 4:
            yield _stack(stem, raw, load, held)


def _stack(stem: str, raw: Mapping[str, Stored], load: Loader, held: Held) -> Found:
    blocks, scales = raw[f"{stem}_blocks"], raw[f"{stem}_scales"]
    experts, out, groups, half = blocks.shape

    def matrix(expert: int) -> Tensor:
        values = fp4(blocks.read(0, out, expert)) * numbers(scales.read(0, out, expert))[..., None]
        return values.reshape(out, groups * half * 2).T  # (in, out)

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        if expert is None:
            return torch.stack([matrix(e) for e in range(start, stop)])
        return held.get((stem, expert), lambda: matrix(expert))[start:stop]

    shape = (experts, groups * half * 2, out)
    return Found(stem, Dequantised(shape, rows), (f"{stem}_blocks", f"{stem}_scales"))
