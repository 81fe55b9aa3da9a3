"""A folder with a tiny base and adapters of it, and the places that a page may reach there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli.conftest import loras, tiny_base

from samerge.ui.places import Places, named_folders

__all__ = ["loras", "tiny_base"]


@pytest.fixture
def shelf(tmp_path: Path, loras: Path, tiny_base: Path) -> Path:
    """`shelf/base`, `shelf/loras/math`, `shelf/loras/code`; beside it `outside/math`."""
    shutil.copytree(tiny_base, tmp_path / "shelf" / "base")
    for name in ("math", "code"):
        shutil.copytree(loras / name, tmp_path / "shelf" / "loras" / name)
    shutil.copytree(loras / "math", tmp_path / "outside" / "math")
    return tmp_path / "shelf"


@pytest.fixture
def places(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.chdir(shelf.parent)
    return named_folders([str(shelf)], own_login=True)
