"""`samerge convert`: the same updates in another format, with the factors as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import Beast, write_adapter, write_base
from typer.testing import CliRunner
from written_out import CONV, FC, Q, configuration, deltas, kohya, kohya_deltas, random, same

import samerge
from samerge.adapters.formats.table import FORMATS, named, read_any, writable
from samerge.cli import app
from samerge.errors import AdapterError, OptionError
from samerge.report.reading import read_record


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("name", ["math", "code", "talk"])
def test_pefts_to_mlx_and_back(llama: Beast, tmp_path, name):
    """rsLoRA, rank and alpha patterns among them."""
    expected = deltas(read_any(llama.adapters[name], name))
    there = samerge.convert_adapter(llama.adapters[name], "mlx", progress=False).save(tmp_path / "mlx")
    same(deltas(read_any(there, name)), expected)
    back = samerge.convert_adapter(there, "peft", progress=False).save(tmp_path / "peft")
    same(deltas(read_any(back, name)), expected)


def test_pefts_to_itself_loads_with_peft(llama: Beast, tmp_path):
    """Its patterns say each module's rank and scale."""
    out = samerge.convert_adapter(llama.adapters["talk"], "peft", llama.base, progress=False).save(tmp_path / "out")
    one, other = (read_any(path, "talk") for path in (llama.adapters["talk"], out))
    same(deltas(other), deltas(one))
    for module, adapted in one.modules.items():
        assert torch.equal(other.modules[module].load().A, adapted.load().A)
        assert torch.equal(other.modules[module].load().B, adapted.load().B)


def test_kohyas_to_pefts_by_the_base_s_names(tmp_path):
    names = {
        Q: "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        CONV: "down_blocks.0.resnets.0.conv1",
        FC: "text_model.encoder.layers.0.mlp.fc1",
    }
    path = kohya(tmp_path, "style")
    tensors = {f"{names[Q]}.weight": random(10, 12), f"{names[CONV]}.weight": random(5, 6, 3, 3)}
    base = write_base(tmp_path / "base", {**tensors, f"{names[FC]}.weight": random(14, 8)}, model_type="x")
    with pytest.raises(AdapterError, match="named as kohya does"):
        samerge.convert_adapter(path, "peft", progress=False).save(tmp_path / "out")
    made = samerge.convert_adapter(path, "peft", base, progress=False).save(tmp_path / "out")
    same(deltas(read_any(made, "style")), {names[stem]: delta for stem, delta in kohya_deltas(path).items()})
    back = samerge.convert_adapter(path, "kohya", base, progress=False).save(tmp_path / "again")
    same(kohya_deltas(back), kohya_deltas(path))
    for key, tensor in load_file(path).items():
        assert torch.equal(load_file(back)[key], tensor)


def test_half_precision_stays_as_it_is(tmp_path):
    A, B = random(3, 12).half(), random(10, 3, seed=1).half()
    path = write_adapter(tmp_path / "a", {"down_blocks.0.to_q": (A, B)}, alpha=7.0)
    out = samerge.convert_adapter(path, "kohya", progress=False).save(tmp_path / "out")
    tensors = load_file(out)
    assert torch.equal(tensors["lora_unet_down_blocks_0_to_q.lora_up.weight"], B)
    assert tensors["lora_unet_down_blocks_0_to_q.alpha"].item() == 7


def test_what_no_other_format_has_a_place_for(llama: Beast, tmp_path):
    folder = Path(write_adapter(tmp_path / "a", {"x": (random(2, 4), random(4, 2))}, modules_to_save=["norm"]))
    file = folder / "adapter_model.safetensors"
    from safetensors.torch import save_file

    save_file({**load_file(file), "base_model.model.norm.weight": torch.ones(3)}, file)
    with pytest.raises(AdapterError, match=r"fully trained modules or token rows \(norm.weight\), which only PEFT's"):
        samerge.convert_adapter(str(folder), "mlx", progress=False)
    with pytest.raises(OptionError, match=r"format='onnx' is not known; choose one of"):
        samerge.convert_adapter(llama.adapters["math"], "onnx", progress=False)


def test_the_shell(tmp_path):
    path = kohya(tmp_path, "style")
    assert "give --format" in run("convert", path, "--out", tmp_path / "o").output
    result = run("convert", path, "--format", "kohya", "--out", tmp_path / "o", "--json")
    told = json.loads(result.stdout)
    assert told["out"] == str(tmp_path / "o.safetensors")
    same(kohya_deltas(told["out"]), kohya_deltas(path))
    again = run("convert", path, "--format", "kohya", "--out", tmp_path / "o")
    assert again.exit_code == 2
    assert "exists already" in again.output
    assert run("inspect", tmp_path / "o.safetensors").exit_code == 0
    assert run("verify", tmp_path / "o.safetensors").exit_code == 0


def test_a_dtype_alone_keeps_the_format(llama: Beast, tmp_path):
    """What is read as kohya's file is written as one, PEFT's folder as one."""
    path = kohya(tmp_path, "style")
    assert run("convert", path, "--dtype", "bfloat16", "--out", tmp_path / "half").exit_code == 0
    halved = load_file(tmp_path / "half.safetensors")
    assert halved.keys() == load_file(path).keys()
    assert {one.dtype for name, one in halved.items() if not name.endswith("alpha")} == {torch.bfloat16}
    assert run("convert", llama.adapters["math"], "--dtype", "float64", "-o", tmp_path / "peft").exit_code == 0
    record = read_record(tmp_path / "peft")
    [written] = {one.dtype for one in load_file(tmp_path / "peft" / "adapter_model.safetensors").values()}
    assert (record.output.dtype, record.options) == (str(written).removeprefix("torch."), {"dtype": "float64"})
    same(deltas(read_any(tmp_path / "peft", "math")), deltas(read_any(llama.adapters["math"], "math")))
    assert run("convert", tmp_path / "none", "--dtype", "float16", "-o", tmp_path / "no").exit_code == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("command", ["convert", "compress"])
def test_the_shell_speaks_of_one_adapter_without_a_weight(command):
    shown = " ".join(run(command, "--help").output.split())
    assert "WEIGHT" not in shown
    assert "strength" not in shown


def test_merge_and_compress_take_a_format(llama: Beast, tmp_path):
    words = ("-a", llama.adapters["math"], "-a", llama.adapters["code"], "--method", "linear", "--format", "mlx")
    assert run("merge", *words, "-o", tmp_path / "merged").exit_code == 0
    assert "lora_parameters" in configuration(tmp_path / "merged")
    assert run("compress", llama.adapters["math"], "-r", 2, "--format", "mlx", "-o", tmp_path / "small").exit_code == 0
    assert configuration(tmp_path / "small")["lora_parameters"]["rank"] == 2
    result = run("merge", *words[:-1], "kohya", "-o", tmp_path / "k")
    assert result.exit_code == 2
    assert "of no diffusion model" in result.output


def test_the_table():
    assert len({format.name for format in FORMATS}) == len(FORMATS)
    assert {"peft", "kohya", "diffusers", "mlx"} <= set(writable())
    for format in FORMATS:
        assert named(format.family).write is not None
        assert format.write is None or "{path}" in format.use
