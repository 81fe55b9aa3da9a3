"""Where an adapter is found: a folder, a file, a sub-folder, a checkpoint, one file of a repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import Beast
from written_out import deltas, kohya, kohya_deltas, same

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


def test_no_lora_at_all(llama: Beast):
    with pytest.raises(AdapterError, match=r"model\.safetensors is of no format .*kohya.*Is it a LoRA\?"):
        read_any(llama.folder / "model.safetensors", "base")
