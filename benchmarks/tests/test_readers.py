"""The committed figures of the files' readers: each made of a merge what PEFT makes of its sources."""

from __future__ import annotations

import json

import readers

from samerge.adapters.formats.gguf_names import ARCHITECTURES


def test_every_reader_did_what_was_merged() -> None:
    found = json.loads(readers.RESULTS.read_text())
    assert {name.partition(",")[0] for name in found["off"]} == {"diffusers", "sd-scripts", "mlx-lm", "llama.cpp"}
    assert all(0 <= figure < readers.MOST for figure in found["off"].values())
    assert {f"llama.cpp, {kind}, gguf" for kind in ARCHITECTURES} <= found["off"].keys()
    assert found["versions"]["sd-scripts"] == readers.COMMIT
