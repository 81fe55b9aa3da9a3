from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from rich.emoji import Emoji
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import samerge
import samerge.cli
from samerge.cli.exit_codes import Terminated, guarded
from samerge.cli.shell_words import in_shell_words
from samerge.errors import AdapterError, OutputExistsError
from samerge.full.full_options import FullOptions
from samerge.methods.registry import find
from samerge.options.common import CommonOptions
from samerge.options.option import table

from .conftest import shell, write_adapter

HEAVY = ("torch", "transformers", "peft", "numpy", "huggingface_hub", "gradio")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["merge", "--help"],
        ["run", "-h"],
        ["inspect", "-h"],
        ["--version"],
        ["full", "-h"],
        ["ui", "-h"],
        ["methods"],
    ],
)
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
        (OSError(28, "No space left on device"), 1, "error: No space left on device: the disk is full"),
        (FileNotFoundError(2, "No such file", "/x/out"), 1, "error: No such file: /x/out: it is not there"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: Permission denied: /x: you may not"),
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

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(guarded(command))
    before = signal.signal(number, signal.SIG_DFL)  # under nohup it would be ignored, and stay so
    try:
        assert CliRunner().invoke(app, []).exit_code == 128 + number
        assert cleaned
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_unexpected_says_where_to_turn() -> None:
    last = run_raising(ZeroDivisionError("by [zero]")).stderr.strip().splitlines()[-1]
    assert last.startswith("error: unexpected ZeroDivisionError: by [zero].")
    assert "report it with the traceback above" in last


def test_defaults_are_told_as_they_are_given(invoke) -> None:
    """1 is a number, not yes."""
    shown = {row.split()[0]: row.split() for row in invoke("methods", "saliency").stdout.splitlines() if "--" in row}
    assert shown["--iterations"][1:3] == ["N", "1"]
    assert shown["--residual"][1:3] == ["true|false", "yes"]


def test_methods(invoke) -> None:
    rows = json.loads(invoke("methods", "--json").stdout)
    assert [row["name"] for row in rows] == list(samerge.available_methods())
    shown = invoke("methods").stdout
    assert all(name in shown for name in samerge.available_methods())


@pytest.mark.parametrize("name", list(samerge.available_methods()))
def test_one_method_with_all_options_that_it_alone_has(invoke, name) -> None:
    rows = table(find(name).options)
    told = json.loads(invoke("methods", name, "--json").stdout)
    assert [row["name"] for row in told["options"]] == [row.name for row in rows]
    shown = invoke("methods", name)
    assert shown.exit_code == 0
    assert all(f"--{row.name.replace('_', '-')}" in shown.stdout for row in rows)
    assert f"`{name}`: " in shown.stdout


def test_another_name_of_a_method(invoke) -> None:
    told = json.loads(invoke("methods", "ties_svd", "--json").stdout)
    assert (told["name"], {row["name"]: row["default"] for row in told["options"]}["trim"]) == ("ties", "layer")
    assert "did you mean 'dare_ties'" in invoke("methods", "dare_tie").stderr


def test_the_rank_that_is_told_of_a_method_is_that_of_its_merges(invoke, tiny_base, tmp_path) -> None:
    """Of adapters of rank 4 and 3 by every method, and by the default choice of options."""
    given = [write_adapter(tmp_path / f"r{rank}", rank, rank) for rank in (4, 3)]
    for name in samerge.available_methods():
        shown = invoke("methods", name).stdout
        made = samerge.merge(tiny_base, given, method=name, progress=False).report.record.output.rank
        if "Rank: the largest of any adapter, unless --rank" in shown:
            assert made == 4, name
        else:
            assert "Rank: as it comes out, at most the sum of the adapters' ranks, unless --rank says less." in shown
            assert 1 <= made <= 7, name
    told = {name: invoke("methods", name).stdout for name in ("even", "saliency", "svd", "linear")}
    assert "unless --rank or --density says otherwise." in told["even"]
    assert "unless --rank or --density says otherwise." in told["saliency"]
    assert "unless --rank says otherwise." in told["svd"]
    assert samerge.merge(tiny_base, given, method="linear", progress=False).report.record.output.rank == 7


def test_no_letters_of_a_help_become_a_picture(invoke) -> None:
    """typer has rich replace `:a:` in what it takes for Markdown, whatever the console is told."""
    commands = typer.main.get_command(samerge.cli.app).commands
    for name, command in commands.items():
        texts = [command.help or "", *(getattr(one, "help", None) or "" for one in command.params)]
        texts += [str(one.metavar or "") for one in command.params]
        assert [text for text in texts if Emoji.replace(text) != text] == [], name
    assert "FLOAT|auto[:C]" in " ".join(invoke("merge", "--help").stdout.split())


def shell_options(command: str) -> dict[str, str | None]:
    parameters = typer.main.get_command(samerge.cli.app).commands[command].params
    return {str(parameter.name): getattr(parameter, "help", None) for parameter in parameters}


@pytest.mark.parametrize("command", ["merge", "compare", "tune"])
def test_the_shell_has_every_common_option_with_the_help_of_the_table(command: str) -> None:
    shown = shell_options(command)
    for row in table(CommonOptions):
        assert str(shown[row.name]).startswith(row.help)


def test_full_has_every_option_of_its_table() -> None:
    assert {row.name for row in table(FullOptions)} <= shell_options("full").keys()


@pytest.mark.parametrize("command", ["merge", "compare", "tune", "full", "extract", "compress", "inspect", "check"])
def test_one_grammar(command: str) -> None:
    parameters = typer.main.get_command(samerge.cli.app).commands[command].params
    flags = {flag for parameter in parameters for flag in parameter.opts}
    assert {"--adapter", "-a"} <= flags
    assert {"--base", "-b"} <= flags or command == "inspect"
    assert "--token" in flags
    assert ("-q" in flags) == (command not in ("inspect", "check"))


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("merge --method dar", {"dare", "dare-ties"}),
        ("merge --dtype b", {"bfloat16"}),
        ("merge --balance no", {"norm", "none"}),
    ],
)
def test_completion(words: str, offered: set[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "samerge"],
        cwd=tmp_path,
        env={**os.environ, "_SAMERGE_COMPLETE": "complete_bash", "COMP_WORDS": f"samerge {words}", "COMP_CWORD": "3"},
        capture_output=True,
        text=True,
    )
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("rank='much' must be a whole number", "--rank much must be a whole number"),
        ("density=2.0 must lie in (0, 1]", "--density 2.0 must lie in (0, 1]"),
        ("unless dtype= says otherwise; dora='exact:<rank>' keeps more", None),
        ("give base: a folder or a hub id", "give --base: a folder or a hub id"),
        ("as in tsv:rank=8, './rank=8' or x.rank=8", "as in tsv:rank=8, './rank=8' or x.rank=8"),
        ("give rank=, the largest; rank=8.", "give --rank, the largest; --rank 8."),
        (
            "dora='exact' (it), 'drop' (none), 'take:<adapter>', or 'exact:64' of adapter 'update'",
            "--dora exact (it), drop (none), take:ADAPTER, or exact:64 of adapter 'update'",
        ),
    ],
)
def test_messages_in_the_words_of_the_shell(message: str, told: str | None) -> None:
    expected = told or "unless --dtype says otherwise; --dora exact:RANK keeps more"
    assert in_shell_words(message, ["rank", "density", "dtype", "dora", "base"]) == expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("merge -a {math} -a {code}:high -o out", "'high' is no number, and a weight stands behind the last colon"),
        ("merge -a {math} -a style.safetensors -o out", "there is no such file; check the path"),
        ("merge -a {math} -a loras/style.safetensors -o out", "there is no such file; check the path"),
        ("merge -a {math} -a {bin} -o out", "is in PyTorch's pickle format, which is not opened"),
        ("check {old}", "adapter_model.bin is in PyTorch's pickle format, which is not opened"),
        (
            "merge -a {math} -a {dora} -o out",
            "with --dora exact: the exact update, truncated to the adapter's rank, or to more with --dora exact:64",
        ),
        ("inspect {math} {dora}", "comparing adapter 'dora': it is a DoRA adapter (use_dora)"),
        ("inspect {math} {dora}", "samerge compress ADAPTER --rank RANK --base BASE --dora exact"),
        (
            "convert {dora} --format kohya -o out",
            "samerge compress ADAPTER --rank 4 --base BASE --dora exact --format kohya",
        ),
        ("convert {norm} --format kohya -o out", "with --modules-to-save drop, which leaves them out"),
        ("merge -a {norm} -o out", "take:ADAPTER (one adapter's) or drop (none)"),
        ("compare {math} {norm} -m linear", "failed: linear: merging adapters that carry"),
        ("compare {math} {norm} -m linear", "Choose --modules-to-save average (the mean"),
        ("compare {math} {code} -m nix", "--method nix is not known. Methods: "),
        (
            "compare {math} {code} -m ties:density=2",
            "the way 'ties:density=2': density='2' must lie in (0, 1]",
        ),
        ("compress {math} --energy 0.5", "parameters; nothing was written, give --out FOLDER."),
        ("compress --help", "Default: kept as they are."),
        ("bake --help", "Default: update."),
        ("merge --help", "bfloat16, float16 or float64"),
    ],
)
def test_what_users_misread(invoke, loras: Path, tmp_path: Path, words: str, told: str) -> None:
    def variant(name: str, more: dict[str, torch.Tensor], **settings: object) -> Path:
        folder = shutil.copytree(loras / "math", tmp_path / name)
        file = folder / "adapter_model.safetensors"
        save_file({**load_file(file), **more}, file)
        config = folder / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | settings))
        return folder

    stems = {
        key.removesuffix(".lora_B.weight"): t
        for key, t in load_file(loras / "math" / "adapter_model.safetensors").items()
        if "lora_B" in key
    }
    places = {
        "math": loras / "math",
        "code": loras / "code",
        "dora": variant(
            "dora", {f"{s}.lora_magnitude_vector": torch.ones(len(B)) for s, B in stems.items()}, use_dora=True
        ),
        "norm": variant("norm", {"base_model.model.model.norm.weight": torch.ones(16)}, modules_to_save=["norm"]),
        "old": shutil.copytree(loras / "math", tmp_path / "old"),
        "bin": tmp_path / "old" / "adapter_model.bin",
    }
    (tmp_path / "old" / "adapter_model.safetensors").rename(places["bin"])
    result = invoke(*words.format(**places).split())
    assert told in " ".join(result.output.replace("\u2502", " ").split()), result.output
