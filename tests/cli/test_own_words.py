"""Every command on what it refuses: the way out is made of options that it has, or names the command that has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_zoo import make_zoo
from safetensors.torch import load_file, save_file
from torch import Tensor

from .own_words import foreign_options

_PREFIX = "base_model.model."


def _variant(zoo: Path, name: str, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]], **config: Any) -> None:
    """The adapter `math`, with other tensors and another configuration."""
    folder = shutil.copytree(zoo / "math", zoo / name)
    file, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file(dict(change(load_file(file))), file)
    settings.write_text(json.dumps(json.loads(settings.read_text()) | config))


def _beside(tensors: Mapping[str, Tensor], ending: str) -> dict[str, Tensor]:
    """The tensors, and one of the height of each layer that is called so."""
    more = {n.replace("lora_B.weight", ending): torch.ones(len(t)) for n, t in tensors.items() if "lora_B" in n}
    return {**tensors, **more}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_zoo(tmp_path_factory.mktemp("zoo"))
    _variant(folder, "dora", lambda t: _beside(t, "lora_magnitude_vector"), use_dora=True)
    _variant(folder, "bias", lambda t: _beside(t, "lora_B.bias"), bias="lora_only")
    _variant(
        folder, "head", lambda t: {**t, f"{_PREFIX}lm_head.weight": torch.ones(40, 32)}, modules_to_save=["lm_head"]
    )
    _variant(folder, "grown", lambda t: {**t, f"{_PREFIX}model.embed_tokens.weight": torch.ones(42, 32)})
    _variant(folder, "alien", lambda t: {n.replace("layers.0", "blocks.0"): one for n, one in t.items()})
    _variant(folder, "wide", lambda t: {n: torch.ones(8, 48) if "lora_A" in n else one for n, one in t.items()})
    _variant(folder, "pissa", lambda t: t, init_lora_weights="pissa")
    _variant(folder, "replicated", lambda t: t, layer_replication=[[0, 2], [1, 2]])
    strange = shutil.copytree(folder / "base", folder / "strange")
    config = strange / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "strange"}))
    (folder / "taken").mkdir()
    (folder / "taken" / "diary.txt").write_text("mine")
    return folder


ADAPTERS = (
    *("math", "dora", "bias", "head", "grown", "alien", "wide", "pissa", "replicated", "nowhere"),
    *("kohya", "gguf", "base"),
)
BASES = ("", "base", "quantised", "strange", "nowhere", "math")

#: By command, what it is called with; {a} an adapter, {b} `--base` and a base, {o} `--out` and a folder.
OF_ADAPTERS = (
    "inspect {a}",
    "inspect {a} {z}/code",
    "check {a} {b}",
    "compress {a} --rank 2 {b} {o}",
    "convert {a} --format kohya {b} {o}",
    "convert {a} --format gguf {b} {o}",
    "compare {a} {z}/code -m linear -m saliency {b}",
    "merge -a {a} -a {z}/code {b} {o}",
    "merge -a {a} -m linear --format diffusers {b} {o}",
    "tune -a {a} -a {z}/code -m linear --trials 1 --command false {b} {o}",
    "bake {a} {b} {o}",
    "extract --model {a} --rank 2 {b} {o}",
    "full --model {a} --iterations 1 {b} {o}",
    "run {z}/recipe.yaml {o}",
    "push {a} me/x/y",
    "verify {a} --reproduce",
)
#: By command, what is right; each of `WRONG` is put behind it.
RIGHT = (
    "merge -a {z}/math -a {z}/code -m linear",
    "tune -a {z}/math -a {z}/code -m linear --trials 1 --command false",
    "bake {z}/math --base {z}/base",
    "compare {z}/math {z}/code -m linear",
    "compress {z}/math --rank 2",
    "convert {z}/math --format mlx",
    "extract --base {z}/base --model {z}/expert --rank 2",
    "full --base {z}/base --model {z}/expert --iterations 1",
    "push {z}/merged me/x",
    "push {z}/merged",
    "push {z}/math me/x",
    "push {z}/gguf/style.gguf me/x",
    "init {z}/math",
    "inspect {z}/math {z}/code",
    "run {z}/sound.yaml",
    "verify {z}/merged",
    "methods",
)
WRONG = (
    *("me/x/y", "", "--private", "--push-to-hub me/x/y", "--create-pr --revision a --push-to-hub me/x"),
    *("--create-pr --revision a", "--report {z}/x.txt {o}", "--out {z}/taken", "--out {z}/base --overwrite"),
    *("--out {z}/math/config/x", "--rank 0 {o}", "--dtype int8 {o}", "--format zip {o}", "--weights 1,2,3 {o}"),
    *("--weights nix {o}", "--module-weight x {o}", "--module-weight *=0 {o}", "--module-weight *none=0 {o}"),
    *("--scaling zz {o}", "--picture x.docx", "--densty 3 {o}", "--device moon {o}", "--max-shard-size x {o}"),
    *("--modules-to-save zz {o}", "--dora zz {o}", "--companions take:x {o}", "--balance zz {o}", "--energy 2 {o}"),
    *("--method nix {o}", "--connectivity x {o}", "--as-lora 0 {o}", "--search x --out o"),
)


def _words(pattern: str, zoo: Path, **places: str) -> list[str]:
    filled = {"z": str(zoo), "o": f"--out {zoo}/out --overwrite", **places}
    return pattern.format(**filled).split()


@pytest.mark.parametrize("pattern", OF_ADAPTERS)
def test_what_is_refused_of_adapters(invoke, zoo: Path, pattern: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused = set()
    for adapter in ADAPTERS:
        for base in BASES if adapter == "math" else BASES[:2]:
            recipe = f"adapters: [{zoo / adapter}]\nmethod: {'paper' if base else 'linear'}\n"
            (zoo / "recipe.yaml").write_text(recipe + (f"base: {zoo / base}\n" if base == "strange" else ""))
            given = f"--base {zoo / base}" if base else ""
            result = invoke(*_words(pattern, zoo, a=str(zoo / adapter), b=given))
            assert result.exit_code in (0, 2), result.output
            if result.exit_code:
                refused.add(adapter)
    assert "nowhere" in refused
    assert len(refused) > 2


@pytest.mark.parametrize("pattern", RIGHT)
def test_what_is_refused_of_options(invoke, zoo: Path, pattern: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (zoo / "sound.yaml").write_text(f"adapters: [{zoo / 'math'}, {zoo / 'code'}]\nmethod: linear\n")
    results = [invoke(*_words(pattern, zoo), *_words(wrong, zoo)) for wrong in WRONG]
    assert {result.exit_code for result in results} <= {0, 2}, [r.output for r in results if r.exit_code == 1]
    assert sum(result.exit_code == 2 for result in results) > 3


def test_what_counts_as_foreign() -> None:
    assert foreign_options(["push", "x"], "error: give --push-to-hub USER/NAME, too")
    assert foreign_options(["convert"], "error: there is none; samerge compress x --dora exact --max-shard-size 3")
    assert not foreign_options(["convert"], "error: make one: samerge compress x --dora exact")
    assert not foreign_options(["inspect"], "error: give --base of samerge merge, the model")
    assert not foreign_options(["inspect", "--densty"], "No such option: --densty")
    assert not foreign_options(["merge"], "error: --density 3 must lie in (0, 1]")
    assert not foreign_options(["check"], "merge no: with --dora exact; serve: vllm serve x --enable-lora")
