"""Where the weights of the base model come from: a folder of safetensors, or the parameters of a live model.

The base is only ever streamed: a `WeightSource` gives the rows of one tensor at a time. No model is built.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from samerge.errors import BaseModelError
from samerge.tensorfile import TensorFile

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class WeightSource(Protocol):
    """A base model's weights, read a few rows at a time."""

    @property
    def name(self) -> str:
        """What to call the base: the folder, hub id or `name_or_path` it came from."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The model's configuration as in its `config.json`."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor by its full name, e.g. `model.layers.0.mlp.up_proj.weight`."""

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype that a tensor is stored in."""

    def read(self, tensor: str, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor (of one matrix of a stack, with `expert`), as stored."""


class FolderSource:
    """A folder with `config.json` and safetensors weights, in one file or sharded with an index.

    Args:
        folder: the folder.
        name: what to call the base in messages and in the record; the folder by default.

    Raises:
        BaseModelError: no config, no safetensors weights, or a shard is missing or broken.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        self.name = name or str(folder)
        config = self.folder / "config.json"
        if not config.is_file():
            raise BaseModelError(
                f"reading the base model {self.name!r}: there is no config.json in {self.folder}; "
                f"give the folder that save_pretrained wrote, or a hub id"
            )
        self.config: Mapping[str, Any] = json.loads(config.read_text(encoding="utf-8"))
        self._file_of = self._open()
        self.shapes: Mapping[str, tuple[int, ...]] = {
            tensor: self._file_of[tensor].entries[tensor].shape for tensor in sorted(self._file_of)
        }

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype that a tensor is stored in."""
        return self._file_of[tensor].dtype(tensor)

    def read(self, tensor: str, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a tensor, as stored."""
        return self._file_of[tensor].read(tensor, start, stop, expert)

    def _open(self) -> dict[str, TensorFile]:
        index = self.folder / INDEX_NAME
        if index.is_file():
            weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted(set(weight_map.values()))
        elif (self.folder / SINGLE_NAME).is_file():
            files = [SINGLE_NAME]
        else:
            others = sorted(path.name for path in self.folder.glob("*.bin"))
            hint = (
                f"it has {others}; load it once with transformers and save_pretrained(...) to get safetensors"
                if others
                else f"expected {SINGLE_NAME} or {INDEX_NAME}"
            )
            raise BaseModelError(
                f"reading the base model {self.name!r}: no safetensors weights in {self.folder}; {hint}"
            )
        opened: dict[str, TensorFile] = {}
        for file in files:
            try:
                shard = TensorFile(self.folder / file)
            except FileNotFoundError as error:
                raise BaseModelError(
                    f"reading the base model {self.name!r}: the index names the shard {file}, which is not in "
                    f"{self.folder}; fetch the missing file"
                ) from error
            except ValueError as error:
                raise BaseModelError(f"reading the base model {self.name!r}: {error}") from error
            opened.update(dict.fromkeys(shard.entries, shard))
        return opened


class ModelSource:
    """The parameters of a live model; of a `PeftModel`, those of the base model below its adapters.

    Args:
        model: a transformers model, a `PeftModel`, or any `nn.Module`.

    Raises:
        BaseModelError: an adapter is merged into the weights at the moment, or the weights are on the meta device.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = getattr(model, "config", None)
        self.config: Mapping[str, Any] = config.to_dict() if hasattr(config, "to_dict") else {}
        self.name = str(getattr(config, "name_or_path", "") or "") or type(unwrap(model)).__name__
        self._parameters = dict(sorted(_base_parameters(model)))
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tuple(p.shape) for name, p in self._parameters.items()}

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next(iter(self._parameters.values())).device

    def dtype(self, tensor: str) -> torch.dtype:
        """The dtype of a parameter."""
        return self._parameters[tensor].dtype

    def read(self, tensor: str, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows `start:stop` of a parameter: a view, never to be written to."""
        parameter = self._parameters[tensor].detach()
        return (parameter if expert is None else parameter[expert])[start:stop]


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a `PeftModel`; any other model as it is."""
    get = getattr(model, "get_base_model", None)
    inner = get() if callable(get) else model
    if not isinstance(inner, nn.Module):
        raise BaseModelError(f"{type(model).__name__}.get_base_model() gave {type(inner).__name__}, not a module")
    return inner


def _base_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    inner = unwrap(model)
    merged = sorted(
        f"{name} ({', '.join(module.merged_adapters)})"
        for name, module in inner.named_modules()
        if getattr(module, "merged_adapters", None)
    )
    if merged:
        raise BaseModelError(
            f"reading the base weights of {type(inner).__name__}: adapters are merged into them at the moment, e.g. in "
            f"{merged[0]} and {len(merged) - 1} more modules; call model.unmerge_adapter() first"
        )
    for name, parameter in inner.named_parameters():
        plain = _plain_name(name)
        if plain is None:
            continue
        if parameter.is_meta:
            raise BaseModelError(
                f"reading the base weights of {type(inner).__name__}: {plain} is on the meta device and has no values; "
                f"give the checkpoint's folder or hub id as the base instead"
            )
        yield plain, parameter


def _plain_name(name: str) -> str | None:
    """The name of a base parameter as it was before PEFT wrapped the model; None for what PEFT added."""
    parts = name.split(".")
    if any(part.startswith("lora_") or part == "modules_to_save" for part in parts):
        return None
    return ".".join(part for part in parts if part not in ("base_layer", "original_module", "_orig_mod"))


def read_tile(
    source: WeightSource,
    tensor: str,
    expert: int | None,
    start: int,
    stop: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Rows `start:stop` of a weight seen as a matrix, on a device and in a dtype.

    Args:
        source: where the weights come from.
        tensor: full name; tensors of more than two dimensions (kernels) are flattened to (out, rest).
        expert: for a stack of matrices, which of them.
        start: first row.
        stop: one past the last row.
        device: where the tile shall lie.
        dtype: what it shall be computed in.

    Returns:
        (stop - start, columns).
    """
    _, columns = matrix_shape(source.shapes[tensor], expert)
    return source.read(tensor, start, stop, expert).to(device=device, dtype=dtype).reshape(-1, columns)


def matrix_shape(shape: tuple[int, ...], expert: int | None) -> tuple[int, int]:
    """(rows, columns) of a weight seen as a matrix: a stack without its first dimension, a kernel flattened."""
    shape = shape if expert is None else shape[1:]
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns
