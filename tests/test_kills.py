"""Twenty merges killed by signals, at calls of the writer and at random times: whole old, whole new, or nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases are copies of one process")
def test_what_is_killed_loses_nothing(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killing.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(script), str(tmp_path), "0", str(CASES)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == CASES
    assert [one["wrong"] for one in found if one["wrong"]] == []
