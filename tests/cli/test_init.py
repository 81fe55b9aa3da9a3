"""`samerge init`: what it writes is read back as the merge that was asked for, with and without its comments."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from full_disk import filled
from tiny import Beast
from typer.testing import CliRunner

from samerge.cli import app
from samerge.cli.init import recipe_text
from samerge.cli.named_adapter import AdapterSpec
from samerge.cli.recipe import parse_recipe
from samerge.methods.registry import available_methods, find
from samerge.options.common import CommonOptions
from samerge.options.option import table

SPECS = (AdapterSpec("math", "./ma: th # 1"), AdapterSpec("co'de", "ada/code@v2", -0.5))


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("method", [None, *available_methods()])
def test_what_is_written_is_what_was_asked_for(method):
    text = recipe_text(SPECS, "a/base", method)
    request = parse_recipe(text, "r.yaml")
    assert request.adapters == SPECS
    assert (request.base, request.method, request.target.out) == ("a/base", method or "saliency", "merged/")
    assert request.options == {}
    for kind in (find(method or "saliency").options, CommonOptions):
        for row in table(kind):
            assert f"\n# {row.name}: " in text


@pytest.mark.parametrize("method", list(available_methods()))
def test_defaults_stand_as_they_are(method):
    """Without the comment signs, every default that is a value is that option's default."""
    text = recipe_text(SPECS, None, method)
    for row in table(find(method).options):
        if row.default is None:
            continue
        line = next(line for line in text.splitlines() if line.startswith(f"# {row.name}: "))
        [value] = yaml.safe_load(line.removeprefix("# ")).values()
        assert parse_recipe(f"{text}{row.name}: {value}", "r").options == {row.name: value}
        assert row.read(value) == row.default


def test_the_shell(llama: Beast, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (f"math={llama.adapters['math']}", "-a", f"{llama.adapters['code']}:0.5", "--base", llama.base)
    assert run("init", *words).exit_code == 0
    assert run("run", "recipe.yaml", "--quiet").exit_code == 0
    assert (tmp_path / "merged" / "adapter_model.safetensors").exists()
    again = run("init", "a/b")
    assert again.exit_code == 2
    assert "recipe.yaml: it exists already" in again.output
    assert run("init", "a/b", "--overwrite").exit_code == 0
    assert "no adapter given" in run("init", "--out", "x.yaml").output
    assert "did you mean 'saliency'" in run("init", "a/b", "-m", "salience", "--out", "x.yaml").output
    assert not (tmp_path / "x.yaml").exists()
    assert run("init", "a/b", "--out", "new/x.yaml").exit_code == 0


@pytest.mark.parametrize("there", [None, "mine: true\n"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, there):
    monkeypatch.chdir(tmp_path)
    if there:
        (tmp_path / "recipe.yaml").write_text(there)
    monkeypatch.setattr("pathlib.Path.write_text", filled(Path.write_text))
    result = run("init", "a/b", "--overwrite")
    assert result.exit_code == 2
    assert "writing recipe.yaml: No space left on device" in result.output
    monkeypatch.undo()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == ([("recipe.yaml", there)] if there else [])
