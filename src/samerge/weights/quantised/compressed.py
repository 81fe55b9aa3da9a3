"""compressed-tensors: integers packed into words, plain int8 or 8-bit floats, and 4-bit floats, each with scales.

| tensors | format | weight |
|---|---|---|
| weight_packed int32, weight_shape | pack-quantized | (fields - 2^(bits-1) - zero) * scale |
| weight int8, weight_scale | int-quantized, naive-quantized | (weight - zero) * scale |
| weight float8, weight_scale | float-quantized, naive-quantized, mxfp8-quantized | weight * scale |
| weight_packed uint8, weight_global_scale | nvfp4-pack-quantized | fp4 * (scale / global scale) |
| weight_packed uint8, weight_scale uint8 | mxfp4-pack-quantized | fp4 * 2^(scale - 127) |

A scale is for a group of columns, a row, a block, or all. `weight_g_idx` tells each column's group when the groups were
formed by importance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from samerge.weights.quantised.packing import (
    Dequantised,
    Found,
    Loader,
    bit_fields,
    block_of,
    fp4,
    numbers,
    present,
    spread,
    stems,
)
from samerge.weights.stored import Stored, whole

_PARTS = ("", "_packed", "_scale", "_zero_point", "_shape", "_g_idx", "_global_scale")
_BESIDE = (".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point")


def find(raw: Mapping[str, Stored], settings: Mapping[str, Any]) -> Iterator[Found]:
    """The weights that compressed-tensors has compressed."""
    load = Loader(raw)
    if any(name.endswith((".bitmask", ".weight_bitmask", ".meta")) for name in raw):
        raise ValueError(f"format={settings.get('format')!r}, a sparse one, which cannot be read")
    for stem in stems(raw, ".weight_scale"):
        weight = f"{stem}.weight"
        if f"{weight}_packed" in raw:
            packed = raw[f"{weight}_packed"]
            found: Stored = _words(weight, raw, load) if packed.dtype == torch.int32 else _fp4(weight, raw, load)
        else:
            found = _plain(weight, raw, load, settings)
        yield Found(weight, found, (*present(raw, weight, *_PARTS), *present(raw, stem, *_BESIDE)))


def _words(weight: str, raw: Mapping[str, Stored], load: Loader) -> Dequantised:
    packed = raw[f"{weight}_packed"]
    shape: tuple[int, ...] = tuple(whole(raw[f"{weight}_shape"]).tolist())
    if len(shape) != 2:
        raise ValueError(f"{weight} is a compressed tensor of shape {shape}, expected a matrix")
    out, into = shape
    fitting = [bits for bits in range(1, 9) if -(-into * bits // 32) == packed.shape[1]]
    bits = next((b for b in (4, 8, 2, 3, 6, 5, 7, 1) if b in fitting), 0)
    if not bits:
        raise ValueError(f"{weight}_packed {packed.shape} does not fit a weight of shape {shape} at 1 to 8 bits")
    middle = 1 << (bits - 1)

    def zeros(columns: int) -> Tensor:
        stored = load(f"{weight}_zero_point")
        if stored.dtype != torch.int32:
            return stored.float()
        return (bit_fields(stored.T, bits, out).T - middle).float().reshape(out, columns)

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        values = (bit_fields(packed.read(start, stop), bits, into) - middle).float()
        return _scaled(weight, values, start, stop, raw, load, zeros)

    return Dequantised((out, into), rows)


def _plain(weight: str, raw: Mapping[str, Stored], load: Loader, settings: Mapping[str, Any]) -> Stored:
    stored = raw[weight]
    if stored.dtype.is_floating_point and stored.dtype.itemsize > 1:
        return stored  # decompressed already, as a live model's weights are after its first forward pass
    if len(stored.shape) != 2:
        raise ValueError(f"{weight} is a compressed tensor of shape {stored.shape}, expected a matrix")
    structures = [
        (group.get("weights") or {}).get("block_structure")
        for group in (settings.get("config_groups") or {}).values()
        if isinstance(group, Mapping)
    ]
    wanted = next((structure for structure in structures if structure), None)

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        values = stored.read(start, stop).float()
        return _scaled(weight, values, start, stop, raw, load, lambda _: load(f"{weight}_zero_point").float(), wanted)

    return Dequantised(stored.shape, rows)


def _fp4(weight: str, raw: Mapping[str, Stored], load: Loader) -> Dequantised:
    packed = raw[f"{weight}_packed"]
    if len(packed.shape) != 2 or packed.dtype.itemsize != 1:
        raise ValueError(f"{weight}_packed is {packed.dtype} of shape {packed.shape}, expected bytes in a matrix")
    shape = (packed.shape[0], packed.shape[1] * 2)
    grid = raw[f"{weight}_scale"].shape
    if shape[1] // grid[1] not in (16, 32):
        raise ValueError(f"{weight}_packed {packed.shape} with scales {grid} is not a 4-bit format that is known")

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        scales = numbers(load(f"{weight}_scale"))
        if f"{weight}_global_scale" in raw:
            scales = scales / load(f"{weight}_global_scale").float()
        values = fp4(packed.read(start, stop))
        return values * spread(scales.to(values.device), start, stop, shape[1], block_of(shape, grid))

    return Dequantised(shape, rows)


def _scaled(
    weight: str,
    values: Tensor,
    start: int,
    stop: int,
    raw: Mapping[str, Stored],
    load: Loader,
    zeros: Any,
    wanted: object = None,
) -> Tensor:
    """(values - zero) * scale, the zero points and scales spread over their blocks or by `weight_g_idx`."""
    scales = numbers(load(f"{weight}_scale"))
    scales = scales if scales.ndim == 2 else scales.reshape(-1, 1)
    shape = (_rows_of(weight, raw), values.shape[1])
    block = block_of(shape, tuple(scales.shape), wanted)
    groups = load(f"{weight}_g_idx").long() if f"{weight}_g_idx" in raw else None

    def over(table: Tensor) -> Tensor:
        table = table.reshape(scales.shape).to(values.device)
        if groups is not None and bool((groups >= 0).all()) and table.shape[1] > 1:
            return table[start:stop][:, groups.to(values.device)]
        return spread(table, start, stop, shape[1], block)

    if f"{weight}_zero_point" in raw:
        values = values - over(zeros(scales.shape[1]))
    return values * over(scales)


def _rows_of(weight: str, raw: Mapping[str, Stored]) -> int:
    return raw[weight if weight in raw else f"{weight}_packed"].shape[0]
