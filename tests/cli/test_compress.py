"""`samerge compress` and `samerge extract`: the same as the functions, and what they say."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from alike import same_files
from safetensors.torch import load_file, save_file

import samerge
from samerge.report.report import read_report


@pytest.fixture
def expert(tiny_base, tmp_path):
    """The base with its linear weights and a norm changed."""
    folder = tmp_path / "expert"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = load_file(tiny_base / "model.safetensors")
    for name, tensor in tensors.items():
        if "proj" in name or name == "model.norm.weight":
            tensors[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((tiny_base / "config.json").read_text())
    return folder


def test_compress_is_the_function(invoke, loras, tmp_path) -> None:
    result = invoke("compress", loras / "math", "--rank", 2, "--energy", 0.99, "--out", "small", "--dtype", "float16")
    assert result.exit_code == 0, result.output
    assert "model.layers.*.self_attn.q_proj" in result.stdout
    assert 'PeftModel.from_pretrained(base, "small")' in result.stdout
    assert "warning: truncation to the rank lost over 20%" in result.stderr
    assert "saved in small" in result.stderr
    expected = samerge.compress_adapter(loras / "math", 2, energy=0.99, dtype="float16")
    same_files(tmp_path / "small", expected.save(tmp_path / "python"))
    assert invoke("inspect", "small").exit_code == 0


def test_compress_without_out_only_tells(invoke, loras, tmp_path) -> None:
    result = invoke("compress", loras / "math", "--energy", 0.9, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["out"] is None
    assert all(layer["lost"] <= 0.1 and layer["rank"] <= 4 for layer in told["layers"].values())
    assert list(tmp_path.iterdir()) == []


def test_extract_is_the_function(invoke, tiny_base, expert, tmp_path) -> None:
    result = invoke("extract", "--base", tiny_base, "--model", expert, "--rank", 3, "--out", "lora")
    assert result.exit_code == 0, result.output
    assert "warning: changed, but not in the adapter" in result.stderr
    assert "model.norm.weight (by 0." in result.stderr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = samerge.extract_adapter(tiny_base, expert, 3)
    same_files(tmp_path / "lora", expected.save(tmp_path / "python"))
    report = read_report("lora")
    assert report.record.method == "extract"
    assert report.record.left_out.keys() == {"model.norm.weight"}
    assert "Extracted" in (tmp_path / "lora" / "README.md").read_text()
    assert invoke("inspect", "lora").exit_code == 0


def test_extract_quietly(invoke, tiny_base, expert) -> None:
    words = ("extract", "-b", tiny_base, "-e", expert, "--energy", 0.5, "-o", "lora", "--quiet", "--embeddings")
    result = invoke(*words)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    again = invoke(*words)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert invoke(*words, "--overwrite").exit_code == 0


@pytest.mark.parametrize("command", ["compress", "extract"])
def test_no_size_is_bad_input(invoke, tiny_base, loras, expert, command) -> None:
    models = (loras / "math",) if command == "compress" else ("--base", tiny_base, "--expert", expert)
    result = invoke(command, *models, "--out", "x")
    assert result.exit_code == 2
    assert "needs a size: give --rank" in result.stderr


def test_elementwise(invoke, tiny_base, loras, tmp_path) -> None:
    result = invoke(
        *("merge", "--base", tiny_base, "-a", loras / "math", "-a", loras / "code", "--out", "out"),
        *("--method", "elementwise", "--density", 0.3, "--agreement", "task", "--iterations", 2),
    )
    assert result.exit_code == 0, result.output
    assert "how many of its elements the method kept" in " ".join(result.stdout.split())
    assert read_report("out").record.options["density"] == 0.3
    assert "elements" in invoke("inspect", "out").stdout
    wrong = invoke(
        "merge", "-b", tiny_base, "-a", loras / "math", "-o", "x", "--method", "saliency", "--density", "some"
    )
    assert wrong.exit_code == 2
    assert "must lie in (0, 1]" in wrong.stderr
    (tmp_path / "recipe.yaml").write_text(
        f"base: {tiny_base}\nadapters: [{loras / 'math'}, {loras / 'code'}]\nmethod: elementwise\n"
        "density: 0.3\nagreement: task\niterations: 2\nout: again\n"
    )
    assert invoke("run", "recipe.yaml").exit_code == 0
    same_files(tmp_path / "out", tmp_path / "again")
