"""HQQ: W = (q - zero) * scale in groups along one axis, reshaped to the weight.

`W_q` packs the rows of the grouped matrix: with k values in a byte, or ten 3-bit values in a 32-bit word, field j of
row i is row i + j * (rows of W_q), the first field in the highest bits. The scalars beside it (`shape`, `packing`,
`axis`, ...) are stored as tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from samerge.weights.quantised.packing import Found, stems
from samerge.weights.stored import Held, Lazily, Stored, whole

_SCALARS = (
    "nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale",
    "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise",
    "optimize", "round_zero",
)  # fmt: skip

#: By the name of the packing: bits in a field, fields in an element.
_PACKINGS = {"8bit_u8": (8, 1), "4bit_u8": (4, 2), "2bit_u8": (2, 4), "1bit_u8": (1, 8), "3bit_32": (3, 10)}


def find(raw: Mapping[str, Stored], settings: Mapping[str, Any]) -> Iterator[Found]:
    """The weights that HQQ has quantised."""
    held = Held(2)
    for stem in stems(raw, ".W_q"):
        lacking = [part for part in ("shape", "scale", "zero", "packing") if f"{stem}.{part}" not in raw]
        if lacking:
            raise ValueError(f"{stem}.W_q comes without {', '.join(lacking)}")
        shape = tuple(int(size) for size in whole(raw[f"{stem}.shape"]).tolist())
        weight = Lazily(shape, torch.float32, lambda stem=stem, shape=shape: _weight(stem, shape, raw), held)  # type: ignore[misc]
        parts = [f"{stem}.{part}" for part in ("W_q", "scale", "zero", *_SCALARS)]
        yield Found(f"{stem}.weight", weight, tuple(part for part in parts if part in raw))


def _weight(stem: str, shape: tuple[int, ...], raw: Mapping[str, Stored]) -> Tensor:
    packed = whole(raw[f"{stem}.W_q"])
    if _flag(raw, f"{stem}.quant_scale") or _flag(raw, f"{stem}.quant_zero"):
        raise ValueError(f"{stem} has quantised scales or zero points")
    packing = _text(raw, f"{stem}.packing")
    if packing and packing not in _PACKINGS:
        raise ValueError(f"{stem} has the packing {packing!r}; known: {', '.join(_PACKINGS)}")
    if _flag(raw, f"{stem}.view_as_float"):
        packed = packed.view(torch.int32 if packing == "3bit_32" else torch.uint8)
    scale, zero = whole(raw[f"{stem}.scale"]).float(), whole(raw[f"{stem}.zero"]).float()
    values = packed
    if packing:
        bits, fields = _PACKINGS[packing]
        words = packed.to(torch.int64) & 0xFFFFFFFF
        top = bits * fields if packing != "3bit_32" else 30
        mask = (1 << bits) - 1
        values = torch.cat([(words >> (top - bits * (field + 1))) & mask for field in range(fields)])
        values = values[: math.prod(shape) // values.shape[1]]  # ten fields need not come out even
    return ((values.float() - zero) * scale).reshape(shape)


def _text(raw: Mapping[str, Stored], name: str) -> str:
    return "".join(chr(int(code)) for code in whole(raw[name]).tolist())


def _flag(raw: Mapping[str, Stored], name: str) -> bool:
    return name in raw and bool(whole(raw[name]))
