"""A base model that is loaded: its parameters, wherever they lie, in whatever format they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samerge.errors import BaseModelError, HubError
from samerge.options.module_names import joined
from samerge.weights.folder import FolderSource
from samerge.weights.inside_peft import BaseModule, base_modules, unwrap
from samerge.weights.offloaded import offloaded
from samerge.weights.quantised import dequantised
from samerge.weights.quantised.live_module import packed_tensors, repacked
from samerge.weights.stored import Held, InMemory, Stored, StoredSource
from samerge.weights.tensorfile import TensorFile
from samerge.weights.unmerged import below_merged


class ModelSource(StoredSource):
    """The parameters of a live model; of a `PeftModel`, those of the base model below its adapters.

    Weights may lie on several devices, or be offloaded by accelerate to the CPU or to disk; those on the meta device
    are read from the checkpoint that the model's `name_or_path` names. Adapters that are merged into the weights are
    subtracted as they are read. Quantised weights come dequantised.

    Args:
        model: a transformers model, a `PeftModel`, or any `nn.Module`.

    Raises:
        BaseModelError: merged adapters cannot be subtracted, a weight has no values anywhere, or its quantised format
            cannot be read.
    """

    def __init__(self, model: nn.Module) -> None:
        settings: Any = getattr(model, "config", None)
        config: Mapping[str, Any] = settings.to_dict() if hasattr(settings, "to_dict") else {}
        path = str(getattr(settings, "name_or_path", "") or "")
        inner: Any = unwrap(model)
        kind = type(inner).__name__
        if isinstance(settings, Mapping) and hasattr(inner, "to_json_string"):  # a model of diffusers
            config, path = json.loads(inner.to_json_string()), str(settings.get("_name_or_path") or "")
        reader = _Reader(kind, _Checkpoint(path, kind))
        for module in base_modules(model):
            reader.add(module)
        self._devices = reader.devices
        name = path or kind
        super().__init__(name, config, dequantised(reader.weights, config, name, live=True))

    @property
    def device(self) -> torch.device:
        """Where the first parameter that is not offloaded lies; the CPU when all are."""
        return self._devices[0] if self._devices else torch.device("cpu")


class _Reader:
    """Collects the weights of a model, module by module."""

    def __init__(self, kind: str, checkpoint: _Checkpoint) -> None:
        self.kind = kind
        self.checkpoint = checkpoint
        self.weights: dict[str, Stored] = {}
        self.devices: list[torch.device] = []
        self._files: dict[str, TensorFile] = {}
        self._seen: set[int] = set()
        self._held = Held(2)

    def add(self, base: BaseModule) -> None:
        """The parameters of one module, and the buffers of a quantised one."""
        if repacked(base.module):
            self._add_from_checkpoint(base)
            return
        for part, tensor in packed_tensors(base.module, self._held).items():
            if id(tensor) in self._seen:
                continue  # tied to a weight that came before
            self._seen.add(id(tensor))
            name = joined(base.name, part)
            stored = self._values(base, part, name, tensor)
            numbers = isinstance(tensor, Tensor) and tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1
            self.weights[name] = below_merged(base, part, stored, self.kind, quantised=not numbers)

    def _values(self, base: BaseModule, part: str, name: str, tensor: Tensor | Stored) -> Stored:
        if not isinstance(tensor, Tensor):
            return tensor
        if not tensor.is_meta:
            self.devices.append(tensor.device)
            return InMemory(tensor)
        found = offloaded(base, part, tensor, self._files)
        if found is not None:
            return found
        return self.checkpoint.get(
            name, tuple(tensor.shape), f"{name} is on the meta device and has no values", tensor.dtype
        )

    def _add_from_checkpoint(self, base: BaseModule) -> None:
        """A weight whose format only the library's kernels read: from the checkpoint instead."""
        module: Any = base.module
        what = f"{base.name} is a {type(module).__name__}, which holds its weight in a format for its kernels alone"
        name = f"{base.name}.weight"
        if any(getattr(tuner, "merged_adapters", None) for tuner in base.tuners):
            raise BaseModelError(f"reading the base weights of {self.kind}: an adapter is merged into {name}, {what}")
        self.weights[name] = self.checkpoint.get(name, None, what)
        if isinstance(getattr(module, "bias", None), Tensor):
            self.weights[f"{base.name}.bias"] = InMemory(module.bias)


@dataclass(frozen=True)
class _Absent:
    """A weight that has a shape and no values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    error: BaseModelError

    def read(self, start: int, stop: int, expert: int | None = None) -> Tensor:
        """There is nothing to read.

        Raises:
            BaseModelError: always.
        """
        raise self.error


class _Checkpoint:
    """The checkpoint that a model was made from, opened when it is first needed."""

    def __init__(self, path: str, kind: str) -> None:
        self.path, self.kind = path, kind
        self._source: FolderSource | None = None

    def get(self, name: str, shape: tuple[int, ...] | None, why: str, dtype: torch.dtype = torch.float32) -> Stored:
        """The weight of a name and shape (any shape for None).

        One that the checkpoint does not have, such as a head that was added to it, is an error when it is read.

        Raises:
            BaseModelError: there is no checkpoint, or no weight of that name when the shape is not known.
        """
        doing = f"reading the base weights of {self.kind}: {why}"
        hint = "give the checkpoint's folder or hub id as the base instead"
        if self._source is None:
            self._source = self._open(doing, hint)
        found = [key for key in _alike(name, self._source.shapes) if shape in (None, self._source.shapes[key])]
        if len(found) != 1:
            error = BaseModelError(
                f"{doing}, and its checkpoint {self.path!r} has {'several weights' if found else 'no weight'} of that "
                f"name{f' and shape {shape}' if shape else ''} (it has e.g. {list(self._source.shapes)[:3]}); {hint}"
            )
            if shape is None:
                raise error
            return _Absent(shape, dtype, error)
        return self._source.stored(found[0])

    def _open(self, doing: str, hint: str) -> FolderSource:
        from samerge.weights.hub import resolve_base

        if not self.path:
            raise BaseModelError(f"{doing}, and the model does not name its checkpoint (name_or_path); {hint}")
        try:
            folder = Path(self.path) if Path(self.path).is_dir() else resolve_base(self.path, local_files_only=True)
            return FolderSource(folder, name=self.path)
        except (BaseModelError, HubError) as error:
            raise BaseModelError(
                f"{doing}, and its checkpoint {self.path!r} cannot be read: {error}; {hint}"
            ) from error


def _alike(name: str, names: Mapping[str, Any]) -> list[str]:
    """The names that are this one, or differ from it by a prefix alone."""
    if name in names:
        return [name]
    longer = [key for key in names if key.endswith(f".{name}")]
    parts = name.split(".")
    shorter = (".".join(parts[cut:]) for cut in range(1, len(parts) - 1))
    return longer or [key for key in shorter if key in names][:1]
