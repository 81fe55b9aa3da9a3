"""What is still as the record says, and what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import Beast

import samerge
from samerge.errors import AdapterError
from samerge.graph import build_graph
from samerge.merging.verifying import verify
from samerge.weights import FolderSource


@pytest.fixture
def made(llama: Beast, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A merge, and copies of the adapters that it was made of."""
    sources = {name: str(shutil.copytree(path, tmp_path / name)) for name, path in llama.adapters.items()}
    merged = samerge.merge(llama.base, sources, weights={"math": 1.0, "code": 0.5, "talk": -0.25}, progress=False)
    return merged.save(tmp_path / "merged"), sources


def test_all_is_as_recorded(made) -> None:
    found = verify(made[0], reproduce=True)
    assert [one.what for one in found] == [
        *("output README.md", "output adapter_config.json", "output adapter_model.safetensors"),
        *("input math", "input code", "input talk", "merged again"),
    ]
    assert all(one.sound for one in found), found


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json", "adapter_model.safetensors"])
def test_an_output_that_was_changed(made, name: str) -> None:
    with open(made[0] / name, "ab") as stream:
        stream.write(b" ")
    assert [one.what for one in verify(made[0]) if not one.sound] == [f"output {name}"]
    (made[0] / name).unlink()
    [one] = [one for one in verify(made[0]) if not one.sound]
    assert one.told.endswith("is gone")


def test_an_input_that_was_changed_is_told_and_merges_to_something_else(made) -> None:
    folder, sources = made
    file = Path(sources["code"]) / "adapter_model.safetensors"
    tensors = load_file(file)
    key = min(tensors)
    tensors[key] = tensors[key] * 3
    save_file(tensors, file)
    found = {one.what: one for one in verify(folder, reproduce=True)}
    assert [what for what, one in found.items() if not one.sound] == ["input code", "merged again"]
    assert "is another one now" in found["input code"].told
    assert "differ by at most" in found["merged again"].told


def test_an_extracted_adapter_names_the_files_of_its_checkpoint(llama: Beast, tmp_path: Path) -> None:
    tuned = shutil.copytree(llama.base, tmp_path / "tuned")
    file = tuned / "model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "q_proj" in key)
    save_file({**tensors, key: tensors[key] + 0.1}, file, {"format": "pt"})
    out = samerge.extract_adapter(llama.base, tuned, 2, progress=False).save(tmp_path / "out")
    assert next(one for one in verify(out) if one.what == "input tuned").sound is True
    save_file({**tensors, key: tensors[key] + 0.2}, file, {"format": "pt"})
    assert next(one for one in verify(out) if one.what == "input tuned").sound is False
    record = json.loads((out / "samerge.json").read_text())
    del record["inputs"][0]["sha256"]
    (out / "samerge.json").write_text(json.dumps(record))
    told = next(one for one in verify(out) if one.what == "input tuned").told
    assert told == "the record has no digest of it; an older version wrote it"


def test_an_input_that_is_not_here_cannot_be_told(made) -> None:
    folder, sources = made
    shutil.rmtree(sources["code"])
    found = {one.what: one.sound for one in verify(folder, reproduce=True)}
    assert found["input code"] is None
    assert found["merged again"] is None


def again(folder: Path) -> tuple[bool | None, str]:
    """What is said of the merge that was made again, where all else is sound or cannot be told."""
    *others, last = verify(folder, reproduce=True)
    assert last.what == "merged again"
    assert not [one for one in others if one.sound is False]
    return last.sound, last.told


def test_an_input_that_was_in_memory_cannot_be_told(llama: Beast, tmp_path: Path) -> None:
    first = samerge.merge(None, llama.adapters, method="linear", progress=False)
    sources = {"first": first, "math": llama.adapters["math"]}
    out = samerge.merge(None, sources, method="linear", progress=False).save(tmp_path / "out")
    assert again(out) == (None, "it cannot be made again: the adapter first was in memory")


def test_adapters_on_a_live_model_cannot_be_told(llama: Beast, tmp_path: Path) -> None:
    model = PeftModel.from_pretrained(llama.model(), llama.adapters["math"], adapter_name="math")
    out = samerge.merge(model, ["math"], method="linear", progress=False).save(tmp_path / "out")
    assert again(out) == (None, "it cannot be made again: the adapter math was in memory")


@pytest.mark.parametrize("changed", [False, True])
def test_a_live_base_can_only_be_told_where_it_is_as_its_files(llama: Beast, tmp_path: Path, changed: bool) -> None:
    model = llama.model()
    for parameter in model.parameters() if changed else ():
        parameter.data.add_(torch.randn(parameter.shape))
    out = samerge.merge(model, llama.adapters, rank=2, progress=False).save(tmp_path / "out")
    sound, told = again(out)
    assert sound is (None if changed else True)
    assert told.endswith("its base was a model in memory, which may not have been that of files") is changed
    model.config._name_or_path = ""
    out = samerge.merge(model, llama.adapters, rank=2, progress=False).save(tmp_path / "other")
    assert again(out)[0] is None


def test_a_flow_graph_of_ones_own_cannot_be_told(llama: Beast, tmp_path: Path) -> None:
    source = FolderSource(llama.base)
    graph = build_graph(source.config, source.shapes)
    out = samerge.merge(llama.base, llama.adapters, connectivity=graph, progress=False).save(tmp_path / "out")
    sound, told = again(out)
    assert sound is None
    assert "its flow graph was one of the user's own" in told


def test_a_merge_of_checkpoints_as_an_adapter_is_not_made_again(llama: Beast, tmp_path: Path) -> None:
    tuned = shutil.copytree(llama.base, tmp_path / "tuned")
    tensors = load_file(tuned / "model.safetensors")
    moved = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in tensors.items()}
    save_file(moved, tuned / "model.safetensors", {"format": "pt"})
    for outside in ("average", "base"):
        merged = samerge.merge_full(llama.base, {"tuned": str(tuned)}, iterations=1, outside=outside, progress=False)
        out = merged.as_lora(2).save(tmp_path / outside)
        assert again(out) == (None, "only merges of adapters are made again")


def test_an_option_of_another_version_cannot_be_told(made) -> None:
    file = made[0] / "samerge.json"
    record = json.loads(file.read_text())
    record["options"]["gone"] = 3
    file.write_text(json.dumps(record))
    sound, told = again(made[0])
    assert sound is None
    assert "no option 'gone'" in told


def test_an_output_that_cannot_be_read_is_no_question(made) -> None:
    (made[0] / "adapter_model.safetensors").write_bytes(b"?")
    assert [one.what for one in verify(made[0], reproduce=True) if one.sound is False] == [
        "output adapter_model.safetensors",
        "merged again",
    ]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("what", ["base", "code"])
def test_the_hub_is_not_asked(llama: Beast, made, what: str, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read from the Hub is looked for in its cache alone."""
    folder, sources = made
    record = json.loads((folder / "samerge.json").read_text())
    if what == "base":
        record["base"]["name"] = "ada/on-the-hub"
    else:
        record["inputs"][1]["source"] = "ada/on-the-hub"
    (folder / "samerge.json").write_text(json.dumps(record))
    offline = []

    def snapshot(repo: str, local_files_only: bool = False, **options: object) -> str:
        offline.append(local_files_only)
        if cached:
            return llama.base if what == "base" else sources[what]
        raise LocalEntryNotFoundError(f"{repo} is not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert again(folder)[0] is (True if cached else None)
    assert offline
    assert all(offline)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("inputs"), "does not say inputs"),
        (lambda r: r.update(inputs=[3]), "inputs="),
        (lambda r: r["inputs"][0].update(name=3), "name=3; it must be a text"),
        (lambda r: r.update(files=["x"]), "files="),
    ],
)
def test_a_record_that_is_none(made, change, words: str) -> None:
    file = made[0] / "samerge.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    with pytest.raises(AdapterError, match=words):
        verify(made[0])


def test_a_record_that_names_files_elsewhere(made) -> None:
    file = made[0] / "samerge.json"
    record = json.loads(file.read_text())
    record["files"] = {"../math/adapter_config.json": "0"}
    file.write_text(json.dumps(record))
    assert "no file of the folder" in verify(made[0])[0].told


def test_a_folder_without_a_record(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"there is no samerge\.json in it"):
        verify(tmp_path)
