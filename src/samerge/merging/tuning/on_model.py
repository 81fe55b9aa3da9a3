"""A candidate on a live model, for the time of its scoring, and the model as it was before afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from samerge.adapters.install import refuse_taken, take_off, trained_as_before
from samerge.errors import AdapterError
from samerge.merging.merged_adapter import MergedAdapter

#: What the candidate is called on the model.
CANDIDATE = "samerge_candidate"


def check_model(model: nn.Module) -> None:
    """Refuse a model on which a candidate cannot be put, or would not be heard.

    Raises:
        AdapterError: it is no `PeftModel`, has adapters merged into its weights, or has them disabled.
        OutputExistsError: it has an adapter of the candidate's name.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        raise AdapterError(
            f"tuning on a live model: model= is a {type(model).__name__}, not a PeftModel; wrap it with "
            f"PeftModel.from_pretrained(model, <any of the adapters>)"
        )
    refuse_taken(model, CANDIDATE)
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer) and (layer.merged or layer.disable_adapters):
            what, way = ("merged into", "unmerge_adapter") if layer.merged else ("disabled in", "enable_adapter_layers")
            raise AdapterError(
                f"tuning on a live model: adapters are {what} {name}, where a candidate would not take part; call "
                f"model.{way}() first"
            )


@contextmanager
def lent(model: Any, merged: MergedAdapter) -> Iterator[None]:
    """Put an adapter on a model and make it the active one; take it off again, whatever happens.

    Afterwards weights, adapters, the active one, what is trained, the modes and the modules are as before; modules that
    no other adapter had are unwrapped.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    check_model(model)
    active, shown = model.base_model.active_adapter, model.active_adapter
    before = set(model.modules())
    wrapped = {module for module in before if isinstance(module, BaseTunerLayer)}
    with trained_as_before(model):
        try:
            merged.apply_to(model, CANDIDATE)
            model.set_adapter(CANDIDATE)
            for module in model.modules():
                if module not in before:  # new ones are in training mode
                    module.train(model.training)
            yield
        finally:
            model.base_model.set_adapter(active)  # first: PEFT is loud about an active adapter that goes
            model.active_adapter = shown
            take_off(model, CANDIDATE)
            _unwrap(model, wrapped)


def _unwrap(model: nn.Module, wrapped: set[nn.Module]) -> None:
    """Put plain modules back in the place of the wrappers that were not there before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    while True:
        new = [
            (parent, name, child)
            for parent in model.modules()
            for name, child in parent.named_children()
            if isinstance(child, BaseTunerLayer) and child not in wrapped
        ]
        if not new:
            return
        parent, name, child = new[0]
        setattr(parent, name, child.base_layer)


def on_model(model: nn.Module, score: Callable[[Any], Any]) -> Callable[[MergedAdapter], Any]:
    """A score of a model as a score of a candidate."""

    def scored(merged: MergedAdapter) -> Any:
        with lent(model, merged):
            return score(model)

    return scored
