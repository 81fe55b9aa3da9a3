"""Which kernel works the tiles.

In float32 that is `native` on the CPU, the fused kernel in C, where the system has a C compiler; in all other cases
`torch`. `triton`, for CUDA, has been compiled but never run on a GPU: it is taken only where it is asked for. The
environment variable SAMERGE_KERNEL forces one of them: native, triton (triton-tf32x3, triton-bf16x3: see
`triton_tiles.Products`), torch, or auto. The choice is in the record of a merge, and a fall to torch for want of a
compiler is logged as a warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Protocol

import torch

from samerge.errors import KernelError
from samerge.linalg.factors import LoraFactors
from samerge.saliency.kernels.sweeps import Flows, Sweep
from samerge.weights.stored import name_of

VARIABLE = "SAMERGE_KERNEL"

#: The kernels for devices of one type. `torch` is for all.
_DEVICES = {"native": "cpu", "triton": "cuda", "triton-tf32x3": "cuda", "triton-bf16x3": "cuda"}


class Kernel(Protocol):
    """How tiles are worked."""

    @property
    def name(self) -> str:
        """As the record has it."""

    def tile_dtype(self, stored: torch.dtype) -> torch.dtype:
        """The dtype in which tiles of a weight that is stored in some dtype are taken."""

    def tile_rows(self, height: int, width: int) -> int:
        """Rows of a tile of a weight (height, width)."""

    def sweep(
        self,
        factors: Sequence[LoraFactors | None],
        transposed: bool,
        flows: Flows,
        along_rows: bool,
    ) -> Sweep:
        """Make a sweep of one weight ready.

        Args:
            factors: of each expert, (out, in), scale folded in; None for one that does not adapt the weight.
            transposed: the weight is stored (in, out).
            flows: u (n, rows) on the row side of the stored matrix, and v (n, columns) on its column side. With both,
                gamma is wanted.
            along_rows: whether the product is |W| v, or |W|^T u.
        """


def choose(device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel for a device and a dtype to compute in.

    Raises:
        KernelError: SAMERGE_KERNEL is no kernel, or one that cannot be had here.
    """
    from samerge.saliency.kernels.tiles import TorchKernel

    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in ("auto", "torch", *_DEVICES):
        raise KernelError(f"{VARIABLE}={wanted!r} is not known; choose one of {', '.join(_DEVICES)}, torch, auto")
    name = ("native" if device.type == "cpu" else "torch") if wanted == "auto" else wanted
    if name == "torch" or (wanted == "auto" and dtype != torch.float32):
        return TorchKernel(device, dtype)
    if dtype != torch.float32 or not _runs(name, device):
        raise KernelError(
            f"{VARIABLE}={wanted} computes in float32 on {_DEVICES[wanted]}, not in "
            f"{name_of(dtype)} on {device.type}; leave the variable out, or set it to auto"
        )
    try:
        return _native() if name == "native" else _triton(name)
    except KernelError as error:
        if wanted != "auto":
            raise KernelError(
                f"{VARIABLE}={wanted}, and the kernel cannot be had: {error}. "
                f"Or set {VARIABLE}=auto to go on without it"
            ) from error
        _warn(name, str(error))
        return TorchKernel(device, dtype)


def _runs(name: str, device: torch.device) -> bool:
    """Whether a kernel is for a device; in Triton's interpreter, for debugging, its kernels run on any."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get(VARIABLE) == name != "native"
    return _DEVICES[name] == device.type or interpreted


def _native() -> Kernel:
    from samerge.saliency.kernels.native import NativeKernel

    return NativeKernel()


def _triton(name: str) -> Kernel:
    if find_spec("triton") is None:
        raise KernelError("Triton is not installed; pip install triton")
    from samerge.saliency.kernels.triton_tiles import TritonKernel, products_of

    return TritonKernel(products_of(name))


@cache
def _warn(name: str, reason: str) -> None:
    """Once for each reason."""
    message = "scoring runs in plain torch, several times slower, without the %s kernel: %s (%s=torch chooses it)"
    logging.getLogger("samerge").warning(message, name, reason, VARIABLE)
