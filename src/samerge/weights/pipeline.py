"""A pipeline of diffusers that is loaded: several live models as one base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from samerge.weights.live_model import ModelSource
from samerge.weights.stored import StoredSource


class Pipeline(Protocol):
    """A pipeline of diffusers: several models."""

    @property
    def components(self) -> Mapping[str, Any]:
        """Its models and what belongs to them, by name."""


def models_of(given: object) -> dict[str, nn.Module]:
    """The models of a pipeline by name; none of what is no pipeline.

    Example:
        >>> models_of(nn.Linear(2, 2))
        {}
    """
    parts = None if isinstance(given, nn.Module) else getattr(given, "components", None)
    if not isinstance(parts, Mapping):
        return {}
    return {name: one for name, one in sorted(parts.items()) if isinstance(one, nn.Module)}


class PipelineSource(StoredSource):
    """The weights of all models of a pipeline, each with the model's name in front, as in `unet.down_blocks...`.

    Args:
        pipeline: it.

    Raises:
        BaseModelError: as of `ModelSource`.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        kind = type(pipeline).__name__
        sources = {part: ModelSource(model) for part, model in models_of(pipeline).items()}
        self._devices = [source.device for source in sources.values()]
        super().__init__(
            str(getattr(pipeline, "name_or_path", "") or "") or kind,
            {"_class_name": kind},
            {f"{part}.{name}": one.stored(name) for part, one in sources.items() for name in one.shapes},
        )

    @property
    def device(self) -> torch.device:
        """Where its first model is."""
        return self._devices[0] if self._devices else torch.device("cpu")
