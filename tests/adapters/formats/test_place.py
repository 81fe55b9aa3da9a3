"""Where an adapter is found: a folder, a file, a sub-folder, a checkpoint, one file of a repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import Beast
from written_out import deltas, kohya, kohya_deltas, random, same, write

from samerge.adapters.formats.table import read_any
from samerge.errors import AdapterError


def test_a_folder_with_one_file(tmp_path):
    path = kohya(tmp_path / "style", "anything")
    same(deltas(read_any(tmp_path / "style", "style")), kohya_deltas(path))


def test_a_file_with_a_configuration_that_is_none_of_its_own(llama: Beast, tmp_path):
    """Keys say what a file is, whatever lies beside it."""
    path = Path(kohya(tmp_path / "style", "adapter_model"))
    shutil.copyfile(Path(llama.adapters["math"]) / "adapter_config.json", path.parent / "adapter_config.json")
    for given in (path, path.parent):
        adapter = read_any(given, "style")
        assert adapter.format == "kohya"
        same(deltas(adapter), kohya_deltas(path))


def test_pefts_file_beside_its_configuration(llama: Beast, tmp_path):
    expected = deltas(read_any(llama.adapters["math"], "math"))
    folder = tmp_path / "math"
    shutil.copytree(llama.adapters["math"], folder)
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    for given in (folder / "other.safetensors", folder):
        same(deltas(read_any(given, "math")), expected)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json in "):
        read_any(folder / "other.safetensors", "math")


@pytest.mark.parametrize("below", ["code", "checkpoint-500"])
def test_the_only_sub_folder(llama: Beast, tmp_path, below):
    shutil.copytree(llama.adapters["math"], tmp_path / "run" / below)
    (tmp_path / "run" / "logs").mkdir()
    same(deltas(read_any(tmp_path / "run", "math")), deltas(read_any(llama.adapters["math"], "math")))
    shutil.copytree(llama.adapters["math"], tmp_path / "run" / "checkpoint-900")
    with pytest.raises(AdapterError, match=r"in several folders of it, checkpoint-.*; give one of them"):
        read_any(tmp_path / "run", "math")


def test_several_files(tmp_path):
    for name in ("a", "b"):
        kohya(tmp_path, name)
    with pytest.raises(AdapterError, match=r"several files of weights, a\.safetensors, b\.safetensors; give one"):
        read_any(tmp_path, "style")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("lora_unet_x.a1.weight", "lora_unet_x.b2.weight"), "is GLoRA of LyCORIS; merge it into its base model"),
        (("lora_unet_x.on_input", "lora_unet_x.weight"), r"is \(IA\)\^3 of LyCORIS"),
        (("lora_unet_x.oft_blocks", "lora_unet_x.alpha"), "is OFT or BOFT"),
        (("lora_unet_x.diff", "lora_unet_x.diff_b"), "is whole weights' changes, none of them a LoRA.*samerge extract"),
        (("double_blocks.0.processor.qkv_lora1.down.weight",), r"is XLabs' LoRA of Flux; .*pipe\.load_lora_weights"),
        (("emb_params",), "is a textual inversion.*changes no weight"),
        (("clip_g", "clip_l"), "is a textual inversion"),
    ],
)
def test_what_else_is_shared_as_a_lora_is_told_by_its_name(keys, told, tmp_path):
    path = write(tmp_path, "a", {key: random(4, 4) for key in keys})
    with pytest.raises(AdapterError, match=told):
        read_any(path, "a")


def test_what_lies_beside_a_lora_is_told_by_what_it_is(tmp_path):
    """Distilled LoRAs of Wan, with biases and norms that ComfyUI adds to the base's."""
    stem = "diffusion_model.blocks.0"
    tensors = {f"{stem}.self_attn.q.lora_down.weight": random(2, 4), f"{stem}.self_attn.q.lora_up.weight": random(4, 2)}
    tensors |= {f"{stem}.self_attn.q.diff_b": random(4), f"{stem}.norm3.diff": random(4)}
    with pytest.raises(
        AdapterError, match=r"norm3\.diff'.* \(biases and whole weights of the base were trained, too\)"
    ):
        read_any(write(tmp_path, "wan", tensors), "wan")


def test_no_lora_at_all(llama: Beast):
    with pytest.raises(
        AdapterError,
        match=r"model\.safetensors is of no format .*kohya.*Is it a LoRA\? Of a whole model samerge extract",
    ):
        read_any(llama.folder / "model.safetensors", "base")
