"""What is still as the record says, and what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny import Beast

import samerge
from samerge.errors import AdapterError
from samerge.merging.verifying import verify


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
    assert found["merged again"] is False


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
