"""What is pushed does not name the folders of the machine it was made on."""

import json
from dataclasses import replace
from pathlib import Path

from samerge.report.card import model_card
from samerge.report.sharing import conceal, shareable

from .records import RECORD


def test_local_folders_become_their_last_part(tmp_path: Path) -> None:
    base = tmp_path / "secret" / "my-base"
    base.mkdir(parents=True)
    record = {
        **RECORD.json(),
        "base": {"name": str(base)},
        "inputs": [
            {"name": "math", "source": str(tmp_path / "secret" / "a-lora")},
            {"name": "co|de", "source": "ada/b-lora"},
        ],
        "warnings": [f"another base than {base}"],
    }
    (tmp_path / "samerge.json").write_text(json.dumps(record))
    conceal(tmp_path)
    said = json.loads((tmp_path / "samerge.json").read_text())
    assert "secret" not in json.dumps(said)
    assert said["base"]["name"] == "my-base"
    assert [item["source"] for item in said["inputs"]] == ["a-lora", "ada/b-lora"]
    assert said["warnings"] == ["another base than my-base"]


def test_the_bases_that_the_sources_name_are_concealed_too(tmp_path: Path) -> None:
    strange = "/home/ünknown/llama"
    inputs = (replace(RECORD.inputs[0], base_model=strange), RECORD.inputs[1])
    record = replace(RECORD, inputs=inputs, warnings=(f"trained on {strange}",))
    (tmp_path / "samerge.json").write_text(json.dumps(record.json(), ensure_ascii=False), encoding="utf-8")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": strange, "r": 2}))
    conceal(tmp_path)
    for file in ("samerge.json", "adapter_config.json"):
        assert "home" not in (tmp_path / file).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {"base_model_name_or_path": "llama", "r": 2}
    assert "home" not in model_card(record)


def test_a_base_on_the_hub_stays(tmp_path: Path) -> None:
    (tmp_path / "samerge.json").write_text(json.dumps(RECORD.json()))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "ada/llama"}')
    conceal(tmp_path)
    assert (tmp_path / "adapter_config.json").read_text() == '{"base_model_name_or_path": "ada/llama"}'


def test_a_shareable_folder_is_concealed_and_goes(tmp_path: Path) -> None:
    def save(path: Path) -> Path:
        path.mkdir()
        (path / "samerge.json").write_text(json.dumps({**RECORD.json(), "base": {"name": str(tmp_path)}}))
        return path

    with shareable(save, "adapter") as folder:
        assert folder.name == "adapter"
        assert json.loads((folder / "samerge.json").read_text())["base"]["name"] == tmp_path.name
    assert not folder.parent.exists()
