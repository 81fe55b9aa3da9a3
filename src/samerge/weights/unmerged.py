"""Base weights below adapters that are merged into them at the moment: W - sum of the merged updates.

The update of a plain LoRA layer is subtracted through its factors, for the rows that are read. In float32 that gives
the base to rounding. In half precision the merge has rounded already: what comes out is what `unmerge_adapter()` would
leave, and a warning says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samerge.errors import BaseModelError
from samerge.weights.inside_peft import BaseModule
from samerge.weights.stored import Held, Stored, name_of

Rows = Callable[[int, int, "int | None"], Tensor]


@dataclass(frozen=True)
class Unmerged:
    """A weight of which updates are subtracted as it is read.

    Args:
        stored: the weight with the updates in it.
        updates: each gives the rows `start:stop` of one update (of one matrix of a stack).
    """

    stored: Stored
    updates: Sequence[Rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it is stored in."""
        return self.stored.dtype

    def read(self, start: int, stop: int, expert: int | None = None) -> Tensor:
        """Rows of the weight less the updates, computed in float32 at least, in the dtype it is stored in."""
        rows = self.stored.read(start, stop, expert)
        result = rows.to(torch.promote_types(rows.dtype, torch.float32))
        for update in self.updates:
            result = result - update(start, stop, expert).to(device=rows.device).reshape(rows.shape)
        return result.to(rows.dtype)


def below_merged(base: BaseModule, parameter: str, stored: Stored, model: str, quantised: bool = False) -> Stored:
    """A base parameter without the adapters that are merged into it; the parameter itself when none is.

    Args:
        base: the module that holds it, with PEFT's layers around it.
        parameter: its name within the module, e.g. `weight`.
        stored: the parameter as it is.
        model: the model's type, for messages.
        quantised: whether the parameter holds quantised values.

    Raises:
        BaseModelError: what was merged cannot be subtracted; says how to take it off.
    """
    updates: list[Rows] = []
    names: list[str] = []
    for tuner in base.tuners:
        for adapter in getattr(tuner, "merged_adapters", None) or ():
            why = _obstacle(tuner, adapter, quantised)
            if why is not None:
                way = "load the base again" if quantised else "call model.unmerge_adapter() first"
                raise BaseModelError(
                    f"reading the base weights of {model}: the adapter {adapter!r} is merged into {base.name} at the "
                    f"moment, and {why}; {way}"
                )
            update = _update(tuner, adapter, parameter, len(stored.shape))
            if update is not None:
                updates.append(update)
                names.append(adapter)
    if not updates:
        return stored
    if stored.dtype.itemsize < 4:
        warnings.warn(
            f"the adapters {sorted(set(names))} are merged into the base weights of this {model}, which are "
            f"{name_of(stored.dtype)}: merging rounded them. They are read less the adapters, as "
            f"unmerge_adapter() would leave them; for the exact base, load it without merging",
            stacklevel=2,
        )
    return Unmerged(stored, updates)


def _obstacle(tuner: nn.Module, adapter: str, quantised: bool) -> str | None:
    """Why an adapter's update cannot be subtracted from a weight."""
    from peft.tuners.lora import LoraLayer

    if not isinstance(tuner, LoraLayer):
        return f"it is no LoRA ({type(tuner).__module__}.{type(tuner).__name__}), whose update cannot be subtracted"
    variant: Any = getattr(tuner, "lora_variant", {}).get(adapter)
    if variant is not None or getattr(tuner, "use_dora", {}).get(adapter):
        kind = type(variant).__name__ if variant is not None else "DoRA"
        return f"it is a variant of LoRA ({kind}) whose update cannot be subtracted"
    if type(tuner).__name__ == "MultiheadAttention":
        return "PEFT merges nn.MultiheadAttention in a way of its own (its output projection twice)"
    if quantised:
        return "merging into quantised weights has changed them for good"
    return None


def _update(tuner: Any, adapter: str, parameter: str, dimensions: int) -> Rows | None:
    """The rows of an adapter's update of a parameter; None when it does not touch that parameter."""
    target = getattr(tuner, "parameter_name", None)  # a layer of `target_parameters` adapts one by its name
    if target is not None and target != parameter:
        return None
    if target is None and parameter == "bias":
        bias = getattr(tuner.lora_B[adapter], "bias", None) if adapter in tuner.lora_B else None
        if bias is None:
            return None
        scaled = bias.detach().float() * tuner.scaling[adapter]
        return lambda start, stop, expert: scaled[start:stop]
    if target is None and parameter != "weight":
        return None
    scale = float(tuner.scaling[adapter])
    if adapter in getattr(tuner, "lora_embedding_A", {}):
        A, B = tuner.lora_embedding_A[adapter].detach(), tuner.lora_embedding_B[adapter].detach()
        return _product(A.T, B.T, scale)  # (vocabulary, r) and (r, width)
    A, B = tuner.lora_A[adapter].weight.detach(), tuner.lora_B[adapter].weight.detach()
    if target is None and A.ndim == 2 and dimensions == 2:
        transposed = bool(getattr(tuner, "fan_in_fan_out", False))
        return _product(A.T, B.T, scale) if transposed else _product(B, A, scale)
    held = Held(1)  # kernels and stacks: PEFT's own dense update of this one layer

    def rows(start: int, stop: int, expert: int | None) -> Tensor:
        delta = held.get(adapter, lambda: tuner.get_delta_weight(adapter).detach().float())
        return (delta if expert is None else delta[expert])[start:stop]

    return rows


def _product(left: Tensor, right: Tensor, scale: float) -> Rows:
    """Rows of scale * left @ right, left (rows, r), right (r, columns)."""
    left, right = left.float(), right.float() * scale
    return lambda start, stop, expert: left[start:stop] @ right
