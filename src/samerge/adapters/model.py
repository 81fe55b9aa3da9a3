"""An adapter: its adapted modules and what it carries beside them, described but not loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from samerge.adapters.layouts import Layout
from samerge.linalg.factors import LoraFactors
from samerge.weights.hub import WEIGHTS_NAME
from samerge.weights.published import Published

#: Before the name of an adapter as its source: it came from a live model, or was merged and not saved.
LIVE, MEMORY = "live:", "memory:"

#: Reads one tensor, in the dtype it is stored in.
Load = Callable[[], Tensor]


@dataclass(frozen=True)
class AdaptedModule:
    """One adapted linear map of one adapter: everything but the values, and how to load those.

    Args:
        layout: how PEFT stores it.
        rank: r.
        shape: (out, in) of the update as a matrix.
        dtype: of the stored factors.
        load: reads the factors, in their own dtype, with PEFT's scale.
        bias: reads the bias of `lora_B` with the scale multiplied in, in float32; None without one.
        magnitude: reads DoRA's magnitude vector; None for a plain LoRA.
        own: its name in the adapter's own file, where that was kept beside the base's.
    """

    layout: Layout
    rank: int
    shape: tuple[int, int]
    dtype: torch.dtype
    load: Callable[[], LoraFactors]
    bias: Load | None = None
    magnitude: Load | None = None
    own: str = ""


@dataclass(frozen=True)
class TokenRows:
    """Trained rows of an embedding (`trainable_token_indices`).

    Args:
        indices: which rows, in the order of the stored tensor.
        load: reads them, (rows, width); they replace the base's rows.
    """

    indices: tuple[int, ...]
    load: Load


@dataclass(frozen=True)
class Extras:
    """What an adapter carries beside its LoRA factors, by name in the base model.

    Args:
        biases: biases of the base that were trained (`bias="all"` or "lora_only").
        saved: tensors of fully trained modules (`modules_to_save`).
        tokens: trained rows of embeddings, by the embedding's name.
        copies: weights of the base saved along; they mean nothing new as long as they equal the base's.
    """

    biases: Mapping[str, Load] = field(default_factory=dict)
    saved: Mapping[str, Load] = field(default_factory=dict)
    tokens: Mapping[str, TokenRows] = field(default_factory=dict)
    copies: Mapping[str, Load] = field(default_factory=dict)

    def renamed(self, change: Callable[[str], str]) -> Extras:
        """The same under other names."""
        tables = {part.name: getattr(self, part.name) for part in fields(self)}
        return Extras(**{part: {change(name): one for name, one in own.items()} for part, own in tables.items()})


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, its tensors not loaded yet.

    Args:
        name: what the user calls it.
        source: the folder, hub id, or `PeftModel` it came from.
        config: `adapter_config.json` as a dict.
        modules: the adapted linear maps by name, without `base_model.model.`, sorted.
        sha256: of the weight file, for the record; None for a live adapter.
        extras: what it carries beside its factors.
        notes: what the user should know of how it was read.
        companions: files of weights that lie beside its own, which no merge can mean.
        format: the name of the format that it came in, and that a merge of its like is written in.
        metadata: what the header of its file says beside the tensors.
        weights_name: the name of the file of its weights.
        published: its commit on the Hub, and what its card says.
    """

    name: str
    source: str
    config: Mapping[str, Any]
    modules: Mapping[str, AdaptedModule] = field(repr=False)
    sha256: str | None = None
    extras: Extras = field(default_factory=Extras, repr=False)
    notes: tuple[str, ...] = ()
    companions: tuple[Path, ...] = ()
    format: str = "peft"
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    weights_name: str = WEIGHTS_NAME
    published: Published = field(default_factory=Published)

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max((module.rank for module in self.modules.values()), default=0)

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype of any factor."""
        return widest(module.dtype for module in self.modules.values())

    @property
    def dora(self) -> bool:
        """Whether any of its modules has a learned magnitude."""
        return any(module.magnitude is not None for module in self.modules.values())


def at_hand(factors: LoraFactors) -> Callable[[], LoraFactors]:
    """`AdaptedModule.load` of factors that are in memory already."""
    return partial(_itself, factors)


def _itself(factors: LoraFactors) -> LoraFactors:
    return factors


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The widest of several dtypes, by torch's promotion (fp16 and bf16 together give fp32); fp8 counts as fp32."""
    found: torch.dtype | None = None
    for dtype in dtypes:
        dtype = torch.float32 if dtype.is_floating_point and dtype.itemsize == 1 else dtype
        found = dtype if found is None else torch.promote_types(found, dtype)
    return found or torch.float32
