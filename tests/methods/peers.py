"""What other implementations made of three small updates: written once by benchmarks/peers.py, read here."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from methods.dense import held
from samerge.methods.rows import Layer

_FOLDER = Path(__file__).parents[1] / "data"
RECORD = json.loads((_FOLDER / "peers.json").read_text())
FOUND = load_file(_FOLDER / "peers.safetensors")
#: (24, 20) each, of rank 6.
UPDATES = list(FOUND["updates"])
#: One uniform number for each element, which every implementation took its masks from.
CHANCES = FOUND["chances"]


def layer(weights: list[float], updates: list[Tensor] = UPDATES) -> Layer:
    parts = {n: held(w * tau) for n, (w, tau) in enumerate(zip(weights, updates, strict=True))}
    return Layer("w", tuple(updates[0].shape), {n: str(n) for n in parts}, parts)
