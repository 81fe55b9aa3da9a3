"""What PEFT answers with silence, a wrong sum or a raw error: counts, weights, ranges, names, files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from alike import same_files
from safetensors import safe_open

import samerge
from pitfalls.lab import EXACT, close, llama, output, quiet

SETTINGS = {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "r": 3}


@pytest.mark.parametrize("method", ["paper", "linear", "cat", "svd"])
@pytest.mark.parametrize("copies", [1, 3])
def test_copies_of_one_adapter_are_the_adapter(bench, method: str, copies: int) -> None:
    lab = bench(llama)
    folder = lab.train("a", **SETTINGS)
    options = {"density": 1.0} if method == "paper" else {}
    adapters = {f"copy{n}": folder for n in range(copies)}
    weights = [1 / copies] * copies
    merged = samerge.merge(lab.base, adapters, weights=weights, method=method, scaling=1.0, **options)
    with quiet():
        close(output(lab.reloaded(merged)), output(lab.with_adapters(folder)))


def test_copies_under_the_norm_rule(bench) -> None:
    """One adapter stays itself; of several the merged norm is 1.3 times theirs."""
    lab = bench(llama)
    folder = lab.train("a", **SETTINGS)
    alone = samerge.merge(lab.base, [folder], method="linear", scaling="auto")
    twice = samerge.merge(lab.base, {"one": folder, "two": folder}, method="linear", scaling="auto")
    exact = lab.merge(folder)
    for name in exact.factors:
        close(alone.delta(name), exact.delta(name))
        close(twice.delta(name), 1.3 * exact.delta(name))


def test_a_rank_beyond_the_matrix(bench) -> None:
    """PEFT's svd writes factors that do not fit; here there are no more components than singular values."""
    lab = bench(llama)
    folders = [lab.train(name, target_modules=["v_proj", "down_proj"], r=4) for name in ("a", "b")]
    merged = samerge.merge(lab.base, folders, method="svd", svd_rank=100)
    assert merged.settings["r"] <= 16
    with quiet():
        close(output(lab.reloaded(merged)), output(lab.with_adapters(*folders)))


def test_negative_weights_take_part_in_the_agreement(bench) -> None:
    """What another adapter takes away does not count as agreement: the selection changes with the weight's sign."""
    lab = bench(llama)
    with torch.no_grad():
        for layer in lab.model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    low, high = torch.zeros(16), torch.zeros(16)
    low[:8], high[8:] = 8**-0.5, 8**-0.5  # two directions that do not meet

    def two(model) -> None:
        _set(model, torch.stack([low, high]), torch.stack([low, 0.9 * high], dim=1))

    def one(model) -> None:
        _set(model, low[None], 0.8 * low[:, None])

    first = lab.train("a", two, target_modules=["q_proj"], r=2, lora_alpha=2)
    second = lab.train("b", one, target_modules=["q_proj"], r=1, lora_alpha=1)
    for weight, kept in ((1.0, low), (-1.0, high)):
        options = {"method": "paper", "density": 0.5, "connectivity": "local", "scaling": 1.0}
        merged = samerge.merge(lab.base, {"a": first, "b": second}, weights=[1.0, weight], **options)
        found = merged.delta("model.layers.0.self_attn.q_proj") - weight * 0.8 * torch.outer(low, low)
        assert float(found.abs().max()) > 0.05
        close(found, float(kept @ found @ kept) * torch.outer(kept, kept))


def _set(model, A: torch.Tensor, B: torch.Tensor) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(A if "lora_A" in name else B)


def test_without_any_base(bench) -> None:
    lab = bench(llama)
    folders = [lab.train(name, **SETTINGS) for name in ("a", "b")]
    merged = samerge.merge(None, folders, method="linear")
    with quiet():
        close(output(lab.reloaded(merged)), output(lab.with_adapters(*folders)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": [1.0]}, "1 weights for 2 adapters"),
        ({"weights": {"a": 1.0}}, r"none given for \['b'\]"),
        ({"weights": [1.0, float("inf")]}, "must be a finite number"),
        ({"density": 0}, r"density=0 must lie in \(0, 1\]"),
        ({"density": 1.5}, r"density=1.5 must lie in \(0, 1\]"),
        ({"rank": 0}, "rank=0 must be a whole number"),
        ({"density": 0.5, "rank": 4}, "give one"),
    ],
)
def test_ranges(bench, arguments, words: str) -> None:
    lab = bench(llama)
    folders = {name: lab.train(name, **SETTINGS) for name in ("a", "b")}
    with pytest.raises(samerge.OptionError, match=words):
        samerge.merge(lab.base, folders, method="saliency", **arguments)


def test_the_same_name_twice(bench) -> None:
    lab = bench(llama)
    folder = lab.train("a", **SETTINGS)
    with pytest.raises(samerge.OptionError, match="the adapter name 'a' occurs more than once"):
        samerge.merge(lab.base, [folder, folder], method="paper")


def test_what_is_written(bench) -> None:
    """At the top level, sorted, contiguous, the same file in every process, with its provenance."""
    lab = bench(llama)
    folders = [lab.train(name, target_modules=["v_proj", "q_proj", "up_proj", "k_proj"]) for name in ("a", "b")]
    out = lab.merge(*folders).save(lab.folder / "out")
    assert sorted(os.listdir(out)) == ["README.md", "adapter_config.json", "adapter_model.safetensors", "samerge.json"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["target_modules"] == ["gate_proj", "k_proj", "q_proj", "up_proj", "v_proj"]  # up with its partner
    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
        assert keys == sorted(keys)
        assert all(torch.isfinite(file.get_tensor(key)).all() for key in keys)
    record = json.loads((out / "samerge.json").read_text())
    assert [len(item["sha256"]["adapter_model.safetensors"]) for item in record["inputs"]] == [64, 64]
    assert "merge" in (out / "README.md").read_text()
    code = f"""
import samerge
adapters = dict(first={folders[0]!r}, second={folders[1]!r})
merged = samerge.merge({lab.base!r}, adapters, method="paper", density=1.0, scaling=1.0)
merged.save({str(lab.folder / "again")!r})
"""
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    same_files(lab.folder / "again", out)


def test_an_adapter_that_is_not_called_default_lies_in_a_folder_of_its_name(bench) -> None:
    lab = bench(llama)
    model = lab.with_adapters(lab.train("a", **SETTINGS))
    with quiet():
        model.save_pretrained(str(lab.folder / "several"))
    assert samerge.merge(lab.base, [str(lab.folder / "several")], **EXACT).factors  # the only one there
    assert samerge.merge(lab.base, [str(Path(lab.folder) / "several" / "first")], **EXACT).factors
