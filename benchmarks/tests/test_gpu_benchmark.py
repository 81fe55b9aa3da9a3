"""The benchmark of the kernels on a GPU: that it runs in Triton's interpreter, and says what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parent.parent / "gpu.py"


def test_it_says_what_it_needs(tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    words = [sys.executable, BENCHMARK, "--out", tmp_path / "x"]
    run = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "needs a CUDA GPU" in run.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_it_runs_in_the_interpreter(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    words = [sys.executable, BENCHMARK, "--small", "--out", tmp_path / "results.json"]
    subprocess.run(words, env=environment, check=True)
    kernels = json.loads((tmp_path / "results.json").read_text())["kernels"]
    assert list(kernels) == ["torch", "triton", "triton-tf32x3", "triton-bf16x3"]
    assert kernels["triton"]["kept_otherwise"] == 0
    for name, one in kernels.items():
        assert one["seconds"] > 0
        assert one["largest_gamma_error"] < (1e-2 if name == "triton-bf16x3" else 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_it_runs_on_the_gpu(tmp_path: Path) -> None:
    subprocess.run([sys.executable, BENCHMARK, "--small", "--out", tmp_path / "x"], check=True)
    kernels = json.loads((tmp_path / "x").read_text())["kernels"]
    assert "triton" in kernels
    assert all(one["largest_gamma_error"] < 1e-2 for one in kernels.values())
