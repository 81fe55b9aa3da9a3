"""The record of a merge, as plain JSON values: what `samerge.json` holds."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import torch

from samerge.adapters import Adapter
from samerge.linalg.factors import LoraFactors
from samerge.methods.method import Begun, Method
from samerge.methods.problem import Problem
from samerge.version import __version__


class Recorded(Protocol):
    """What the record takes of a plan."""

    @property
    def method(self) -> Method:
        """How it was merged."""

    def record(self) -> dict[str, Any]:
        """All options as plain JSON values."""


def record(
    problem: Problem,
    experts: Sequence[Adapter],
    options: Recorded,
    begun: Begun,
    factors: Mapping[str, LoraFactors],
    rank: int,
    dtype: torch.dtype,
    layers: Mapping[str, Any],
    diagnostics: Mapping[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """The record of a finished merge: inputs, options, versions, output, diagnostics, layers, timings, warnings."""
    return {
        "samerge": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "method": options.method.name,
        "base": {
            "name": problem.source.name if problem.source else None,
            "model_type": problem.source.config.get("model_type") if problem.source else None,
        },
        "inputs": [
            {
                "name": expert.name,
                "source": expert.source,
                "weight": weight,
                "rank": expert.rank,
                "modules": len(expert.modules),
                "dtype": str(expert.dtype).removeprefix("torch."),
                "base_model": expert.config.get("base_model_name_or_path"),
                "sha256": {"adapter_model.safetensors": expert.sha256} if expert.sha256 else None,
            }
            for expert, weight in zip(experts, problem.weights, strict=True)
        ],
        "options": options.record(),
        "versions": versions(),
        "output": {
            "rank": rank,
            "dtype": str(dtype).removeprefix("torch."),
            "modules": len(factors),
            "parameters": sum(f.A.numel() + f.B.numel() for f in factors.values()),
        },
        "diagnostics": dict(diagnostics),
        "layers": dict(layers),
        "kernel": begun.kernel,
        "log_connectivity": {problem.names[n]: value for n, value in begun.log_connectivity.items()},
        "timings": {stage: round(seconds, 4) for stage, seconds in problem.progress.seconds.items()},
        "warnings": warnings,
    }


def versions() -> dict[str, str | None]:
    """Versions of Python and of the libraries that a merge depends on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "peft", "transformers", "safetensors", "huggingface_hub", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
