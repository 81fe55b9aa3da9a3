"""A tiny random Llama on disk with two adapters of it, and ways to run the command line on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from samerge.cli import app

from .own_words import foreign_options

WIDTH, HIDDEN, LAYERS = 16, 24, 2


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, seed: int, rank: int = 4, base: str = "tiny-llama") -> Path:
    """A random LoRA on q_proj and down_proj, in PEFT's format."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for module, out, into in (("self_attn.q_proj", WIDTH, WIDTH), ("mlp.down_proj", WIDTH, HIDDEN)):
            stem = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, into, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, rank, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapters `math` and `code`, and `far`, which names another base."""
    root = tmp_path_factory.mktemp("loras")
    write_adapter(root / "math", 1)
    write_adapter(root / "code", 2)
    write_adapter(root / "far", 3, base="someone/else")
    return root


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run the command line in this process, in an empty folder; it may speak of no option that it has not got."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SAMERGE_TRACEBACK", raising=False)

    def run(*args: object) -> Result:
        words = [str(arg) for arg in args]
        result = CliRunner().invoke(app, words)
        if result.exit_code:
            assert not foreign_options(words, result.output), words
        return result

    return run


def shell(*args: object, cwd: Path, module: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    words = [sys.executable, "-m", "samerge"] if module else []
    return subprocess.run(
        [*words, *(str(arg) for arg in args)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
