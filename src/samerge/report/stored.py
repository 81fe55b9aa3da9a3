"""What a record stores of each adapter, layer, source and output; what follows from it is in `report.record`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from samerge.weights.published import Card

#: More components than any layer has: what is above it in a file is no number of components.
MOST = 2**31

#: What a cosine or a share may exceed its bound by: rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class AdapterInLayer:
    """One adapter in one layer.

    Args:
        norm: Frobenius norm of its update as trained.
        energy_kept: share of its squared norm that the method kept, before anything was combined or truncated.
        components: how many rank-1 components it had; None where the method knows none.
        kept: which of them are in the merge; None where the method does not choose components.
        elements: how many elements were kept, and of how many; None where the method keeps no elements.
        balance: what its update was multiplied with before the merge.
        cosine: between its update and the merged one, as written; None for a zero update, or where nobody looked.
        interference: ||(M - tau) V V^T|| / ||tau||, the error on the inputs that it reacts to; None likewise.
        sign_conflict: share of elements at which the merged update has the opposite sign; None likewise.
        dora_lost: share of its energy that the conversion from DoRA lost.
        weight: its own here, in a merge with weights by module.
    """

    norm: float
    energy_kept: float = 1.0
    components: int | None = None
    kept: tuple[int, ...] | None = None
    elements: tuple[int, int] | None = None
    balance: float = 1.0
    cosine: float | None = None
    interference: float | None = None
    sign_conflict: float | None = None
    dora_lost: float | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        _within("norm", self.norm, 0)
        _within("energy_kept", self.energy_kept, 0)
        _within("components", self.components, 0, MOST)
        _within("cosine", self.cosine, -1, 1)
        _within("interference", self.interference, 0)
        if self.kept is not None and not all(0 <= one < (self.components or 0) for one in self.kept):
            raise ValueError(f"kept names a component beyond the {self.components} that there are")
        if self.elements is not None and not 0 <= self.elements[0] <= self.elements[1]:
            raise ValueError(f"elements is {list(self.elements)}, not how many of how many")

    @property
    def left(self) -> int:
        """How many of its components are in the merge: all, where the method did not choose."""
        return (self.components or 0) if self.kept is None else len(self.kept)


@dataclass(frozen=True)
class LayerRecord:
    """One layer.

    Args:
        adapters: those that have it, by name.
        norm: Frobenius norm of the merged update, as written.
        rank: of the merged update; None for a whole weight.
        scale: what the merged update was multiplied with in the end.
        lost: share of the merged update's squared norm that truncation lost.
        reach: norm of the best that an update of the output's rank can have of the adapters' directions here
            (`Whole.best_cosine`); None where it was not computed.
        effective_rank: (sum sigma^2)^2 / sum sigma^4 of the merged update.
        outside: whether there is a flow graph, and the layer takes no part in it.
        sign_conflict: share of opposite signs over all pairs of the adapters, on a sample of the elements.
        sign_conflict_after: the same among what pruning left of them.
        signs_left: of the pairs of signs that were compared before pruning, how many still are.
        sampled: how many elements were looked at for signs, and of how many.
    """

    adapters: Mapping[str, AdapterInLayer]
    norm: float
    rank: int | None = None
    scale: float = 1.0
    lost: float = 0.0
    reach: float | None = None
    effective_rank: float | None = None
    outside: bool = False
    sign_conflict: float | None = None
    sign_conflict_after: float | None = None
    signs_left: float | None = None
    sampled: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _within("norm", self.norm, 0)
        _within("lost", self.lost, 0, 1)
        _within("rank", self.rank, 0, MOST)


@dataclass(frozen=True)
class Input:
    """What went in.

    Args:
        name: as the user has it.
        source: where it was read.
        weight: its weight.
        rank: the largest of any layer; None for a checkpoint.
        modules: how many it has.
        dtype: the widest of its tensors.
        base_model: the base that it names.
        sha256: of its files, by name.
        revision: the commit that was read on the Hub; None for local files.
        card: what its card says of its licence and use.
        local: of `source` and `base_model`, what was a folder or a file here when this was told; None where an older
            version told it.
    """

    name: str
    source: str | None = None
    weight: float = 1.0
    rank: int | None = None
    modules: int | None = None
    dtype: str | None = None
    base_model: str | None = None
    sha256: Mapping[str, str] | None = None
    revision: str | None = None
    card: Card | None = None
    local: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Base:
    """The base model, as far as it was read.

    Args:
        name: as the user has it.
        model_type: its family; of a model of diffusers its class.
        model_class: the class that it was saved from, in transformers or diffusers.
        live: whether it was a model in memory; older versions do not say it.
        local: the name, where it was a folder here when this was told; None where an older version told it.
    """

    name: str | None = None
    model_type: str | None = None
    model_class: str | None = None
    live: bool = False
    local: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Output:
    """What came out.

    Args:
        kind: "adapter" or "model".
        dtype: of its tensors.
        modules: how many layers it has.
        parameters: how many numbers.
        rank: of an adapter.
        tensors: how many a model has.
        task_type: PEFT's, of an adapter.
        format: of an adapter's file, "kohya" and so on; known when it is written, and None for PEFT's.
    """

    kind: str
    dtype: str
    modules: int
    parameters: int
    rank: int | None = None
    tensors: int | None = None
    task_type: str | None = None
    format: str | None = None

    @property
    def size(self) -> str:
        """The rank, or the number of tensors, in words."""
        return f"{self.tensors or 0:,} tensors" if self.kind == "model" else f"rank {self.rank}"


def _within(name: str, value: float | None, low: float, high: float = math.inf) -> None:
    if value is not None and not low - _ROUNDING <= value <= high + _ROUNDING:
        bounds = f"below {low:g}" if value < low else f"above {high:g}"
        raise ValueError(f"{name} is {value!r}, {bounds}")
