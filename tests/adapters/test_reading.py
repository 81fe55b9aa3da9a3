"""Reading plain adapters, from a folder and from a live model, against PEFT's own reading of them."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import NAMES, Beast, chain, chain_factors, write_adapter

import samerge
from samerge.adapters import live_adapter, pattern_value, read_adapter, scaling
from samerge.errors import AdapterError


@pytest.mark.parametrize("name", NAMES)
def test_every_update_is_pefts(beast: Beast, name):
    """Scale, rsLoRA, rank and alpha patterns, Conv1D's orientation."""
    model = beast.peft_model()
    layers = {
        module: layer
        for module, layer in model.get_base_model().named_modules()
        if name in getattr(layer, "lora_A", {})
    }
    for adapter in (read_adapter(beast.adapters[name], name), live_adapter(model, name)):
        assert list(adapter.modules) == sorted(layers)
        assert adapter.name == name
        for module, adapted in adapter.modules.items():
            factors = adapted.load()
            expected = layers[module].get_delta_weight(name).detach()
            torch.testing.assert_close(adapted.layout.delta(factors), expected)
            assert adapted.rank == factors.rank == layers[module].r[name]
            assert adapted.shape == factors.shape
        assert adapter.rank == max(layer.r[name] for layer in layers.values())
        assert adapter.dtype == torch.float32


def test_what_the_file_says_of_itself(llama: Beast):
    adapter = read_adapter(llama.adapters["math"], "math", source="ada/math-lora")
    data = (Path(llama.adapters["math"]) / "adapter_model.safetensors").read_bytes()
    assert adapter.sha256 == hashlib.sha256(data).hexdigest()
    assert adapter.source == "ada/math-lora"
    assert adapter.config["base_model_name_or_path"] == llama.base


def test_reading_a_live_adapter_changes_nothing(llama: Beast):
    model = llama.peft_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for adapted in live_adapter(model, "talk").modules.values():
        factors = adapted.load()
        assert not factors.A.requires_grad
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 16 / math.sqrt(8)),
        ({"rank_pattern": {"q": 4}}, 4.0),
        ({"rank_pattern": {"q": 4}, "use_rslora": True}, 8.0),
        ({"alpha_pattern": {"q": 4}}, 0.5),
        ({"alpha_pattern": {"0.q": 4}}, 0.5),
        ({"alpha_pattern": {"1.q": 4}}, 2.0),
        ({"alpha_pattern": {r"layers\.\d+\.q": 4}}, 0.5),
        ({"alpha_pattern": {"k": 4, "q": 2, "0.q": 8}}, 0.25),  # the first that matches
        ({"alpha_pattern": {"eq": 4}}, 2.0),
    ],
)
def test_scale(config, expected):
    assert scaling({"r": 8, "lora_alpha": 16, **config}, "layers.0.q") == pytest.approx(expected)


def test_a_pattern_matches_whole_endings():
    assert pattern_value({"proj": 1}, "layers.0.q_proj", 7) == 7
    assert pattern_value({"q_proj": 1}, "layers.0.q_proj", 7) == 1
    assert pattern_value({"^layers.0.q_proj": 1}, "layers.0.q_proj", 7) == 1
    assert pattern_value(None, "q", 7) == 7


def copy(llama: Beast, folder: Path, edit=None, settings=None) -> Path:
    """A copy of an adapter with its tensors or its configuration edited."""
    shutil.copytree(llama.adapters["math"], folder)
    if edit is not None:
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file)
    if settings is not None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(KEY), r"'model.layers.0.self_attn.q_proj' has \['lora_B'\], expected both lora_A and lora_B"),
        (lambda t: t.update({KEY: torch.zeros(5, 32)}), r"q_proj'?: .*\(5, 32\).*\(32, 8\)"),
        (lambda t: t.update({KEY: torch.zeros(8)}), r"q_proj.*\(8,\)"),
        (lambda t: t.clear() or t.update(x=torch.zeros(1)), "'math'"),
    ],
)
def test_a_file_that_is_not_whole(llama: Beast, tmp_path, edit, words):
    folder = copy(llama, tmp_path / "math", edit)
    with pytest.raises(AdapterError, match=words) as caught:
        read_adapter(folder, "math")
    assert "'math'" in str(caught.value)


def test_a_tensor_that_nobody_named_is_refused_where_it_is_known_whether_the_base_has_it(llama: Beast, tmp_path):
    stray = {"base_model.model.score.weight": torch.zeros(2, 2)}
    folder = copy(llama, tmp_path / "math", lambda t: t.update(stray))
    with pytest.raises(AdapterError, match=r"'math': its file also holds 'score\.weight'.*give base"):
        samerge.merge(None, {"math": folder}, method="linear", progress=False)
    with pytest.raises(samerge.BaseModelError, match=r"'math': its file also holds 'score\.weight' \(2, 2\)"):
        samerge.merge(llama.base, {"math": folder}, method="linear", progress=False)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 4}, "the configuration says rank 4, but lora_A has"),
        ({"rank_pattern": {"q_proj": 2}}, "the configuration says rank 2, but lora_A has"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"something_new": {"a": 1}, "peft_version": "1.0.0"}, "something_new"),
        ({"peft_type": None, "fine_tune_type": "lora"}, "names no peft_type"),
        ({"peft_type": ["LORA"]}, "names no peft_type"),
        ({"lora_alpha": None}, "says null for lora_alpha; it must be a finite number"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan; it must be a finite number"),
        ({"lora_alpha": True}, "lora_alpha=True; it must be a finite number"),
        ({"r": "4"}, "r='4'; it must be a whole number from 1"),
        ({"r": 0}, "r=0; it must be a whole number from 1"),
        ({"r": 10**30}, "it must be a whole number from 1"),
        ({"rank_pattern": [1]}, "rank_pattern=.*an object, each value a whole number"),
        ({"rank_pattern": {"(": 8}}, "no regular expression"),
        ({"target_modules": "(a"}, "no regular expression"),
        ({"target_modules": 3}, "target_modules=3; it must be a text or a list, each a text"),
        ({"bias": "some"}, "bias='some'; it must be 'none', 'all' or 'lora_only'"),
        ({"use_rslora": "yes"}, "use_rslora='yes'; it must be true or false"),
        ({"layer_replication": [[0, 10**7]]}, "at most 10000 layers together"),
        ({"layer_replication": [[0, 1]] * 200_000}, "at most 1000 pairs"),
        ({"layer_replication": [[3, 1]]}, "start < stop"),
        ({"modules_to_save": ["a"] * 5000}, "at most 2000 entries"),
        ({"trainable_token_indices": ["one"]}, "trainable_token_indices"),
    ],
)
def test_a_configuration_that_is_no_plain_lora(llama: Beast, tmp_path, settings, words):
    with pytest.raises(AdapterError, match=words) as caught:
        read_adapter(copy(llama, tmp_path / "math", settings=settings), "math")
    assert "adapter 'math'" in str(caught.value)


def test_missing_and_broken_files(llama: Beast, tmp_path):
    with pytest.raises(AdapterError, match=r"no adapter_config\.json in .*sub-folder of its name"):
        read_adapter(tmp_path, "math")
    bare = copy(llama, tmp_path / "bare")
    (bare / "adapter_model.safetensors").rename(bare / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors .*'adapter_model\.bin'.*pickle"):
        read_adapter(bare, "math")
    broken = copy(llama, tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"oid sha256: a pointer to the file")
    with pytest.raises(AdapterError, match=r"reading adapter 'math': .*adapter_model\.safetensors: not a safetensors"):
        read_adapter(broken, "math")
    (broken / "adapter_config.json").write_text("{half")
    with pytest.raises(AdapterError, match="reading adapter 'math'"):
        read_adapter(broken, "math")


def test_values_are_checked_when_they_are_read(tmp_path):
    factors = chain_factors(chain([4, 5]), 2, seed=0)
    factors["layers.0"][1][3, 1] = float("nan")
    adapter = read_adapter(write_adapter(tmp_path / "a", factors), "math")  # only the header is read here
    with pytest.raises(
        AdapterError, match=r"adapter 'math', module 'layers\.0': lora_B \(5, 2\) holds NaN or infinite"
    ):
        adapter.modules["layers.0"].load()


@pytest.mark.parametrize(
    ("dtype", "other", "expected"),
    [
        (torch.float16, torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float16, torch.float32),
    ],
)
def test_the_widest_dtype_counts(tmp_path, dtype, other, expected):
    factors = {"layers.0": (torch.zeros(2, 4, dtype=dtype), torch.zeros(5, 2, dtype=other))}
    adapter = read_adapter(write_adapter(tmp_path / "a", factors), "math")
    assert adapter.dtype == expected
    assert adapter.modules["layers.0"].load().A.dtype == dtype


@pytest.mark.parametrize("power", [-100, -40, 0, 40, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_factors_of_very_unequal_size_are_evened_exactly(tmp_path, power, dtype):
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 4, generator=generator).to(dtype), torch.randn(5, 2, generator=generator).to(dtype)
    given = {"layers.0": (A * 2.0**power, B * 2.0**-power)}
    factors = read_adapter(write_adapter(tmp_path / "a", given), "math").modules["layers.0"].load()
    assert torch.equal(factors.A.double() / factors.A.abs().max(), A.double() / A.abs().max())
    assert torch.equal(factors.B.double() @ factors.A.double(), B.double() @ A.double())
    if abs(power) >= 40:
        assert 0.01 < float(factors.A.abs().max() / factors.B.abs().max()) < 100


@pytest.mark.parametrize(("A", "B", "alpha"), [(1e30, 1e30, 2), (1e38, 10.0, 2), (1.0, 1.0, 1e38)])
def test_an_update_that_no_training_gives_is_refused(tmp_path, A, B, alpha):
    factors = {"layers.0": (torch.full((2, 4), A), torch.full((5, 2), B))}
    adapter = read_adapter(write_adapter(tmp_path / "a", factors, alpha=alpha), "math")
    with pytest.raises(AdapterError, match=r"'math', module 'layers.0': its update has entries of up to \d"):
        adapter.modules["layers.0"].load()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_read_as_what_they_mean(tmp_path, dtype):
    A, B = torch.randn(2, 4).to(dtype), torch.randn(5, 2).to(dtype)
    folder = write_adapter(tmp_path / "a", {"layers.0": (A, B)}, alpha=2.0)
    module = read_adapter(folder, "math").modules["layers.0"]
    assert module.dtype == torch.float32
    assert torch.equal(module.load().delta(), B.float() @ A.float())
    file = Path(folder) / "adapter_model.safetensors"
    keys = {"A": "base_model.model.layers.0.lora_A.weight", "B": "base_model.model.layers.0.lora_B.weight"}
    scales = {f"{keys['A']}_scale": torch.tensor(3.0), keys["B"].replace("weight", "scale_weight"): torch.arange(5.0)}
    save_file({**load_file(file), **scales, "scaled_fp8": torch.zeros(2).to(dtype)}, file)
    found = read_adapter(folder, "math").modules["layers.0"].load().delta()
    torch.testing.assert_close(found, (torch.arange(5.0)[:, None] * B.float()) @ (3 * A.float()))
    for name in ("default", "policy", "weights_v1", "default_0.default"):  # as a live model's state dict has it
        named = {
            k.replace("lora_A.", f"lora_A.{name}.").replace("lora_B.", f"lora_B.{name}."): v
            for k, v in load_file(file).items()
        }
        save_file(named, file.with_name("named.safetensors"))
        other = Path(write_adapter(tmp_path / name, {"layers.0": (A, B)}, alpha=2.0))
        file.with_name("named.safetensors").replace(other / file.name)
        assert torch.equal(read_adapter(other, "math").modules["layers.0"].load().delta(), found)
    save_file({keys["A"]: A, keys["B"]: B, "scaled_fp8": torch.zeros(2).to(dtype)}, file)
    with pytest.raises(AdapterError, match=r"it says scaled_fp8, and '.*lora_A.weight' has no scale beside it"):
        read_adapter(folder, "math")
    blocks = {f"{keys['A']}_scale": torch.ones(3, 2)}
    save_file({keys["A"]: A, keys["B"]: B, **blocks}, file)
    with pytest.raises(AdapterError, match=r"lora_A\.weight_scale"):
        read_adapter(folder, "math")
