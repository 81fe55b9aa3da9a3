"""The same choices on the command line: refused with the way out, done with it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from pitfalls.lab import bert, llama, output, quiet
from samerge.cli import app

CASES = {
    "dora": (llama, {"target_modules": ["q_proj"], "use_dora": True}, ["--dora", "exact:16"], "--dora exact"),
    "trained modules": (
        bert,
        {"target_modules": ["query"], "task_type": "SEQ_CLS"},
        ["--modules-to-save", "average"],
        "--modules-to-save average",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_choice_is_asked_for_and_taken(bench, case: str) -> None:
    factory, settings, choice, words = CASES[case]
    lab = bench(factory)
    folder, out = lab.train("a", **settings), str(lab.folder / "out")
    command = ["merge", "--base", lab.base, "--adapter", folder, "--method", "paper", "--density", "1.0"]
    command += ["--scaling", "1.0", "--out", out]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert words in " ".join(refused.output.split())
    done = CliRunner().invoke(app, [*command, *choice])
    assert done.exit_code == 0, done.output
    with quiet():
        expected = output(lab.with_adapters(folder))
        assert float((output(lab.with_adapters(out)) - expected).abs().max()) < 1e-4
    record = json.loads((lab.folder / "out" / "samerge.json").read_text())
    assert record["options"][choice[0].removeprefix("--").replace("-", "_")] == choice[1]
