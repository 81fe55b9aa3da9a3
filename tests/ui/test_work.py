"""The work behind the page, without the page."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import load, load_file, save_file

import samerge
from samerge.errors import HubError, OptionError, OutputExistsError
from samerge.parallel.progress import Progress
from samerge.ui import work
from samerge.ui.bar import ToldProgress
from samerge.ui.places import Places

BOTH = ["loras/math", "loras/code"]


def looked(places: Places, base: str | None = "base", given: list[str] | None = None) -> work.Looked:
    return work.look(places, base, BOTH if given is None else given, Progress(False))


def tensors(merged: samerge.MergedAdapter) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in merged.tensors().items()}


def test_look(places: Places, shelf: Path) -> None:
    found = looked(places)
    assert found.names == ["math", "code"]
    assert all(report.mergeable for report in found.reports)
    assert found.source is not None
    assert found.conflicts is not None
    assert found.conflicts.names == ("math", "code")


@pytest.mark.parametrize(
    ("method", "options"),
    [(None, {}), (None, {"rank": "3", "scaling": "0.5"}), ("ties", {"density": "0.4"}), ("linear", {})],
)
def test_it_merges_as_merge_does(places: Places, shelf: Path, method: str | None, options: dict) -> None:
    one = work.merged(looked(places), [0.5, -1.0, 7.0], method, options, Progress(False))
    other = samerge.merge(
        str(shelf / "base"),
        {name: str(shelf / "loras" / name) for name in ("math", "code")},
        method=method,
        weights=[0.5, -1.0],
        progress=False,
        **options,
    )
    assert tensors(one) == tensors(other)
    assert one.report.record.options == other.report.record.options
    assert one.settings == other.settings


def test_without_a_base(places: Places) -> None:
    found = looked(places, base=" ")
    assert found.source is None
    merged = work.merged(found, [1, 1], None, {}, Progress(False))
    assert merged.report.record.method == "even"
    with pytest.raises(OptionError, match="reads the base model"):
        work.merged(found, [1, 1], "saliency", {}, Progress(False))


def test_merging_twice_is_merging_once(places: Places) -> None:
    found = looked(places)
    work.merged(found, [1, 0.1], None, {}, Progress(False))
    again = work.merged(found, [1, 1], None, {}, Progress(False))
    assert tensors(again) == tensors(work.merged(looked(places), [1, 1], None, {}, Progress(False)))


def test_progress_is_told(places: Places) -> None:
    told: list[tuple[str, int, int]] = []
    bars = ToldProgress(lambda *one: told.append(one))
    work.merged(work.look(places, "base", BOTH, bars), [1, 1], None, {}, bars)
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[:2] == ["reading", "comparing"]
    assert "merging" in stages
    assert all(0 <= done <= total for _, done, total in told)
    for stage in ("reading", "merging"):
        assert [(done, total) for name, done, total in told if name == stage][-1] in ((3, 3), (4, 4))


def test_progress_is_told_in_steps() -> None:
    told: list[int] = []
    with ToldProgress(lambda stage, done, total: told.append(done)).task("long", 10_000) as advance:
        for _ in range(10_000):
            advance(1)
    assert told == list(range(0, 10_001, 100))


@pytest.mark.parametrize(
    ("given", "told"),
    [([], "choose at least one"), (None, "No adapter"), ([f"ada/a{n}" for n in range(17)], "this page takes 16")],
)
def test_how_many(places: Places, given: list[str] | None, told: str) -> None:
    with pytest.raises(OptionError, match="choose at least one" if given is None else told):
        work.look(places, "", given, Progress(False))


def test_one_that_cannot_be_read(places: Places, shelf: Path) -> None:
    broken = shelf / "loras" / "broken"
    shutil.copytree(shelf / "loras" / "math", broken)
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    found = looked(places, given=[*BOTH, "loras/broken"])
    assert [report.mergeable for report in found.reports] == [True, True, False]
    assert found.conflicts is None
    with pytest.raises(OptionError, match="cannot be read"):
        work.merged(found, [1, 1, 1], None, {}, Progress(False))


def test_those_that_cannot_be_compared(places: Places, shelf: Path) -> None:
    dora = shutil.copytree(shelf / "loras" / "math", shelf / "loras" / "dora")
    config = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    file = dora / "adapter_model.safetensors"
    more = {
        key.replace(".lora_B.weight", ".lora_magnitude_vector"): tensor[:, 0].abs()
        for key, tensor in load_file(file).items()
        if "lora_B" in key
    }
    save_file({**load_file(file), **more}, file)
    found = looked(places, given=["loras/math", "loras/dora"])
    assert found.conflicts is None
    assert "it is a DoRA adapter" in found.apart


def test_two_of_one_name(places: Places, shelf: Path) -> None:
    shutil.copytree(shelf / "loras" / "code", shelf / "other" / "math")
    assert looked(places, given=["loras/math", "other/math"]).names == ["math", "math-2"]


def test_packed(places: Places, tmp_path: Path) -> None:
    merged = work.merged(looked(places), [1, 1], None, {}, Progress(False))
    file = work.packed(merged, tmp_path / "scratch")
    assert [path.name for path in file.parent.iterdir()] == ["merged.zip"]
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == [
            f"merged/{name}"
            for name in ("README.md", "adapter_config.json", "adapter_model.safetensors", "samerge.json")
        ]
        found = load(archive.read("merged/adapter_model.safetensors"))
    assert {name: tensor.tolist() for name, tensor in found.items()} == tensors(merged)
    assert work.packed(merged, tmp_path / "scratch") != file


def test_a_pack_that_fails_leaves_nothing(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = work.merged(looked(places), [1, 1], None, {}, Progress(False))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(OSError, match="No space"):
        work.packed(merged, tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_saved(places: Places, shelf: Path) -> None:
    merged = work.merged(looked(places), [1, 1], None, {}, Progress(False))
    assert work.saved(places, merged, "new/merged") == shelf / "new" / "merged"
    assert (shelf / "new" / "merged" / "samerge.json").is_file()
    with pytest.raises(OutputExistsError):
        work.saved(places, merged, "new/merged")
    with pytest.raises(OutputExistsError):
        work.saved(places, merged, "loras/math")
    with pytest.raises(OptionError):
        work.saved(places, merged, "../merged")
    assert not (shelf.parent / "merged").exists()


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None, bool | None]]:
    found = []

    def push(folder: Path, repository: str, **options: object) -> str:
        found.append((repository, options["token"], options["private"]))
        return f"https://hub/{repository}"

    monkeypatch.setattr("samerge.weights.pushing.push_folder", push)
    return found


def test_pushed(places: Places, pushes: list) -> None:
    merged = work.merged(looked(places), [1, 1], None, {}, Progress(False))
    assert work.pushed(places, merged, " ada/merged ", "", True) == "https://hub/ada/merged"
    assert work.pushed(places, merged, "ada/merged", " hf_mine ", False) == "https://hub/ada/merged"
    assert pushes == [("ada/merged", None, True), ("ada/merged", "hf_mine", None)]
    strangers = Places(places.folders, own_login=False)
    with pytest.raises(OptionError, match="needs an access token of yours"):
        work.pushed(strangers, merged, "ada/merged", "", True)
    for wrong in ("", "a/b/c", "../x", "a b"):
        with pytest.raises(OptionError, match="must be the name of a repository"):
            work.pushed(places, merged, wrong, "hf_mine", True)
    assert len(pushes) == 2


def test_a_push_that_is_refused(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    merged = work.merged(looked(places), [1, 1], None, {}, Progress(False))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError):
        work.pushed(places, merged, "ada/merged", "hf_mine", True)
