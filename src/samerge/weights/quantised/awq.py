"""AWQ, version "gemm": W_oi = (q_io - z_go) s_go, g = i // group_size.

`qweight` (in, out / 8) and `qzeros` (groups, out / 8) pack eight outputs into each 32-bit word, in the order
0 2 4 6 1 3 5 7 from the low end; `scales` is (groups, out).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from samerge.weights.quantised.packing import Dequantised, Found, Loader, bit_fields, present, stems
from samerge.weights.stored import Stored

_BACK = [0, 4, 1, 5, 2, 6, 3, 7]  # output k of a word lies in its field _BACK[k]


def find(raw: Mapping[str, Stored], settings: Mapping[str, Any]) -> Iterator[Found]:
    """The weights that AWQ has quantised."""
    bits, version = int(settings.get("bits", settings.get("w_bit", 4))), str(settings.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm":
        raise ValueError(f"AWQ with bits={bits} and version={version!r}; 4 bits in the version 'gemm' can be read")
    load = Loader(raw)
    for stem in stems(raw, ".qweight"):
        yield _weight(stem, raw, load)


def _weight(stem: str, raw: Mapping[str, Stored], load: Loader) -> Found:
    into, words = raw[f"{stem}.qweight"].shape
    groups, out = raw[f"{stem}.scales"].shape
    if words * 8 != out or into % groups:
        raise ValueError(f"{stem}: qweight {(into, words)} and scales {(groups, out)} do not belong together")

    def columns(name: str, start: int, stop: int) -> Tensor:
        first, last = start // 8, -(-stop // 8)
        fields = bit_fields(load(name)[:, first:last].reshape(-1, 1), 4, 8)[:, _BACK]  # (rows * words, 8)
        return fields.reshape(-1, (last - first) * 8)[:, start - 8 * first : stop - 8 * first].float()

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        group = torch.arange(into) // (into // groups)
        zeros = columns(f"{stem}.qzeros", start, stop)[group]
        scales = load(f"{stem}.scales")[:, start:stop].float()[group]
        return ((columns(f"{stem}.qweight", start, stop) - zeros) * scales).T

    parts = present(raw, stem, ".qweight", ".qzeros", ".scales")
    return Found(f"{stem}.weight", Dequantised((out, into), rows), parts)
