"""bitsandbytes: 4-bit codes with a maximum for each block (nf4, fp4), and int8 with a maximum for each row.

4 bits: entry i, counted along the rows, is code[nibble_i] * absmax[i // blocksize], the high half of a byte first. With
double quantisation absmax is itself 8-bit: nested_code[absmax] * nested_absmax[i // nested_blocksize] + offset.
8 bits: W_ij = CB_ij * SCB_i / 127.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from samerge.weights.quantised.packing import Dequantised, Found, Loader, nibbles, present
from samerge.weights.stored import Stored, whole

_STATE = ".quant_state.bitsandbytes__"


def find(raw: Mapping[str, Stored], settings: Mapping[str, Any]) -> Iterator[Found]:
    """The weights that bitsandbytes has quantised."""
    load = Loader(raw)
    for key in raw:
        if _STATE in key:
            yield _four_bits(key.split(_STATE)[0], key, raw, load)
        elif key.endswith(".SCB"):
            stem = key.removesuffix(".SCB")
            yield _eight_bits(stem, raw, load)


def _four_bits(weight: str, key: str, raw: Mapping[str, Stored], load: Loader) -> Found:
    state: dict[str, Any] = json.loads(bytes(whole(raw[key]).to(torch.uint8).tolist()))
    packed, shape, blocksize = raw[weight], tuple(state["shape"]), int(state["blocksize"])
    columns = shape[-1] if len(shape) == 2 else 1
    if len(shape) != 2:
        raise ValueError(f"{weight} is a quantised tensor of shape {shape}, expected a matrix")

    def absmax(first: int, last: int) -> Tensor:
        blocks = torch.arange(first // blocksize, (last - 1) // blocksize + 1)
        stored = load(f"{weight}.absmax").cpu()[blocks]
        if "nested_absmax" in state or f"{weight}.nested_absmax" in raw:
            outer = load(f"{weight}.nested_absmax").cpu()[blocks // int(state["nested_blocksize"])]
            stored = load(f"{weight}.nested_quant_map").cpu()[stored.long()] * outer + float(state["nested_offset"])
        return stored.float().repeat_interleave(blocksize)[first % blocksize :][: last - first]

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        first, last = start * columns, stop * columns
        entries = nibbles(_bytes(packed, first // 2, -(-last // 2)), high_first=True)
        entries = entries[first % 2 :][: last - first]
        code = load(f"{weight}.quant_map").cpu().float()
        return (code[entries.long()] * absmax(first, last)).reshape(stop - start, columns)

    parts = present(raw, weight, ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
    return Found(weight, Dequantised(shape, rows), (weight, key, *parts))


def for_cpu(packed: Tensor, absmax: Tensor, code: Tensor, shape: tuple[int, int]) -> Tensor:
    """A 4-bit weight in the order that the CPU kernel wants; bitsandbytes brings it there at the first forward pass.

    Args:
        packed: (rows, columns / 2) bytes: for each block of 32 rows and each two columns 32 bytes; the low halves hold
            the first 32 of these 64 entries (row by row, the two columns side by side), the high halves the rest.
        absmax: (columns / blocksize, rows).
        code: the 16 values.
        shape: rows and columns.

    Returns:
        (rows, columns) float32.
    """
    rows, columns = shape
    halves = packed.reshape(-1, 32)
    entries = torch.cat([halves & 15, halves >> 4], dim=1).reshape(rows // 32, columns // 2, 32, 2)
    values = code.float()[entries.transpose(1, 2).reshape(rows, columns).long()]
    return values * absmax.float().T.repeat_interleave(columns // absmax.shape[0], dim=1)


def _bytes(packed: Stored, first: int, last: int) -> Tensor:
    """Bytes `first:last` of a tensor that holds packed bytes in elements of any dtype, in one column or one row."""
    size = packed.dtype.itemsize
    if packed.shape[0] == 1 and len(packed.shape) == 2:
        flat = packed.read(0, 1).reshape(-1)[first // size : -(-last // size)]
    else:
        flat = packed.read(first // size, -(-last // size)).reshape(-1)
    return flat.cpu().contiguous().view(torch.uint8)[first % size :][: last - first]


def _eight_bits(stem: str, raw: Mapping[str, Stored], load: Loader) -> Found:
    weight, layout = raw[f"{stem}.weight"], f"{stem}.weight_format"
    if layout in raw and int(whole(raw[layout])) != 0:
        raise ValueError(f"{stem}.weight is in a layout of its GPU kernels (weight_format={int(whole(raw[layout]))})")

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        scale = load(f"{stem}.SCB")[start:stop].float() / 127
        values = weight.read(start, stop).float()
        return values * scale.to(values.device)[:, None]

    parts = present(raw, stem, ".weight", ".SCB", ".weight_format")
    return Found(f"{stem}.weight", Dequantised(weight.shape, rows), parts)
