"""What only a GPU can show."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import samerge

ROOT = Path(__file__).parent.parent.parent

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_gpu
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("cases", ["triton_cases.py", "triton_merge_cases.py"])
def test_the_kernel_on_the_gpu(cases):
    """The cases of the interpreter, compiled."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent / cases)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


@needs_gpu
@pytest.mark.parametrize("kernel", ["torch", "triton", "triton-tf32x3", "triton-bf16x3"])
def test_a_merge_keeps_what_the_cpu_keeps(llama, monkeypatch, kernel):
    def kept(device):
        merged = samerge.merge(
            llama.base, llama.adapters, method="saliency", device=device, density=0.5, progress=False
        )
        record = merged.report.record
        return record.kernel, {
            (name, expert, component)
            for name, layer in record.layers.items()
            for expert, share in layer.adapters.items()
            for component in share.kept
        }

    monkeypatch.setenv("SAMERGE_KERNEL", "torch")
    _, expected = kept("cpu")
    monkeypatch.setenv("SAMERGE_KERNEL", kernel)
    name, found = kept("cuda")
    assert name == kernel
    assert len(found) == len(expected) > 20
    assert len(found & expected) >= 0.95 * len(expected)  # scores that all but tie may fall either way
