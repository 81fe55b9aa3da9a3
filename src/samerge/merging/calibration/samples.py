"""What modules take while a model runs: some positions (tokens, patches) of their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

#: Positions of which a module's inputs are kept; twice as many at times.
MOST = 512


class Samples:
    """Rows of what modules take, each position of all inputs as likely as any other.

    Modules that take one tensor, as a block's query, key and value do, have its rows together.

    Args:
        modules: by name; those that hold the base's weights.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._chunks: dict[str, list[Tensor]] = {}
        self._share: dict[str, float] = {}
        self._chance = torch.Generator().manual_seed(0)
        #: The last tensor that a module took, the share of it that was kept, and its rows.
        self._last: tuple[Tensor, float, Tensor] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this lasts, what the modules take is kept."""
        with ExitStack() as stack:
            for name, module in self._modules.items():
                hook = module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
                stack.callback(hook.remove)
            yield
        self._last = None

    def groups(self) -> Iterator[tuple[list[str], Tensor]]:
        """The modules that ran, those with the same rows together, and the rows, (n, d_in) on the CPU."""
        found: dict[tuple[int, ...], list[str]] = {}
        for name, chunks in self._chunks.items():
            found.setdefault(tuple(map(id, chunks)), []).append(name)
        for names in found.values():
            yield names, torch.cat(self._chunks[names[0]])

    def _hook(self, name: str) -> Any:
        def kept(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            x = next((one for one in (*given, *named.values()) if isinstance(one, Tensor)), None)
            if x is not None and x.is_floating_point() and x.numel():
                self._add(name, module, x)

        return kept

    def _add(self, name: str, module: nn.Module, x: Tensor) -> None:
        share = self._share.get(name, 1.0)
        convolves = isinstance(module, nn.Conv2d)
        if self._last is None or self._last[0] is not x or self._last[1] != share or convolves:
            rows = _patches(module, x) if isinstance(module, nn.Conv2d) else x.detach().reshape(-1, x.shape[-1])
            self._last = x, share, self._some(rows, share).cpu()
        chunks = [*self._chunks.get(name, []), self._last[2]]
        while sum(map(len, chunks)) > 2 * MOST:
            chunks, share = [self._some(torch.cat(chunks), 0.5)], share / 2
        self._chunks[name], self._share[name] = chunks, share

    def _some(self, rows: Tensor, share: float) -> Tensor:
        """Each row with this probability."""
        if share == 1:
            return rows
        return rows[(torch.rand(len(rows), generator=self._chance) < share).to(rows.device)]


def _patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution's flattened weight is multiplied with, (positions, channels * kernel)."""
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = nn.functional.pad(x.detach() if x.ndim == 4 else x.detach()[None], padding, mode)
    found = nn.functional.unfold(padded, module.kernel_size, dilation=module.dilation, stride=module.stride)
    return found.transpose(1, 2).flatten(0, 1)
