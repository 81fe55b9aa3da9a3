"""When two results of arithmetic are the same.

No two processors add up in one order, and two runs, threads or processes on one of them need not either (where a tensor
begins in memory is enough): sums of floats are compared within a tolerance. `torch.equal` and `==` are for copies,
for whole numbers, and for what is no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor


def same_values(found: Tensor, expected: Tensor, tolerance: float = 1e-5, where: str = "") -> None:
    """One shape and dtype, and no entry off by more than `tolerance` times the largest one, or a rounding or two."""
    size = float(expected.abs().max()) if expected.numel() else 0.0
    tolerance = max(tolerance, 4 * torch.finfo(expected.dtype).eps)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * size, msg=lambda text: f"{where}: {text}")


def same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """The same names in the same order, and the same values."""
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        same_values(found[name], tensor, tolerance, name)


def same_merge(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Two merged adapters: the same layers, ranks and updates. A and B apart depend on a basis that may be free."""
    assert found.settings == expected.settings
    assert list(found.factors) == list(expected.factors)
    for module, factors in expected.factors.items():
        assert found.factors[module].rank == factors.rank, module
        same_values(found.delta(module), expected.delta(module), tolerance, module)


def same_record(found: Any, expected: Any, where: str = "") -> None:
    """JSON values: the floats to rounding, all else as it is, keys in order."""
    if isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key, value in expected.items():
            same_record(found[key], value, f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for place, value in enumerate(expected):
            same_record(found[place], value, f"{where}[{place}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), where
    else:
        assert found == expected, where


def same_files(found: Path, expected: Path, tolerance: float = 1e-5) -> None:
    """Two adapters on disk: one configuration and one table of tensors, byte for byte, and the same updates."""
    assert (found / "adapter_config.json").read_bytes() == (expected / "adapter_config.json").read_bytes()
    assert header(found / "adapter_model.safetensors") == header(expected / "adapter_model.safetensors")
    same_updates(*(load_file(folder / "adapter_model.safetensors") for folder in (found, expected)), tolerance)


def same_updates(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5) -> None:
    """The tensors of two adapters: the same names in the same order, the same B A, and the same of all else."""
    assert list(found) == list(expected)
    for name in expected:
        if ".lora_A." in name:
            other = name.replace(".lora_A.", ".lora_B.")
            same_values(found[other] @ found[name], expected[other] @ expected[name], tolerance, name)
        elif ".lora_B." not in name:
            same_values(found[name], expected[name], tolerance, name)


def header(file: Path) -> bytes:
    """What a safetensors file says before its numbers: names, dtypes, shapes and places, in order."""
    data = file.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")]
