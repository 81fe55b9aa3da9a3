"""GPTQ: W_oi = (q_io - z_go) s_go, with g the group of input i.

`qweight` (in * bits / 32, out) packs the inputs of each output into 32-bit words; `qzeros` (groups, out * bits / 32)
packs the outputs; `scales` is (groups, out); `g_idx` (in) tells the groups when they were formed by importance. The
first checkpoint format stores each zero point less one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from samerge.weights.quantised.packing import Dequantised, Found, Loader, bit_fields, present, stems
from samerge.weights.stored import Stored


def find(raw: Mapping[str, Stored], settings: Mapping[str, Any]) -> Iterator[Found]:
    """The weights that GPTQ has quantised."""
    bits = int(settings["bits"])
    version = str(settings.get("checkpoint_format") or "gptq")
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"GPTQ with bits={bits}; 2, 3, 4 and 8 can be read")
    if version not in ("gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format={version!r}, an order of its kernels; gptq and gptq_v2 can be read")
    load = Loader(raw)
    for stem in stems(raw, ".qweight"):
        yield _weight(stem, raw, load, bits, settings, 1 if version == "gptq" else 0)


def _weight(
    stem: str, raw: Mapping[str, Stored], load: Loader, bits: int, settings: Mapping[str, Any], offset: int
) -> Found:
    words, out = raw[f"{stem}.qweight"].shape
    into = words * 32 // bits
    groups = raw[f"{stem}.scales"].shape[0]
    size = int(settings.get("group_size", -1))
    size = into if size <= 0 else size

    def group() -> Tensor:
        if f"{stem}.g_idx" in raw:
            index = load(f"{stem}.g_idx").long()
            if groups == 1 or bool(index.any()):
                return index
        return torch.arange(into) // size

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        # One output at a time lies in a column: (out, words) rows of bits.
        values = bit_fields(load(f"{stem}.qweight")[:, start:stop].T, bits, into).float()  # (rows, in)
        zeros = bit_fields(load(f"{stem}.qzeros"), bits, out)[:, start:stop] + offset  # (groups, rows)
        if offset:
            zeros = zeros & ((1 << bits) - 1)
        scales = load(f"{stem}.scales")[:, start:stop].float()
        index = group().to(scales.device)
        return (values - zeros.float()[index].T) * scales[index].T

    parts = present(raw, stem, ".qweight", ".qzeros", ".scales", ".g_idx")
    return Found(f"{stem}.weight", Dequantised((out, into), rows), parts)
