"""A merged adapter is taken as it is in memory wherever an adapter is: the same as from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alike import same_values
from safetensors.torch import load_file
from tiny import Beast

import samerge


def both(llama: Beast, folder: Path, **options: Any) -> tuple[samerge.MergedAdapter, str]:
    adapters = {name: llama.adapters[name] for name in ("math", "code")}
    merged = samerge.merge(llama.base, adapters, progress=False, **options)
    return merged, str(merged.save(folder / "both"))


def same_adapter(found: samerge.MergedAdapter, expected: samerge.MergedAdapter) -> None:
    assert list(found.factors) == list(expected.factors)
    assert found.settings == expected.settings
    for module in expected.factors:
        same_values(found.delta(module), expected.delta(module), 1e-5, module)


@pytest.mark.parametrize("method", ["saliency", "linear"])
def test_merged_again(llama: Beast, tmp_path: Path, method: str) -> None:
    merged, folder = both(llama, tmp_path)
    talk = llama.adapters["talk"]
    found = samerge.merge(llama.base, {"both": merged, "talk": talk}, method=method, progress=False)
    expected = samerge.merge(llama.base, {"both": folder, "talk": talk}, method=method, progress=False)
    same_adapter(found, expected)
    first = found.report.record.inputs[0]
    assert (first.name, first.source, first.sha256) == ("both", "memory:both", None)
    assert samerge.merge(None, [merged], method="linear", progress=False).report.record.inputs[0].name == "merged"


def test_compressed_and_converted(llama: Beast, tmp_path: Path) -> None:
    merged, folder = both(llama, tmp_path)
    same_adapter(
        samerge.compress_adapter(merged, 2, progress=False), samerge.compress_adapter(folder, 2, progress=False)
    )
    found = samerge.convert_adapter(merged, "peft", progress=False)
    for module in merged.factors:
        same_values(found.delta(module), merged.delta(module), 1e-6, module)


@pytest.mark.parametrize("listed", [False, True])
def test_baked(llama: Beast, tmp_path: Path, listed: bool) -> None:
    merged, folder = both(llama, tmp_path, dtype="bfloat16")
    samerge.bake(llama.base, [merged] if listed else merged, progress=False).save(tmp_path / "found")
    samerge.bake(llama.base, folder, progress=False).save(tmp_path / "expected")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("found", "expected"))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_what_is_beside_the_factors_needs_a_folder(llama: Beast, tmp_path: Path) -> None:
    merged, _ = both(llama, tmp_path)
    more = samerge.MergedAdapter(merged.factors, merged.layouts, merged.settings, merged.report, {"x": torch.ones(1)})
    with pytest.raises(samerge.AdapterError, match=r"'merged' from memory: it has 'x' beside its factors; save it"):
        samerge.bake(llama.base, more, progress=False)
