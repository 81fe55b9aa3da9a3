"""The golden merges: three adapters of two families, a full merge, an extraction, a compression, all options named.

`golden.safetensors` holds the dense updates that they gave when they were recorded. To record them anew, after a change
that means to change one: `python -m golden.calls NAME...` in `tests`, and say why in the commit.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import samerge

FOLDER = Path(__file__).parent
NAMES = ("math", "code", "talk")
WEIGHTS = {"math": 1.0, "code": 0.5, "talk": -0.3}

#: family -> name of the merge -> its options.
MERGES: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "linear": {"method": "linear", "scaling": 0.7},
        "svd": {"method": "svd", "svd_rank": 8},
        "paper": {"method": "paper", "density": 0.3},
        "paper-svd": {
            "method": "paper",
            "density": 0.5,
            "iterations": 4,
            "scaling": 1.0,
            "basis": "svd",
            "residual": True,
        },
        "even": {"method": "even", "rank": 8},
        "tsv": {"method": "tsv", "density": 0.5},
        "ties": {"method": "ties", "density": 0.3, "svd_rank": 8},
        "iso-c": {"method": "iso-c"},
        "wudi": {"method": "wudi"},
        "elementwise": {"method": "elementwise", "density": 0.2, "iterations": 3, "svd_rank": 8, "scaling": 1.0},
    },
    "bert": {
        "linear-balanced": {"method": "linear", "balance": "norm", "scaling": "auto"},
        "knots-ties": {"method": "knots-ties", "density": 0.3},
        "core-ties": {"method": "core-ties", "density": 0.3},
        "ctm": {"method": "ctm", "svd_rank": 8},
        "dare-ties": {"method": "dare-ties", "density": 0.5, "svd_rank": 8},
        "magnitude-prune": {"method": "magnitude-prune", "density": 0.3, "svd_rank": 8},
        "della": {"method": "della", "svd_rank": 8},
        "breadcrumbs": {"method": "breadcrumbs", "svd_rank": 8},
        "pcb": {"method": "pcb", "svd_rank": 8},
        "star": {"method": "star"},
        "lora-lego": {"method": "lora-lego", "rank": 8},
        "robustmerge": {"method": "robustmerge"},
    },
}


def deltas(merged: samerge.MergedAdapter) -> dict[str, torch.Tensor]:
    """The dense updates of a merged adapter."""
    return {module: merged.delta(module).contiguous() for module in merged.factors}


def adapters(family: str) -> dict[str, str]:
    """The three adapters of a family."""
    return {name: str(FOLDER / family / name) for name in NAMES}


def merge(family: str, name: str) -> dict[str, torch.Tensor]:
    """One of the golden merges, as dense updates by module."""
    options = MERGES[family][name]
    base = str(FOLDER / family / "base")
    return deltas(samerge.merge(base, adapters(family), weights=WEIGHTS, progress=False, **options))


def full() -> dict[str, torch.Tensor]:
    """A merge of two checkpoints, as the differences to their base."""
    base = FOLDER / "llama" / "base"
    weights = load_file(base / "model.safetensors")
    merged = samerge.merge_full(
        str(base),
        {"one": str(FOLDER / "llama" / "one"), "two": str(FOLDER / "llama" / "two")},
        weights={"one": 1.0, "two": 0.5},
        density=0.3,
        iterations=3,
        scaling=1.0,
        progress=False,
    )
    return {name: (merged.tensor(name) - weights[name]).contiguous() for name in sorted(weights)}


def extract() -> dict[str, torch.Tensor]:
    """A checkpoint as an adapter of rank 4."""
    folder = FOLDER / "llama"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what changed beside the linear weights
        return deltas(samerge.extract_adapter(str(folder / "base"), str(folder / "one"), rank=4, progress=False))


def compress() -> dict[str, torch.Tensor]:
    """An adapter of rank up to 20 as one of rank 4."""
    return deltas(samerge.compress_adapter(str(FOLDER / "llama" / "talk"), rank=4, progress=False))


#: Everything, by the name under which it is recorded.
ALL = {
    **{f"{f}/{n}": (lambda f=f, n=n: merge(f, n)) for f, of in MERGES.items() for n in of},
    "full": full,
    "extract": extract,
    "compress": compress,
}


def recorded(name: str) -> dict[str, torch.Tensor]:
    """What a golden merge gave when it was recorded."""
    start = f"{name}|"
    every = load_file(FOLDER / "golden.safetensors")
    return {key.removeprefix(start): tensor for key, tensor in every.items() if key.startswith(start)}


if __name__ == "__main__":
    kept = load_file(FOLDER / "golden.safetensors") if (FOLDER / "golden.safetensors").exists() else {}
    for chosen in sys.argv[1:] or ALL:
        kept = {key: tensor for key, tensor in kept.items() if not key.startswith(f"{chosen}|")}
        kept |= {f"{chosen}|{module}": tensor for module, tensor in ALL[chosen]().items()}
    save_file(kept, FOLDER / "golden.safetensors")
