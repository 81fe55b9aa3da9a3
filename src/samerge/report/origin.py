"""Where and when a record was made: the version of samerge and of what it depends on, the base, the time it took."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypedDict

import torch

from samerge.adapters import Adapter
from samerge.linalg.factors import LoraFactors
from samerge.parallel.progress import Progress
from samerge.report.stored import Base, Input, Output
from samerge.version import __version__
from samerge.weights import FolderSource, WeightSource
from samerge.weights.stored import name_of


class Origin(TypedDict):
    """Fields of every record."""

    samerge: str
    created: str
    versions: dict[str, str | None]


def origin() -> Origin:
    """The version, the time, and the versions of what it depends on."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"samerge": __version__, "created": created, "versions": versions()}


def versions() -> dict[str, str | None]:
    """Versions of Python and of the libraries that a merge depends on."""
    packages = ("torch", "peft", "transformers", "safetensors", "huggingface_hub", "numpy")
    return {"python": platform.python_version(), **{package: _installed(package) for package in packages}}


@cache  # looking one up takes milliseconds
def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def base_of(source: WeightSource | None) -> Base:
    """The base as a record names it."""
    if source is None:
        return Base()
    config = source.config
    listed = config.get("architectures")
    own = config.get("_class_name") or (listed[0] if isinstance(listed, (list, tuple)) and listed else None)
    known = own if isinstance(own, str) and own.isidentifier() else None
    read = source
    while hasattr(read, "source"):  # under other names
        read = read.source
    live = not isinstance(read, FolderSource)
    return Base(source.name, config.get("model_type") or config.get("_class_name"), known, live, here(source.name))


def input_of(adapter: Adapter, weight: float) -> Input:
    """An adapter as a record names it."""
    base = adapter.config.get("base_model_name_or_path")
    return Input(
        adapter.name,
        adapter.source,
        weight,
        adapter.rank,
        len(adapter.modules),
        name_of(adapter.dtype),
        base,
        {adapter.weights_name: adapter.sha256} if adapter.sha256 else None,
        adapter.published.revision,
        adapter.published.card,
        here(adapter.source, base),
    )


def adapter_output(
    factors: Mapping[str, LoraFactors], dtype: torch.dtype, rank: int, settings: Mapping[str, Any]
) -> Output:
    """An adapter that was made, as a record names it.

    Args:
        factors: by module.
        dtype: of them.
        rank: of the adapter.
        settings: what PEFT's `adapter_config.json` says.
    """
    return Output(
        kind="adapter",
        dtype=name_of(dtype),
        modules=len(factors),
        parameters=sum(one.A.numel() + one.B.numel() for one in factors.values()),
        rank=rank,
        task_type=settings.get("task_type"),
    )


def here(*names: str | None) -> tuple[str, ...]:
    """Those names that are folders or files of this machine, from the current folder."""
    return tuple(dict.fromkeys(name for name in names if name and os.path.exists(os.path.expanduser(name))))


def seconds_of(progress: Progress) -> dict[str, float]:
    """Seconds by stage."""
    return {stage: round(seconds, 4) for stage, seconds in progress.seconds.items()}
