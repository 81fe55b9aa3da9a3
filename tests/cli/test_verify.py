"""`samerge verify` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from .conftest import write_adapter


def test_verify(invoke, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "a", seed=1)
    out = tmp_path / "out"
    assert invoke("merge", "--adapter", f"a={source}", "--method", "linear", "--out", str(out)).exit_code == 0
    sound = invoke("verify", str(out), "--reproduce")
    assert sound.exit_code == 0, sound.output
    assert sound.stdout.count("yes ") == 5
    (out / "README.md").write_text("other")
    changed = invoke("verify", str(out), "--json")
    assert changed.exit_code == 2
    assert [one["what"] for one in json.loads(changed.stdout) if not one["sound"]] == ["output README.md"]
