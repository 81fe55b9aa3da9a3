"""The Triton kernel without a GPU: run in Triton's interpreter, and compiled to machine code for GPUs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from samerge.errors import KernelError
from samerge.saliency.kernels import backend

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def triton_version() -> tuple[int, ...]:
    if importlib.util.find_spec("triton") is None:
        return (3, 7)  # there is nothing to skip for its version
    return tuple(int(part) for part in version("triton").split(".")[:2])


needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton compiles nothing")


@needs_triton
@pytest.mark.slow
@pytest.mark.skipif(triton_version() < (3, 7), reason="before 3.7, Triton's interpreter does not go with NumPy 2.4")
def test_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    cases = [str(HERE / name) for name in ("triton_cases.py", "triton_merge_cases.py")]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *cases]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


@needs_triton
@interpreted
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "products", "sweep", "options"),
    [
        (80, "ieee", "backward", {}),
        (90, "ieee", "forward", {"theta": "fp32"}),
        (90, "ieee", "backward, (in, out)", {"theta": "fp16"}),
        (90, "tf32x3", "forward", {}),
        (80, "bf16x3", "forward", {}),
        (90, "bf16x3", "backward", {}),
        (90, "bf16x3", "backward", {"rank": 64, "one_block": False}),
    ],
)
def test_compiles_to_machine_code(tmp_path, monkeypatch, arch, products, sweep, options):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from gpu_code import build

    code = build(arch, products, sweep, **options)
    assert code.shared <= (163 if arch == 80 else 227) << 10  # what a program may have
    assert code.instructions > 0
    if options.get("rank", 16) == 16:
        assert code.stack <= 512  # bytes spilled by a thread
    if products != "ieee" or sweep != "forward":
        assert code.tensor_cores > 0
    else:
        assert code.tensor_cores == 0  # signs are decided in float32


def test_the_choice_on_a_gpu(monkeypatch):
    """Plain torch, unless Triton is asked for."""
    gpu = torch.device("cuda")
    monkeypatch.delenv("SAMERGE_KERNEL", raising=False)
    for device, dtype in ((gpu, torch.float32), (gpu, torch.float64), (torch.device("mps"), torch.float32)):
        assert backend.choose(device, dtype).name == "torch"
    monkeypatch.setenv("SAMERGE_KERNEL", "triton-bf16x3")
    if importlib.util.find_spec("triton"):
        assert backend.choose(gpu, torch.float32).name == "triton-bf16x3"
    with pytest.raises(KernelError, match="triton-bf16x3 computes in float32 on cuda, not in float32 on mps"):
        backend.choose(torch.device("mps"), torch.float32)
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(KernelError, match="SAMERGE_KERNEL=triton-bf16x3, and the kernel cannot be had: Triton is not"):
        backend.choose(gpu, torch.float32)
