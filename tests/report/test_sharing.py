"""What is pushed does not name the folders of the machine it was made on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from samerge.adapters.writer import write_text
from samerge.merging.verifying import verify
from samerge.report.card import model_card
from samerge.report.uploading import make_public, upload

from .records import RECORD


def test_local_folders_become_their_last_part(tmp_path: Path) -> None:
    base = tmp_path / "secret" / "my-base"
    record = {
        **RECORD.json(),
        "base": {"name": str(base)},
        "inputs": [
            {"name": "math", "source": str(tmp_path / "secret" / "a-lora")},
            {"name": "co|de", "source": "ada/b-lora"},
        ],
        "warnings": [f"another base than {base}"],
        "options": {"connectivity": "/secret/graph.json", "modules": {"a": {"b": [f"{base}/x"]}}},
        "left_out": {"x": f"not as in {base}"},
    }
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / "samerge.json").write_text(json.dumps(record))
    make_public(tmp_path, "ada/mine")
    said = json.loads((tmp_path / "samerge.json").read_text())
    assert "secret" not in json.dumps(said)
    assert said["base"]["name"] == "my-base"
    assert [item["source"] for item in said["inputs"]] == ["a-lora", "ada/b-lora"]
    assert said["warnings"] == ["another base than my-base"]
    assert said["options"] == {"connectivity": "graph.json", "modules": {"a": {"b": ["my-base/x"]}}}
    assert said["left_out"] == {"x": "not as in my-base"}


def test_the_bases_that_the_sources_name_are_concealed_too(tmp_path: Path) -> None:
    strange = "/home/ünknown/llama"
    inputs = (replace(RECORD.inputs[0], base_model=strange), RECORD.inputs[1])
    record = replace(RECORD, inputs=inputs, warnings=(f"trained on {strange}",))
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / "samerge.json").write_text(json.dumps(record.json(), ensure_ascii=False), encoding="utf-8")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": strange, "r": 2}))
    make_public(tmp_path, "ada/mine")
    for file in ("samerge.json", "adapter_config.json"):
        assert "home" not in (tmp_path / file).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {"base_model_name_or_path": "llama", "r": 2}
    assert "home" not in model_card(record)


@pytest.mark.parametrize("field", ["base_model_name_or_path", "model"])
def test_a_base_is_concealed_under_the_name_of_every_format(tmp_path: Path, field: str) -> None:
    """PEFT's, and MLX'."""
    write_text(tmp_path, RECORD.json(), "")
    (tmp_path / "adapter_config.json").write_text(json.dumps({field: "/home/ada/llama", "r": 2}))
    make_public(tmp_path, "ada/mine")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {field: "llama", "r": 2}


def test_a_base_on_the_hub_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    (tmp_path / "samerge.json").write_text(json.dumps(RECORD.json()))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "ada/llama"}')
    make_public(tmp_path, "ada/mine")
    assert (tmp_path / "adapter_config.json").read_text() == '{"base_model_name_or_path": "ada/llama"}'


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_the_card_says_where_it_will_be(tmp_path: Path, kind: str) -> None:
    """A card that someone wrote on keeps their words; the digest in the record is that of the new one."""
    output = replace(RECORD.output, kind=kind, rank=2 if kind == "adapter" else None)
    record = replace(RECORD, output=output)
    card = model_card(record) + "\nMine.\n"
    assert f'"path/or/repository-of-this-{kind}")' in card
    write_text(tmp_path, record.json(), card)
    make_public(tmp_path, "ada/mine")
    public = (tmp_path / "README.md").read_text()
    assert public == card.replace(f"path/or/repository-of-this-{kind}", "ada/mine")
    assert 'from_pretrained(base, "ada/mine")' in public or 'from_pretrained("ada/mine")' in public
    assert all(one.sound for one in verify(tmp_path) if one.what.startswith("output"))


def test_what_is_uploaded_is_concealed_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Path] = []

    def save(path: Path) -> Path:
        path.mkdir()
        write_text(path, {**RECORD.json(), "base": {"name": str(tmp_path)}}, "path/or/repository-of-this-adapter")
        return path

    def push(folder: Path, repo_id: str, ready: Callable[[str], object], **how: object) -> str:
        assert how == {"private": True}
        ready(f"ada/{repo_id}")  # the name in full is known when the repository is there
        assert folder.name == "adapter"
        assert json.loads((folder / "samerge.json").read_text())["base"]["name"] == tmp_path.name
        assert (folder / "README.md").read_text() == "ada/mine"
        found.append(folder)
        return "address"

    monkeypatch.setattr("samerge.weights.pushing.push_folder", push)
    assert upload(save, "adapter", "mine", private=True) == "address"
    assert not found[0].parent.exists()
