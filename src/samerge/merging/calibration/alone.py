"""A model as its base alone: no adapters, no dropout, no gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from samerge.adapters.install import trained_as_before
from samerge.errors import AdapterError


@contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """While this lasts, a model runs without dropout, without gradients, and as if it had no adapters.

    Raises:
        AdapterError: adapters are merged into its weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper, other

    # what is trained beside the factors: whole modules, and token rows in releases that have them
    beside: type = getattr(other, "AuxiliaryTrainingWrapper", ModulesToSaveWrapper)
    tuners: list[tuple[str, Any]] = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, (BaseTunerLayer, beside))
    ]
    for name, layer in tuners:
        if getattr(layer, "merged", False):
            raise AdapterError(
                f"calibration runs the base model, and adapters are merged into {name}; call model.unmerge_adapter() "
                f"first"
            )
    heard = [layer for _, layer in tuners if not layer.disable_adapters]
    with trained_as_before(model):
        try:
            model.eval()
            for layer in heard:
                layer.enable_adapters(False)
            # a compiled model does not see what watches its modules
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            for layer in heard:
                layer.enable_adapters(True)
