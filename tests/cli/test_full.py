from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from alike import same_values
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import samerge
from samerge.report.report import read_report

from .conftest import shell


@pytest.fixture(scope="session")
def experts(tiny_base, tmp_path_factory):
    """Three checkpoints of the tiny base."""
    root = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("math", "code", "talk")):
        model = AutoModelForCausalLM.from_pretrained(tiny_base)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        model.save_pretrained(root / name)
    return root


def test_full_equals_the_api(invoke, tiny_base, experts, tmp_path) -> None:
    result = invoke(
        *("full", "--base", tiny_base, "--model", f"m={experts / 'math'}", "-e", f"{experts / 'code'}:-0.5"),
        *("--out", "merged", "--density", "0.3", "--iterations", 2, "--agreement", "task", "--connectivity", "flow"),
        *("--no-residual", "--outside", "base", "--mismatched", "base", "--scaling", "0.7", "--dtype", "bfloat16"),
        *("--device", "cpu", "--work-dir", "work", "--method", "paper", "--max-shard-size", "1MB"),
    )
    assert result.exit_code == 0, result.output
    assert "2 models merged in" in result.stdout
    assert 'LlamaForCausalLM.from_pretrained("merged")' in result.stdout
    expected = samerge.merge_full(
        tiny_base,
        {"m": experts / "math", "code": experts / "code"},
        weights=[1.0, -0.5],
        density=0.3,
        iterations=2,
        agreement="task",
        residual=False,
        outside="base",
        mismatched="base",
        scaling=0.7,
        dtype="bfloat16",
        method="paper",
        device="cpu",
        progress=False,
    )
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(found) == set(expected.shapes)
    for name, tensor in found.items():
        same_values(tensor, expected.tensor(name))
    assert read_report("merged").record.options == expected.report.record.options
    assert list((tmp_path / "work").iterdir()) == []
    shown = invoke("inspect", "merged")
    assert shown.exit_code == 0, shown.output
    assert "bfloat16" in shown.stdout
    assert "elements" in shown.stdout
    assert json.loads(invoke("inspect", "merged", "--json").stdout)["output"]["kind"] == "model"


def test_as_lora(invoke, tiny_base, experts) -> None:
    result = invoke("full", "-b", tiny_base, "-e", experts / "math", "-a", experts / "code", "--as-lora", 4, "-o", "a")
    assert result.exit_code == 0, result.output
    assert 'PeftModel.from_pretrained(base, "a")' in result.stdout
    assert "leaves out what the merge changed outside" in result.stderr
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), "a")
    assert model.peft_config["default"].r == 4
    by_energy = invoke("full", "-b", tiny_base, "-e", experts / "math", "--energy", 0.5, "-o", "a", "--overwrite", "-q")
    assert by_energy.exit_code == 0, by_energy.output
    assert by_energy.stdout == ""
    assert read_report("a").record.options["energy"] == 0.5


def test_json_is_all_of_stdout(tiny_base, experts, tmp_path) -> None:
    done = shell(
        *("full", "--base", tiny_base, "--expert", experts / "math", "--expert", experts / "talk"),
        *("--out", "merged", "--iterations", 1, "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["out"] == "merged"
    assert told["output"]["kind"] == "model"
    assert list(told["adapters"]) == ["math", "talk"]
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--density", "2"], "--density 2 must lie in"),
        (["--outside", "up"], "--outside up is not known"),
        (["--energy", "2"], "--energy 2 must lie in"),
        (["--max-shard-size", "big"], "--max-shard-size big is no size"),
        (["--private"], "--private is for a repository"),
        (["--push-to-hub", "a/b/c"], "a repository id is"),
        (["--expert", "=x"], "--model '=x': the name is empty"),
        (["--expert", "math=x"], "two models are called 'math'"),
    ],
)
def test_bad_input_is_2(invoke, tiny_base, experts, words, told) -> None:
    result = invoke("full", "--base", tiny_base, "--expert", experts / "math", "--out", "out", *words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr


def test_nowhere_to_put_it_and_folders_that_are_taken(invoke, tiny_base, experts, tmp_path) -> None:
    words = ("full", "--base", tiny_base, "--expert", experts / "math", "--iterations", 1)
    assert "nowhere to put the merged model" in invoke(*words).stderr
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("x")
    result = invoke(*words, "--out", "taken", "--overwrite")
    assert result.exit_code == 2
    assert "holds no config.json" in result.stderr
    assert invoke(*words, "--out", "out").exit_code == 0
    assert invoke(*words, "--out", "out").exit_code == 2
    assert invoke(*words, "--out", "out", "--overwrite").exit_code == 0


def test_help_needs_no_torch(tmp_path) -> None:
    code = """
import sys
from samerge.cli import run
sys.argv = ["samerge", "full", "--help"]
try:
    run()
except SystemExit:
    pass
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--as-lora" in done.stdout
