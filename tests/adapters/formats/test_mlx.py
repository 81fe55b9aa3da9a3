"""MLX's folders, in and out; mlx-lm's layer is y = W x + scale (x a) b, with a (in, r) and b (r, out)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_adapter
from written_out import configuration, deltas, random, same

import samerge
from samerge.adapters.formats.table import read_any
from samerge.errors import AdapterError

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def mlx(folder: Path, seed: int, rank: int = 4, scale: object = 10.0, **more: object) -> str:
    folder.mkdir(parents=True)
    tensors = {}
    for number, (module, out, into) in enumerate(((Q, 10, 12), (DOWN, 12, 24))):
        tensors[f"{module}.lora_a"] = random(into, rank, seed=seed + number)
        tensors[f"{module}.lora_b"] = random(rank, out, seed=seed + 5 + number)
    save_file(tensors, folder / "adapters.safetensors")
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 2, "model": "m", "lora_parameters": parameters, **more}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def formula(folder: str | Path) -> dict[str, torch.Tensor]:
    tensors = {key: tensor.double() for key, tensor in load_file(Path(folder) / "adapters.safetensors").items()}
    scale = configuration(Path(folder))["lora_parameters"]["scale"]
    modules = {key.removesuffix(".lora_a") for key in tensors if key.endswith(".lora_a")}
    return {m: scale * (tensors[f"{m}.lora_a"] @ tensors[f"{m}.lora_b"]).T for m in modules}


def test_every_update_is_the_formula(tmp_path):
    path = mlx(tmp_path / "a", 1)
    adapter = read_any(path, "a")
    same(deltas(adapter), formula(path))
    assert adapter.format == "mlx"


def test_a_merge_comes_back_in_mlxs_format(tmp_path):
    one, two = mlx(tmp_path / "a", 1), mlx(tmp_path / "b", 21, rank=6, scale=2.0)
    merged = samerge.merge(None, [one, two], method="linear", weights=[1.0, -0.5], progress=False)
    out = merged.save(tmp_path / "out")
    expected = {module: delta - 0.5 * formula(two)[module] for module, delta in formula(one).items()}
    same(formula(out), expected)
    config = configuration(out)
    assert config["num_layers"] == -1
    keys = ["mlp.down_proj", "self_attn.q_proj"]
    assert config["lora_parameters"] == {"rank": 10, "scale": 1.0, "dropout": 0.0, "keys": keys}
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "adapter_config.json", "adapters.safetensors", "samerge.json"
    ]  # fmt: skip
    assert "mlx_lm.generate" in (out / "README.md").read_text()


def test_with_pefts(tmp_path):
    """Both name the modules alike; the merge is PEFT's then."""
    one = mlx(tmp_path / "a", 1)
    A, B = random(3, 12, seed=8), random(10, 3, seed=9)
    two = write_adapter(tmp_path / "b", {Q: (A, B)})
    merged = samerge.merge(None, [one, two], method="linear", progress=False)
    expected = formula(one)
    expected[Q] = expected[Q] + (B @ A).double()
    out = merged.save(tmp_path / "out")
    assert configuration(out)["peft_type"] == "LORA"
    same(deltas(read_any(out, "out")), expected)
    same(formula(merged.save(tmp_path / "mlx", format="mlx")), expected)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"scale": None}, "scale; it must be a finite number"),
        ({"scale": float("nan")}, "scale=nan; it must be a finite number"),
        ({"lora_parameters": [1]}, "lora_parameters="),
        ({"fine_tune_type": "dora"}, "trained as 'dora'"),
    ],
)
def test_a_broken_folder_is_refused_by_the_formats_name(tmp_path, more, words):
    with pytest.raises(AdapterError, match=words) as caught:
        read_any(mlx(tmp_path / "a", 1, **more), "math")
    assert "adapter 'math' (MLX's format)" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "tensor", "words"),
    [
        (f"{Q}.lora_a", torch.zeros(12, 3), r"lora_A has shape \(3, 12\) and lora_B \(10, 4\)"),
        (f"{Q}.lora_a", torch.zeros(2, 12, 4), r"lora_a has shape \(2, 12, 4\)"),
        (f"{Q}.m", torch.zeros(10), "also holds .*q_proj.m"),
        (f"{DOWN}.x.lora_a", torch.zeros(12, 3), "no lora_b"),
    ],
)
def test_broken_tensors(tmp_path, key, tensor, words):
    folder = mlx(tmp_path / "a", 1)
    file = Path(folder) / "adapters.safetensors"
    save_file({**load_file(file), key: tensor}, file)
    with pytest.raises(AdapterError, match=words) as caught:
        read_any(folder, "math")
    assert "MLX" in str(caught.value)


def test_stacks_of_experts_are_told(tmp_path):
    """mlx-lm's SwitchLinear: one pair for all experts of a mixture."""
    stem = "model.layers.0.mlp.switch_mlp.up_proj"
    path = mlx(tmp_path / "a", 1)
    stack = {f"{stem}.lora_a": random(3, 2, 8), f"{stem}.lora_b": random(3, 6, 2)}
    save_file(stack, Path(path) / "adapters.safetensors")
    with pytest.raises(AdapterError, match=rf"'{stem}' holds the factors of a stack of experts .*mlx_lm.fuse"):
        read_any(path, "a")


def test_without_its_configuration(tmp_path):
    folder = Path(mlx(tmp_path / "a", 1))
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json beside .*which says the scale"):
        read_any(folder, "math")
