"""What is read is never what is replaced: an output at the place of a source is refused before anything is done."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file
from tiny import Beast
from typer.testing import CliRunner

import samerge
from samerge.cli import app
from samerge.errors import OutputExistsError


@pytest.mark.parametrize("command", ["merge", "convert", "compress"])
def test_in_the_shell(llama: Beast, command):
    folder = llama.adapters["math"]
    before = load_file(f"{folder}/adapter_model.safetensors")
    words = {
        "merge": ("merge", "-a", folder, "-a", llama.adapters["code"], "--method", "linear"),
        "convert": ("convert", folder, "--format", "mlx"),
        "compress": ("compress", folder, "--rank", "2"),
    }[command]
    result = CliRunner().invoke(app, [*words, "--out", folder, "--overwrite"])
    assert result.exit_code == 2
    assert "which is read and would be replaced" in result.output
    assert before.keys() == load_file(f"{folder}/adapter_model.safetensors").keys()


def test_in_python_and_a_file_within(llama: Beast, tmp_path):
    merged = samerge.merge(None, [llama.adapters["math"], llama.adapters["code"]], method="linear", progress=False)
    with pytest.raises(OutputExistsError, match="would be replaced"):
        merged.save(llama.adapters["code"], overwrite=True)
    one = samerge.merge(
        None, {"a": f"{llama.adapters['math']}/adapter_model.safetensors"}, method="linear", progress=False
    )
    with pytest.raises(OutputExistsError, match="would be replaced"):
        one.save(llama.adapters["math"], overwrite=True)
    merged.save(tmp_path / "out")
    merged.save(tmp_path / "out", overwrite=True)
