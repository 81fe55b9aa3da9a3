"""What the caller may give for a base and for experts, and what it is turned into."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from samerge.errors import OptionError
from samerge.merging.inputs import named
from samerge.options.module_names import joined
from samerge.weights import FolderSource, ModelSource, WeightSource
from samerge.weights.folder import CONFIG_NAME
from samerge.weights.hub import PIPELINE_NAME, resolve_base
from samerge.weights.inside_peft import base_modules
from samerge.weights.pipeline import models_of
from samerge.weights.published import Published, published
from samerge.weights.quantised import quantization
from samerge.weights.stored import InMemory, Stored, StoredSource

ModelLike = str | Path | nn.Module


@dataclass(frozen=True)
class Opened:
    """A model that can be read.

    Args:
        name: what to call it.
        source: its weights.
        folder: the folder that it lies in; None for a live model.
        model: the live model; None for a folder.
        published: its commit on the Hub, and what its card says.
    """

    name: str
    source: WeightSource
    folder: Path | None = None
    model: nn.Module | None = field(default=None, repr=False)
    published: Published = field(default_factory=Published)

    @property
    def device(self) -> torch.device:
        """Where its weights lie: a live model's own device, the CPU for files."""
        return torch.device("cpu") if self.model is None else ModelSource(self.model).device

    @property
    def dtype(self) -> torch.dtype:
        """The widest floating dtype of its weights."""
        kinds = {self.source.dtype(tensor) for tensor in self.source.shapes}
        floats = sorted((kind.itemsize, str(kind), kind) for kind in kinds if kind.is_floating_point)
        return floats[-1][2] if floats else torch.float32

    def sha256(self) -> dict[str, str] | None:
        """The digest of every file of weights; None for a live model."""
        return self.source.sha256() if isinstance(self.source, FolderSource) else None


def open_model(name: str, model: ModelLike, companions: bool = False) -> Opened:
    """A base or an expert.

    Args:
        name: what to call it.
        model: a folder, a hub id or a live model.
        companions: fetch the tokenizer and the like, too, where it comes from the Hub.

    Raises:
        BaseModelError: it cannot be read.
        HubError: it could not be downloaded.
    """
    if isinstance(model, nn.Module):
        return Opened(name, _with_buffers(ModelSource(model), model), model=model)
    if models_of(model):
        raise OptionError(
            f"the {name} is a {type(model).__name__}, which is several models, and a checkpoint is one; give one of "
            f"them, such as pipe.{next(iter(models_of(model)))}"
        )
    folder = resolve_base(str(model), companions=companions)
    if os.path.lexists(folder / PIPELINE_NAME) and not os.path.lexists(folder / CONFIG_NAME):
        raise OptionError(
            f"{str(model)!r} is a pipeline of several models, and a checkpoint is one; give the folder of one of them, "
            f"such as {folder / 'unet'}"
        )
    source = FolderSource(folder, name=str(model))
    return Opened(name, source, folder, published=published(folder, str(model), f"the model {name!r}"))


def open_experts(experts: Mapping[str, ModelLike] | Sequence[ModelLike]) -> list[Opened]:
    """The experts, by name or named after their last part.

    Raises:
        OptionError: none, a name twice, or a live `PeftModel`, whose adapters are not part of its weights.
        BaseModelError: one cannot be read.
        HubError: one could not be downloaded.
    """
    opened = []
    for name, model in named(experts, "experts"):
        if isinstance(model, nn.Module) and hasattr(model, "peft_config"):
            raise OptionError(
                f"the expert {name!r} is a {type(model).__name__}, whose adapters lie beside its weights; give "
                f"model.merge_and_unload(), or merge the adapters themselves with samerge.merge"
            )
        opened.append(open_model(name, model))
    return opened


def _with_buffers(source: StoredSource, model: nn.Module) -> StoredSource:
    """The parameters of a live model, and the buffers that `save_pretrained` writes beside them."""
    if quantization(source.config):
        return source  # its buffers are part of packed weights
    weights: dict[str, Stored] = {tensor: source.stored(tensor) for tensor in source.shapes}
    for base in base_modules(model):
        passing: set[str] = getattr(base.module, "_non_persistent_buffers_set", set())
        for part, buffer in base.module.named_buffers(recurse=False):
            if part not in passing and not buffer.is_meta:
                weights.setdefault(joined(base.name, part), InMemory(buffer))
    return StoredSource(source.name, source.config, weights)
