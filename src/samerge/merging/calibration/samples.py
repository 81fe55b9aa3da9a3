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
        #: The last tensor that a module took, its version, the share of it that was kept, its rows, and who had them.
        self._last: tuple[Tensor, int, float, Tensor, set[str]] | None = None
        #: The last chunks that were too many, and what was kept of them.
        self._thinned: tuple[list[Tensor], list[Tensor], float] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While this lasts, what the modules take is kept."""
        with ExitStack() as stack:
            for name, module in self._modules.items():
                hook = module.register_forward_pre_hook(self._hook(name), with_kwargs=True)
                stack.callback(hook.remove)
            yield
        self._modules, self._last, self._thinned = {}, None, None

    def groups(self) -> list[tuple[str, ...]]:
        """The modules that ran, those with the same rows together."""
        found: dict[tuple[int, ...], list[str]] = {}
        for name, chunks in self._chunks.items():
            found.setdefault(tuple(map(id, chunks)), []).append(name)
        return [tuple(names) for names in found.values()]

    def rows(self, module: str) -> Tensor:
        """What a module took, (n, d_in) on the CPU."""
        return torch.cat(self._chunks[module])

    def _hook(self, name: str) -> Any:
        def kept(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            x = next((one for one in (*given, *named.values()) if isinstance(one, Tensor)), None)
            if x is not None and x.is_floating_point() and x.numel():
                self._add(name, module, x)

        return kept

    def _add(self, name: str, module: nn.Module, x: Tensor) -> None:
        share = self._share.get(name, 1.0)
        convolves = isinstance(module, nn.Conv2d)
        last = self._last
        version = 0 if x.is_inference() else x._version  # it may have been changed in place
        # one that had them already takes it anew, filled with something else perhaps
        if last is None or last[0] is not x or last[1:3] != (version, share) or name in last[4] or convolves:
            rows = _patches(module, x) if isinstance(module, nn.Conv2d) else x.detach().reshape(-1, x.shape[-1])
            # a copy: the model may change its own tensor, or fill it anew
            last = x, version, share, self._some(rows, share).to("cpu", copy=True), set()
        self._last = last
        last[4].add(name)
        chunks = [*self._chunks.get(name, []), last[3]]
        if sum(map(len, chunks)) > 2 * MOST:
            before = self._thinned[0] if self._thinned is not None else []
            if self._thinned is None or list(map(id, before)) != list(map(id, chunks)):
                self._thinned = chunks, *self._halved(chunks, share)
            chunks, share = self._thinned[1:]
        self._chunks[name], self._share[name] = chunks, share

    def _halved(self, chunks: list[Tensor], share: float) -> tuple[list[Tensor], float]:
        """Half of the rows, as often as there are too many, and the share that is kept of what comes."""
        rows = torch.cat(chunks)
        while len(rows) > 2 * MOST:
            rows, share = self._some(rows, 0.5), share / 2
        return [rows], share

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
