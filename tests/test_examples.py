"""The demo and the notebook, on the real adapters."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"

pytest.importorskip("all_minilm_l6_v2")


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    module = importlib.import_module("demo")
    monkeypatch.setattr(module, "WORK", tmp_path)
    return module


@pytest.mark.slow
def test_demo(demo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with warnings.catch_warnings():
        demo.main()
    shown = capsys.readouterr().out
    assert "4 adapters merged" in shown
    assert "4 adapters, 5.1 MiB -> 1 adapter, 1.3 MiB" in shown
    answers = demo._answers(tmp_path / "all-MiniLM-L6-v2", {"merged": tmp_path / "merged"})
    right = {column: demo._right(column_answers) for column, column_answers in answers.items()}
    assert right["merged"] > right["base"]  # on the demo's own sentences, as shown
    assert "PEFT svd" in shown
    assert "SA-Merging as published" in shown
    said = (
        f"the four adapters answer {right['own adapter']} as a reader would, the one merged adapter {right['merged']}, "
    )
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{said}the base model alone {right['base']}." in readme


def executed(book: dict[str, Any]) -> dict[str, object]:
    """The names that a notebook's code leaves behind."""
    space: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for cell in book["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), space)
    return space


@pytest.mark.slow
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    # the notebook finds the project above the current folder and writes into its .demo: give it a project of its own
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # so that what the notebook adds to sys.path goes again
    space = executed(book)
    assert space["merged"].report.record.output.rank == 16  # type: ignore[attr-defined]
    assert space["exact"].report.record.output.rank == 64  # type: ignore[attr-defined]
    assert "feelings" in space["model"].peft_config  # type: ignore[attr-defined]


@pytest.mark.slow
def test_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own steps give what samerge gives: the notebook itself compares them."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    book = json.loads((ROOT / "notebooks" / "step_by_step.ipynb").read_text(encoding="utf-8"))
    space = executed(book)
    importlib.import_module("matplotlib.pyplot").close("all")
    assert set(space["merged"]) == {"first", "second"}  # type: ignore[call-overload]
