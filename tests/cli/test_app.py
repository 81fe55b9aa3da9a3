from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import samerge
import samerge.cli
from samerge.cli.exit_codes import Terminated, guarded
from samerge.errors import AdapterError, OutputExistsError

from .conftest import shell

HEAVY = ("torch", "transformers", "peft", "numpy", "huggingface_hub")


@pytest.mark.parametrize("words", [["--help"], ["merge", "--help"], ["run", "-h"], ["inspect", "-h"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom samerge.cli import app\n"
        f"try:\n    app({words!r}, prog_name='samerge')\nfinally:\n"
        f"    print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.strip() == "[]"


def test_help_teaches(tmp_path: Path) -> None:
    done = shell("--help", cwd=tmp_path)
    assert done.returncode == 0
    for words in (
        "samerge merge --base meta-llama/Llama-3.1-8B",
        "--adapter math=ada/math-lora --adapter code=./code-lora:0.8",
        "samerge inspect merged/",
        "samerge run recipe.yaml",
        "Exit codes: 0 done",
    ):
        assert words in done.stdout


def test_version_both_ways(tmp_path: Path) -> None:
    assert shell("--version", cwd=tmp_path).stdout == f"samerge {samerge.__version__}\n"
    script = Path(sys.executable).with_name("samerge")
    if script.exists():
        done = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout == f"samerge {samerge.__version__}\n"


def test_no_command_shows_the_help(tmp_path: Path) -> None:
    assert "samerge merge --base" in CliRunner().invoke(samerge.cli.app, []).output


def run_raising(error: BaseException):
    app = typer.Typer(pretty_exceptions_enable=False)

    def command() -> None:
        raise error

    app.command()(guarded(command))
    return CliRunner().invoke(app, [])


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (AdapterError("the [bold] adapter\nis broken"), 2, "error: the [bold] adapter\nis broken\n"),
        (OutputExistsError("taken"), 2, "error: taken\n"),
        (KeyboardInterrupt(), 130, "interrupted: "),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device: the disk is full"),
        (FileNotFoundError(2, "No such file", "/x/out"), 1, "error: [Errno 2] No such file: '/x/out': it is not there"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: [Errno 13] Permission denied: '/x': you may not"),
        (MemoryError(), 1, "error: there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 GB"), 1, "error: there is not enough memory"),
        (Terminated(15), 143, "ended: by SIGTERM"),
        (AdapterError("a\x1b[2Jb"), 2, "error: a\\x1b[2Jb"),
        (ZeroDivisionError("by [zero]"), 1, "Traceback"),
        (typer.BadParameter("no"), 2, ""),
        (typer.Exit(7), 7, ""),
    ],
)
def test_exit_codes(error: BaseException, code: int, start: str, monkeypatch) -> None:
    monkeypatch.delenv("SAMERGE_TRACEBACK", raising=False)
    result = run_raising(error)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(start)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_asks_to_end_lets_everything_clean_up(number: int) -> None:
    cleaned = []

    def command() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            cleaned.append(True)

    before = signal.getsignal(number)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(guarded(command))
    assert CliRunner().invoke(app, []).exit_code == 128 + number
    assert cleaned
    assert signal.getsignal(number) is before


def test_unexpected_says_where_to_turn() -> None:
    last = run_raising(ZeroDivisionError("by [zero]")).stderr.strip().splitlines()[-1]
    assert last.startswith("error: unexpected ZeroDivisionError: by [zero].")
    assert "report it with the traceback above" in last


def test_methods_can_be_called_before_and_after_its_package_is_imported(tmp_path: Path) -> None:
    code = (
        "import samerge; a = list(samerge.available_methods()); import samerge.merging.merge_adapters; "
        "assert a == list(samerge.available_methods()) != []"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_methods(invoke) -> None:
    import json

    rows = json.loads(invoke("methods", "--json").stdout)
    assert [row["name"] for row in rows] == list(samerge.available_methods())
    assert rows[0]["needs_base"] is True
    assert "density" in rows[0]["options"]
    shown = invoke("methods").stdout
    assert all(name in shown for name in samerge.available_methods())
    assert "--density" in shown
