"""kohya's files, in and out, against the formula of sd-scripts and ComfyUI written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_adapter, write_base
from written_out import CONV, FC, Q, deltas, kohya, kohya_deltas, metadata_of, random, same, write

import samerge
from samerge.adapters.atomic import check_free_file
from samerge.adapters.formats.table import read_any
from samerge.errors import AdapterError, BaseModelError, OptionError, OutputExistsError
from samerge.report.reading import read_record


def summed(paths, weights):
    parts = [kohya_deltas(path) for path in paths]
    names = {name for part in parts for name in part}
    return {n: sum(w * part[n] for w, part in zip(weights, parts, strict=True) if n in part) for n in names}


@pytest.mark.parametrize("alpha", [1.0, 7.0, None])
def test_every_update_is_the_formula(tmp_path, alpha):
    path = kohya(tmp_path, "style", alpha=alpha)
    adapter = read_any(path, "style")
    same(deltas(adapter), kohya_deltas(path))
    assert adapter.format == "kohya"
    assert {module: one.rank for module, one in adapter.modules.items()} == {Q: 4, FC: 4, CONV: 2}
    assert adapter.modules[CONV].layout.kernel == (6, 3, 3)


def test_a_convolution_in_cp_form_is_exact(tmp_path):
    tensors = {
        f"{CONV}.lora_down.weight": random(3, 6, 1, 1, seed=1),
        f"{CONV}.lora_mid.weight": random(3, 3, 3, 3, seed=2),
        f"{CONV}.lora_up.weight": random(5, 3, 1, 1, seed=3),
        f"{CONV}.alpha": torch.tensor(1.5),
    }
    path = write(tmp_path, "locon", tensors)
    adapter = read_any(path, "locon")
    same(deltas(adapter), kohya_deltas(path))
    assert adapter.modules[CONV].layout.kernel == (6, 3, 3)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, -2.0)])
def test_a_merge_comes_back_in_kohyas_format(tmp_path, weights):
    paths = [kohya(tmp_path, "style", 4, 2.0, seed=1), kohya(tmp_path, "face", 8, 1.0, seed=2)]
    merged = samerge.merge(None, paths, method="linear", weights=list(weights), progress=False)
    out = merged.save(tmp_path / "out" / "both")
    assert out == tmp_path / "out" / "both.safetensors"
    same(kohya_deltas(out), summed(paths, weights))


def test_every_module_has_a_rank_of_its_own(tmp_path):
    paths = [kohya(tmp_path, "style", 4, seed=1), kohya(tmp_path, "face", 8, seed=2)]
    out = samerge.merge(None, paths, method="linear", progress=False).save(tmp_path / "both")
    tensors = load_file(out)
    assert tensors[f"{Q}.lora_down.weight"].shape == (12, 12)
    assert tensors[f"{CONV}.lora_down.weight"].shape == (4, 6, 3, 3)
    assert tensors[f"{CONV}.lora_up.weight"].shape == (5, 4, 1, 1)
    assert {key: tensor.item() for key, tensor in tensors.items() if key.endswith(".alpha")} == {
        f"{Q}.alpha": 12,
        f"{FC}.alpha": 12,
        f"{CONV}.alpha": 12,
    }
    same(kohya_deltas(out), summed(paths, (1, 1)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_one_alpha_for_all_modules_rounds_nothing(tmp_path, dtype):
    """Of ranks 3 and 5, whose ratio no dtype holds; what was written before the alpha is what is read after it."""
    tensors = {}
    for module, rank in ((Q, 5), (FC, 5), (CONV, 3)):
        tensors[f"{module}.lora_down.weight"] = random(rank, 6, seed=rank).to(getattr(torch, dtype))
        tensors[f"{module}.lora_up.weight"] = random(7, rank, seed=rank + 1).to(getattr(torch, dtype))
        tensors[f"{module}.alpha"] = torch.tensor(float(rank))
    path = write(tmp_path, "a", tensors)
    out = samerge.convert_adapter(path, "kohya", progress=False).save(tmp_path / "out")
    written = load_file(out)
    assert {written[f"{module}.alpha"].item() for module in (Q, FC, CONV)} == {5}
    assert written[f"{Q}.lora_up.weight"].dtype == getattr(torch, dtype)
    same(kohya_deltas(out), kohya_deltas(path))


def test_comfyui_and_ai_toolkit(tmp_path):
    stem = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {f"{stem}.lora_A.weight": random(4, 12), f"{stem}.lora_B.weight": random(36, 4, seed=1)}
    one = write(tmp_path, "one", tensors)
    two = write(tmp_path, "two", {key: 2 * tensor for key, tensor in tensors.items()})
    merged = samerge.merge(None, [one, two], method="linear", progress=False).save(tmp_path / "both")
    same(kohya_deltas(merged), summed([one, two], (1, 1)))


def test_the_header_says_what_was_done(tmp_path):
    about = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    paths = [kohya(tmp_path, "style", 4, seed=1, ss_epoch="3", **about), kohya(tmp_path, "face", 8, seed=2, **about)]
    out = samerge.merge(None, paths, method="linear", progress=False).save(tmp_path / "both")
    header = metadata_of(out)
    assert {key: header[key] for key in about} == about
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("12", "12")
    assert json.loads(header["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "12"}
    assert header["modelspec.title"] == "both"
    assert header["modelspec.merged_from"] == "style, face"
    assert "ss_epoch" not in header
    record = read_record(out)
    assert [one.name for one in record.inputs] == ["style", "face"]
    assert list(record.inputs[0].sha256 or ()) == ["style.safetensors"]
    assert record.output.format == "kohya"


def test_zeros_are_written_as_one_component(tmp_path):
    path = kohya(tmp_path, "style")
    with pytest.warns(UserWarning, match="zero in every layer"):
        merged = samerge.merge(None, [path], method="linear", weights=[0.0], progress=False)
    out = merged.save(tmp_path / "nothing")
    assert not any(delta.any() for delta in kohya_deltas(out).values())


def test_what_is_there_is_kept_unless_asked(tmp_path):
    merged = samerge.merge(None, [kohya(tmp_path / "in", "style")], method="linear", progress=False)
    path = kohya(tmp_path / "out", "style")
    before = Path(path).read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        merged.save(path)
    assert Path(path).read_bytes() == before
    merged.save(path, overwrite=True)
    assert Path(path).read_bytes() != before
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["style.safetensors"]
    (tmp_path / "folder.safetensors" / "folder.safetensors").mkdir(parents=True)
    folder = tmp_path / "folder.safetensors"
    with pytest.raises(OutputExistsError, match="no regular file"):
        check_free_file(folder, overwrite=True)


def test_kohyas_names_are_no_names_for_other_formats(tmp_path):
    merged = samerge.merge(None, [kohya(tmp_path, "style")], method="linear", progress=False)
    with pytest.raises(AdapterError, match=r"named as kohya does.*give base="):
        merged.save(tmp_path / "out", format="peft")
    with pytest.raises(OptionError, match="choose one of"):
        merged.save(tmp_path / "out", format="onnx")


def broken(tmp_path, change):
    path = Path(kohya(tmp_path, "style"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{Q}.lora_up.weight"), r"to_q' has \['alpha', 'lora_down.weight'\], and no lora_up.weight"),
        (lambda t: t.update({f"{Q}.lora_up.weight": torch.zeros(10, 3)}), r"to_q'.*\(4, 12\).*\(10, 3\)"),
        (lambda t: t.update({f"{Q}.lora_up.weight": torch.zeros(0)}), r"lora_up.weight \(0,\), which are no factors"),
        (lambda t: t.update({f"{Q}.lora_up.weight": torch.zeros(10, 4, dtype=torch.int8)}), "floating-point"),
        (lambda t: t.update({f"{Q}.alpha": torch.tensor(float("nan"))}), r"alpha \(\) .*one finite number"),
        (lambda t: t.update({f"{Q}.alpha": torch.ones(3)}), r"alpha \(3,\) .*one finite number"),
        (lambda t: t.update({"bundle_emb.cat.string_to_param.*": torch.ones(2)}), r"also holds 'bundle_emb.*no LoRA's"),
        (lambda t: t.update({f"{Q}.diff": torch.ones(2)}), r"also holds .*diff.*no LoRA's"),
        (lambda t: t.update({f"{Q}.dora_scale": torch.ones(1, 12)}), "dora_scale.*magnitude of every input"),
        (lambda t: t.update({f"{Q}.hada_w1_a": torch.ones(2, 2)}), "do not go together"),
        (lambda t: t.update({f"{CONV}.lora_mid.weight": torch.ones(3, 3, 3, 3)}), r"expected \(r, in, 1, 1\)"),
    ],
)
def test_a_broken_file_is_refused_by_the_formats_name(tmp_path, change, words):
    with pytest.raises(AdapterError, match=words) as caught:
        read_any(broken(tmp_path, change), "style")
    assert "adapter 'style'" in str(caught.value)
    assert "kohya" in str(caught.value)


def test_a_truncated_file(tmp_path):
    path = Path(kohya(tmp_path, "style"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AdapterError, match=r"'style'.*not a sound safetensors file"):
        read_any(path, "style")


def test_dora_is_read_as_such(tmp_path):
    path = broken(tmp_path, lambda t: t.update({f"{Q}.dora_scale": torch.ones(10, 1)}))
    assert read_any(path, "style").dora
    with pytest.raises(AdapterError, match="DoRA"):
        samerge.merge(None, [path], method="linear", progress=False)


def test_kohyas_names_do_not_mix_with_others_without_a_base(tmp_path):
    stem = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    other = write(
        tmp_path,
        "other",
        {f"{stem}.lora_down.weight": random(4, 12), f"{stem}.lora_up.weight": random(10, 4)},
    )
    with pytest.raises(BaseModelError, match=r"'style' names its modules as kohya does.*'other'.*give base="):
        samerge.merge(None, [kohya(tmp_path, "style"), other], method="linear", progress=False)


def unet(folder: Path, *names: str) -> str:
    """A base with weights of the adapters' shapes."""
    shapes = dict(zip(names, ((10, 12), (14, 8), (5, 6, 3, 3)), strict=True))
    return write_base(folder, {f"{name}.weight": random(*shape) for name, shape in shapes.items()}, model_type="unet")


def test_a_base_brings_kohyas_names_and_others_together(tmp_path):
    names = (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "unet.down_blocks.0.resnets.0.conv1",
    )
    base = unet(tmp_path / "base", *names)
    one = kohya(tmp_path, "style", seed=1)
    other = write_adapter(tmp_path / "peft", {names[0]: (random(4, 12, seed=5), random(10, 4, seed=6))})
    merged = samerge.merge(base, [one, other], method="linear", progress=False)
    assert sorted(merged.factors) == sorted(names)
    expected = kohya_deltas(one)
    expected[Q] = expected[Q] + (random(10, 4, seed=6) @ random(4, 12, seed=5)).double()
    out = merged.save(tmp_path / "out", format="kohya")
    same(kohya_deltas(out), expected)


def test_an_underscore_that_fits_two_weights_lists_both(tmp_path):
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    fc, other = "text_model.encoder.layers.0.mlp.fc1", name.replace("down_blocks.0", "down.blocks_0")
    base = unet(tmp_path / "base", name, fc, other)
    with pytest.raises(BaseModelError, match=r"fits several weights there, \['down\.blocks_0.*', 'down_blocks\.0"):
        samerge.merge(base, [kohya(tmp_path, "style")], method="linear", progress=False)


def test_one_module_under_two_names_is_refused(tmp_path):
    """Beside kohya's name the same module with dots: neither may be lost."""
    dotted = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    A, B = random(2, 12), random(10, 2)
    pair = {f"{Q}.lora_down.weight": A, f"{Q}.lora_up.weight": B}
    both = write(
        tmp_path, "both", {**pair, f"{dotted}.lora_down.weight": A.clone(), f"{dotted}.lora_up.weight": B.clone()}
    )
    base = write_base(tmp_path / "base", {f"{dotted.removeprefix('unet.')}.weight": random(10, 12)})
    with pytest.raises(BaseModelError, match="both fit"):
        samerge.merge(base, [both], method="linear", progress=False)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits(tmp_path, dtype):
    """As ComfyUI's tools shrink files; alpha may be in eight bits, too."""
    pair = {f"{Q}.lora_down.weight": random(2, 12).to(dtype), f"{Q}.lora_up.weight": random(10, 2).to(dtype)}
    path = write(tmp_path, "small", {**pair, f"{Q}.alpha": torch.tensor(1.0).to(dtype)})
    merged = samerge.merge(None, [path], method="linear", progress=False)
    found = kohya_deltas(merged.save(tmp_path / "out"))
    expected = 0.5 * pair[f"{Q}.lora_up.weight"].float() @ pair[f"{Q}.lora_down.weight"].float()
    same(found, {Q: expected})
    whole = merged.save(tmp_path / "half")
    assert load_file(whole)[f"{Q}.lora_up.weight"].dtype == torch.float32
