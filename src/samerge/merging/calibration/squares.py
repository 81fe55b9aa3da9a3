"""How large the inputs of modules are, channel by channel, while a model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from samerge.adapters.install import restore_trained
from samerge.errors import AdapterError


class InputSquares:
    """Mean squares of what modules take, by channel, summed up as a model runs.

    Args:
        modules: by name; those that hold the base's own weights.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this lasts, what the modules take is added up."""
        with ExitStack() as stack:
            for name, module in self._modules.items():
                hook = module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def means(self) -> dict[str, Tensor]:
        """m_j = mean of x_j^2 over all positions, (channels,) in float64 on the CPU, of the modules that ran."""
        return {name: total.cpu() / self._counts[name] for name, total in self._sums.items()}

    def _hook(self, name: str) -> Any:
        def take(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            x = next((one for one in (*given, *named.values()) if isinstance(one, Tensor)), None)
            if x is None or not x.is_floating_point() or not x.numel():
                return
            channels = 1 if isinstance(module, nn.modules.conv._ConvNd) else x.ndim - 1
            rows = x.detach().movedim(channels, -1).flatten(0, -2)
            total = rows.float().square().sum(dim=0, dtype=torch.float64)
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts.get(name, 0) + len(rows)

        return take


@contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """While this lasts, a model runs without dropout, without gradients, and as if it had no adapters.

    Raises:
        AdapterError: adapters are merged into its weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuners = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
    for name, layer in tuners:
        if layer.merged:
            raise AdapterError(
                f"calibration runs the base model, and adapters are merged into {name}; call model.unmerge_adapter() "
                f"first"
            )
    heard = [layer for _, layer in tuners if not layer.disable_adapters]
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for layer in heard:
            layer.enable_adapters(False)
        with torch.no_grad():
            yield
    finally:
        for layer in heard:
            layer.enable_adapters(True)
        if heard:
            restore_trained(model, trained)
        for module, mode in modes.items():
            module.training = mode
