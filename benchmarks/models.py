"""What the speed benchmarks merge: real models and their trained adapters, or real shapes with random weights."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from math import prod
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """A base model and adapters on disk.

    Args:
        name: of the model or shape.
        base: its folder.
        adapters: their folders.
    """

    name: str
    base: Path
    adapters: tuple[Path, ...]

    @property
    def rank(self) -> int:
        """The largest rank of any adapter."""
        return max(json.loads((a / "adapter_config.json").read_text())["r"] for a in self.adapters)

    def shapes(self) -> list[tuple[int, int]]:
        """(out, in) of every layer that an adapter has."""
        from samerge.adapters import read_adapter

        return [module.shape for module in read_adapter(self.adapters[0], "0").modules.values()]

    def graph_size(self) -> tuple[int, int]:
        """Entries, and bytes on disk, of the base's matrices in the flow graph."""
        from samerge.graph import build_graph
        from samerge.weights import FolderSource

        source = FolderSource(self.base)
        tensors = build_graph(source.config, source.shapes).tensors
        entries = sum(prod(source.shapes[name]) for name in tensors)
        total = sum(prod(shape) for shape in source.shapes.values())
        stored = sum(file.stat().st_size for file in self.base.glob("*.safetensors"))
        return entries, round(stored * entries / total)  # one dtype throughout, in all of these


def minilm(folder: Path, count: int) -> Case:
    """The real model of the demo, and its four trained adapters."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from minilm import ADAPTERS, TASKS, unpack_base

    base = folder / "base-minilm"
    if not base.exists():
        unpack_base(base)
    return Case("minilm", base, tuple(ADAPTERS / task for task in list(TASKS)[:count]))


def prepare(folder: Path, model: str, layers: int | None, count: int) -> Case:
    """A case on disk; what is there already stays.

    Args:
        folder: where to.
        model: a suite's name for its real model and adapters, or a shape's name.
        layers: another depth than the shape's own.
        count: adapters; no more than a real model has.
    """
    from shapes import SHAPES, write_adapter, write_base

    if model in SHAPES:
        shape = SHAPES[model]
        if layers:
            shape = dataclasses.replace(shape, name=f"{shape.name}-{layers}", layers=layers)
        base = write_base(shape, folder)
        return Case(shape.name, base, tuple(write_adapter(shape, folder, i, base) for i in range(count)))
    if model == "minilm":
        return minilm(folder, count)
    from suites import suite
    from suites.base import default_cache

    real = suite(model, default_cache())
    adapters = list(real.adapters().values())
    if count > len(adapters):
        raise SystemExit(f"{model} has {len(adapters)} trained adapters, not {count}")
    return Case(model, Path(real.base()), tuple(Path(a) for a in adapters[:count]))
