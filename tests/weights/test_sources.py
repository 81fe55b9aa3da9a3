"""Folders and live models as sources of base weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import Beast, chain, write_base

from samerge.errors import BaseModelError
from samerge.weights import FolderSource, ModelSource, matrix_shape, read_tile


def whole(source, name: str) -> torch.Tensor:
    return source.read(name, 0, source.shapes[name][0])


def test_a_folder_and_its_model_hold_the_same(llama: Beast):
    folder, model = FolderSource(llama.folder), ModelSource(llama.model())
    assert folder.shapes == model.shapes
    assert folder.name == model.name == llama.base
    assert folder.config["model_type"] == model.config["model_type"] == "llama"
    for name in folder.shapes:
        assert torch.equal(whole(folder, name), whole(model, name))
        assert folder.dtype(name) == model.dtype(name) == torch.float32


def test_a_peft_model_is_read_below_its_adapters(beast: Beast):
    plain, wrapped = ModelSource(beast.model()), ModelSource(beast.peft_model())
    assert plain.shapes == wrapped.shapes
    for name in plain.shapes:
        assert torch.equal(whole(plain, name), whole(wrapped, name))


def test_shards(llama: Beast, tmp_path):
    model = llama.model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    one, many = FolderSource(llama.folder), FolderSource(tmp_path)
    assert one.shapes == many.shapes
    assert all(torch.equal(whole(one, name), whole(many, name)) for name in one.shapes)
    next(iter(tmp_path.glob("model-00002*"))).unlink()
    with pytest.raises(BaseModelError, match=r"the index names the shard model-00002.*fetch the missing file"):
        FolderSource(tmp_path)


def test_a_tensor_that_an_index_forgot_is_no_trap(llama: Beast, tmp_path):
    """What counts is the tensors that exist."""
    llama.model().save_pretrained(tmp_path, max_shard_size="20KB")
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    forgotten = sorted(index["weight_map"])[0]
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if k != forgotten}
    file.write_text(json.dumps(index))
    assert FolderSource(tmp_path).shapes == FolderSource(llama.folder).shapes


def test_folders_that_are_no_base(llama: Beast, tmp_path):
    with pytest.raises(BaseModelError, match=r"there is no config\.json in .*save_pretrained"):
        FolderSource(tmp_path)
    shutil.copy(llama.folder / "config.json", tmp_path)
    with pytest.raises(BaseModelError, match=r"no safetensors weights in .*expected model\.safetensors or"):
        FolderSource(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(BaseModelError, match=r"it has \['pytorch_model\.bin'\]; load it once with transformers"):
        FolderSource(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(BaseModelError, match="not a safetensors file, or truncated"):
        FolderSource(tmp_path)


def in_tiles(source, tensor: str, expert: int | None, step: int, dtype=torch.float32) -> torch.Tensor:
    """All rows of a matrix, read a few at a time."""
    rows, _ = matrix_shape(source.shapes[tensor], expert)
    tiles = [
        read_tile(source, tensor, expert, start, min(start + step, rows), torch.device("cpu"), dtype)
        for start in range(0, rows, step)
    ]
    assert [len(tile) for tile in tiles] == [min(step, rows - start) for start in range(0, rows, step)]
    return torch.cat(tiles)


@pytest.mark.parametrize("step", [1, 2, 3, 10, 11])
def test_tiles_are_the_rows_asked_for(tmp_path, step):
    base = chain([6, 11])
    source = FolderSource(write_base(tmp_path, base))
    found = in_tiles(source, "layers.0.weight", None, step, torch.float64)
    assert torch.equal(found, base["layers.0.weight"].double())


def test_one_matrix_of_a_stack_and_a_kernel(tmp_path):
    tensors = {"stack": torch.arange(24.0).reshape(2, 3, 4), "kernel": torch.arange(60.0).reshape(5, 3, 2, 2)}
    source = FolderSource(write_base(tmp_path, tensors))
    assert matrix_shape((2, 3, 4), 1) == (3, 4)
    assert matrix_shape((5, 3, 2, 2), None) == (5, 12)
    assert torch.equal(in_tiles(source, "stack", 1, 1), tensors["stack"][1])
    assert torch.equal(in_tiles(source, "kernel", None, 2), tensors["kernel"].reshape(5, 12))


def test_half_precision_is_stored_as_it_is_and_computed_wider(tmp_path):
    base = {name: tensor.bfloat16() for name, tensor in chain([4, 5]).items()}
    source = FolderSource(write_base(tmp_path, base))
    assert source.dtype("layers.0.weight") == torch.bfloat16
    tile = read_tile(source, "layers.0.weight", None, 0, 5, torch.device("cpu"), torch.float32)
    assert torch.equal(tile, base["layers.0.weight"].float())
    assert load_file(tmp_path / "model.safetensors")["layers.0.weight"].dtype == torch.bfloat16


def test_tied_weights_of_a_model_are_read_once():
    module = torch.nn.Module()
    module.embed = torch.nn.Embedding(7, 4)
    module.head = torch.nn.Linear(4, 7, bias=False)
    module.head.weight = module.embed.weight
    assert len(ModelSource(module).shapes) == 1


def test_a_model_without_values():
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(3, 4))
    with pytest.raises(BaseModelError, match=r"0\.weight is on the meta device .*checkpoint's folder or hub id"):
        ModelSource(module)
