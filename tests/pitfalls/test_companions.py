"""Files of weights beside an adapter's own: named everywhere, and taken or dropped by choice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import samerge
from pitfalls.lab import Bench, close, llama, output
from samerge.merging.checking import check_adapter

EXACT: dict[str, Any] = {"method": "linear", "progress": False}
FILES = (
    "non_lora_trainables.bin",
    "non_lora_state_dict.bin",
    "trainable_params.bin",
    "value_head.safetensors",
    "vit.safetensors",
)


def beside(lab: Bench, name: str) -> str:
    folder = Path(lab.train(name.partition(".")[0], target_modules=["q_proj"]))
    tensors = {"model.mm_projector.0.weight": torch.full((8, 8), 0.5)}
    if name.endswith("safetensors"):
        save_file(tensors, folder / name)
    else:
        torch.save(tensors, folder / name)
    return str(folder)


@pytest.mark.parametrize("name", FILES)
def test_it_is_named_everywhere(bench, name: str) -> None:
    lab = bench(llama)
    adapters = {"a": beside(lab, name), "b": lab.train("b", target_modules=["q_proj"])}
    for source in (lab.base, None, lab.model):
        with pytest.raises(samerge.AdapterError, match=rf"\(a: {name}\).*companions='drop'.*'take:<adapter>'"):
            samerge.merge(source, adapters, **EXACT)
    found = check_adapter(adapters["a"])
    assert not found.mergeable
    assert any(name in problem for problem in found.problems)
    dropped = samerge.merge(lab.base, adapters, companions="drop", **EXACT)
    out = dropped.save(lab.folder / "dropped")
    assert not (out / name).exists()
    taken = samerge.merge(lab.base, adapters, companions="take:a", **EXACT).save(lab.folder / "taken")
    assert (taken / name).read_bytes() == (Path(adapters["a"]) / name).read_bytes()
    for folder in (out, taken):
        record = json.loads((folder / "samerge.json").read_text())
        assert any(name in text for text in record["warnings"])
        assert name in (folder / "README.md").read_text()
        close(output(lab.with_adapters(str(folder))), output(lab.with_adapters(*adapters.values())))


def test_which_files_are_weights(bench) -> None:
    lab = bench(llama)
    folder = Path(lab.train("a", target_modules=["q_proj"]))
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth", "tokenizer.json", "scaler.pt"):
        (folder / name).write_bytes(b"x")
    shutil.copy(folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    samerge.merge(lab.base, [str(folder)], **EXACT)


def test_choices_that_mean_nothing(bench) -> None:
    lab = bench(llama)
    adapters = {"a": beside(lab, "vit.safetensors"), "b": lab.train("b", target_modules=["q_proj"])}
    with pytest.raises(samerge.OptionError, match=r"'take:b' names no adapter .* \(a: vit.safetensors\)"):
        samerge.merge(lab.base, adapters, companions="take:b", **EXACT)
    with pytest.raises(samerge.OptionError, match="companions='keep' is not known; choose one of drop, take:ADAPTER"):
        samerge.merge(lab.base, adapters, companions="keep", **EXACT)
    samerge.merge(lab.base, adapters, weights=[0.0, 1.0], **EXACT)


def test_a_link_that_leads_elsewhere_is_not_copied(bench, tmp_path: Path) -> None:
    lab = bench(llama)
    folder = Path(lab.train("a", target_modules=["q_proj"]))
    (tmp_path / "secret").write_text("secret")
    (folder / "vit.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(samerge.AdapterError, match=r"vit.safetensors is a link that leads out of its folder"):
        samerge.merge(lab.base, {"a": str(folder)}, companions="take:a", **EXACT)


def test_an_adapter_that_is_compressed_keeps_them(bench) -> None:
    lab = bench(llama)
    folder = beside(lab, "value_head.safetensors")
    out = samerge.compress_adapter(folder, rank=1, progress=False).save(lab.folder / "small")
    assert (out / "value_head.safetensors").is_file()
