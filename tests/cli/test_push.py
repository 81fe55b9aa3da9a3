"""`samerge push`: from the folder what a push of the merge itself uploads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import samerge
from samerge.errors import HubError
from samerge.report.card import model_card
from samerge.report.report import read_report


@pytest.fixture
def uploaded(monkeypatch, tmp_path) -> list[tuple[Path, str, dict]]:
    """What was to be uploaded, kept."""
    found = []

    def push(folder, repo_id, ready, **options):
        ready(repo_id)
        kept = tmp_path / f"uploaded-{len(found)}"
        shutil.copytree(folder, kept)
        found.append((kept, repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr("samerge.weights.pushing.push_folder", push)
    return found


def test_it_uploads_what_the_merge_would_have(invoke, loras, tiny_base, uploaded, tmp_path) -> None:
    merged = samerge.merge(tiny_base, [str(loras / "math"), str(loras / "code")], progress=False)
    merged.save(tmp_path / "out")
    (tmp_path / "out" / "diary.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    merged.push_to_hub("ada/one", private=True)
    result = invoke("push", "out", "ada/one", "--private", "--commit-message", "mine")
    assert result.exit_code == 0, result.output
    assert "https://huggingface.co/ada/one" in result.stdout
    (one, _, options), (other, repo_id, given) = uploaded
    assert repo_id == "ada/one"
    assert given == {**options, "commit_message": "mine", "revision": None, "create_pr": False}
    names = sorted(path.name for path in one.iterdir())
    assert sorted(path.name for path in other.iterdir()) == names
    for name in names:
        text, own = (one / name).read_bytes(), (other / name).read_bytes()
        assert text == own, name
        assert str(loras).encode() not in own
    assert 'PeftModel.from_pretrained(base, "ada/one")' in (one / "README.md").read_text()
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert json.loads(invoke("push", "out", "ada/one", "--json").stdout)["url"].endswith("ada/one")


def test_local_folders_from_another_folder(invoke, loras, tiny_base, uploaded, tmp_path, monkeypatch) -> None:
    """Relative names look like repositories where the folders are not."""
    home = tmp_path / "home"
    shutil.copytree(tiny_base, home / "models" / "base")
    for name in ("math", "code"):
        config = json.loads((shutil.copytree(loras / name, home / "loras" / name) / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "models/base"
        (home / "loras" / name / "adapter_config.json").write_text(json.dumps(config))
    monkeypatch.chdir(home)
    samerge.merge("models/base", ["loras/math", "loras/code"], progress=False).save("out")
    samerge.merge(None, ["loras/math", "loras/code"], method="linear", progress=False).save("without")
    samerge.bake("models/base", ["loras/math"], progress=False).save("baked")
    samerge.merge_full("models/base", ["models/base"], iterations=1, progress=False).save("whole")
    for name in ("out", "without", "baked", "whole"):
        monkeypatch.chdir(home)
        assert invoke("push", name, "ada/one").exit_code == 0
        monkeypatch.chdir(tmp_path)
        assert invoke("push", home / name, "ada/one").exit_code == 0
        one, other = (kept for kept, _, _ in uploaded[-2:])
        for file in other.glob("*.*[nd]"):  # README.md and JSON
            text = file.read_text()
            assert text == (one / file.name).read_text()
            assert "models/base" not in text
            assert "loras/" not in text
            assert "huggingface.co" not in text
        told = read_report(other).record
        assert told.base.name in ("base", None)
        again = model_card(told)  # whoever reads what was pushed takes no folder for a repository either
        assert "huggingface.co" not in again
        assert "base_model" not in again


def test_a_file(invoke, uploaded, tmp_path) -> None:
    stem = "lora_unet_down_blocks_0_attentions_0_proj_in"
    (tmp_path / "mine").mkdir()
    save_file(
        {f"{stem}.lora_down.weight": torch.ones(2, 4), f"{stem}.lora_up.weight": torch.ones(4, 2)},
        tmp_path / "mine" / "style.safetensors",
    )
    merged = samerge.merge(None, [str(tmp_path / "mine" / "style.safetensors")], method="linear", progress=False)
    saved = merged.save(tmp_path / "out")
    merged.push_to_hub("ada/style")
    result = invoke("push", saved, "ada/style")
    assert result.exit_code == 0, result.output
    (one, _, _), (other, _, _) = uploaded
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    assert load_file(one / "merged.safetensors").keys() == load_file(other / "merged.safetensors").keys()
    assert str(tmp_path).encode() not in b"".join(path.read_bytes() for path in other.iterdir())
    assert read_report(other).record.output == read_report(one).record.output
    assert "put ada/style where" in (one / "README.md").read_text() == (other / "README.md").read_text()


def test_what_cannot_be_pushed(invoke, loras, uploaded, tmp_path) -> None:
    for words, told in (
        (("push", loras / "math", "ada/x"), "was this made by samerge?"),
        (("push", tmp_path / "nothing", "ada/x"), "was this made by samerge?"),
        (("push", loras / "math", "a/b/c"), "error: 'a/b/c': a repository id is"),
        (("push", loras / "math", "ada/x", "--create-pr", "--revision", "v2"), "leave one of them out"),
    ):
        result = invoke(*words)
        assert result.exit_code == 2
        assert told in " ".join(result.output.split())
    samerge.merge(None, [str(loras / "math")], method="linear", progress=False).save(tmp_path / "out")
    (tmp_path / "out" / "README.md").unlink()
    assert "'README.md', which is not in it" in invoke("push", "out", "ada/x").output
    assert not uploaded


def test_a_merge_that_could_not_be_pushed_says_how(invoke, tiny_base, loras, monkeypatch) -> None:
    def push(self, repo_id, **options):
        raise HubError("pushing to ada/merged: the Hub is offline")

    monkeypatch.setattr("samerge.merging.merged_adapter.MergedAdapter.push_to_hub", push)
    result = invoke("merge", "-b", tiny_base, "-a", loras / "math", "--push-to-hub", "ada/merged", "-o", "out")
    assert result.exit_code == 2
    assert "samerge push out ada/merged pushes it from there" in " ".join(result.output.split())
