"""PEFT's AdaLoRA, LoHa and LoKr read as LoRA, against PEFT's own dense updates; LyCORIS' in kohya's files likewise."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from written_out import deltas, random, same, write

import samerge
from samerge.adapters.formats.table import read_any
from samerge.errors import AdapterError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(12, 16)
        self.up = nn.Linear(16, 8)
        self.conv = nn.Conv2d(4, 6, 3)


def saved(folder: Path, config, seed: int = 0):
    """A random adapter on disk, and PEFT's own update of every module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(Net(), config)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora_" in name or "hada_" in name or "lokr_" in name):
                parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder)
    layers = {n: m for n, m in model.get_base_model().named_modules() if hasattr(m, "get_delta_weight")}
    return {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}


KINDS = {
    "adalora": AdaLoraConfig(target_modules=["proj", "up"], init_r=5, target_r=3, lora_alpha=7, total_step=10),
    "loha": LoHaConfig(target_modules=["proj", "up", "conv"], r=2, alpha=6, rank_pattern={"up": 3}),
    "loha, wide": LoHaConfig(target_modules=["proj", "up"], r=6, alpha=6),
    "loha, core": LoHaConfig(target_modules=["conv"], r=2, alpha=4, use_effective_conv2d=True),
    "lokr": LoKrConfig(target_modules=["proj", "up", "conv"], r=1, alpha=3, alpha_pattern={"up": 5}),
    "lokr, whole": LoKrConfig(target_modules=["proj", "up", "conv"], r=20, alpha=3),
    "lokr, both": LoKrConfig(target_modules=["proj", "up"], r=1, alpha=3, decompose_both=True, decompose_factor=4),
    "lokr, core": LoKrConfig(target_modules=["conv"], r=1, alpha=3, use_effective_conv2d=True, decompose_factor=2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_update_is_pefts(tmp_path, kind):
    expected = saved(tmp_path / "a", KINDS[kind])
    adapter = read_any(tmp_path / "a", "a")
    same(deltas(adapter), expected)
    assert adapter.format == "peft"
    assert bool(adapter.notes) is (kind != "adalora")
    assert all(one.rank <= min(one.shape) for one in adapter.modules.values())


@pytest.mark.parametrize("kind", ["adalora", "loha", "lokr"])
def test_merged_as_a_lora_of_pefts(tmp_path, kind):
    expected = saved(tmp_path / "a", KINDS[kind])
    merged = samerge.merge(None, [str(tmp_path / "a")], method="linear", progress=False)
    folder = merged.save(tmp_path / "out")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    same(deltas(read_any(folder, "out")), expected)


def test_a_rank_says_what_it_loses(tmp_path):
    saved(tmp_path / "a", KINDS["loha"])
    small = samerge.compress_adapter(str(tmp_path / "a"), rank=2, progress=False)
    assert 0 < small.report.whole.lost < 1


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("adalora", lambda t: t.pop("base_model.model.up.lora_E"), r"'up' has \['lora_A', 'lora_B'\].*and lora_E"),
        ("adalora", lambda t: t.update({"base_model.model.up.lora_E": torch.ones(2, 1)}), r"lora_E has shape \(2, 1\)"),
        ("loha", lambda t: t.pop("base_model.model.up.hada_w1_a"), "'up' has .*make no product"),
        (
            "loha",
            lambda t: t.update({"base_model.model.up.hada_w1_a": torch.ones(8, 9)}),
            r"hada_w1_a has shape \(8, 9",
        ),
        ("lokr", lambda t: t.update({"base_model.model.up.lokr_w1": torch.ones(2)}), "which is no matrix"),
        ("lokr", lambda t: t.update({"x": torch.ones(2)}), "also holds 'x'"),
    ],
)
def test_broken_files(tmp_path, kind, change, words):
    saved(tmp_path / "a", KINDS[kind])
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(AdapterError, match=words) as caught:
        read_any(tmp_path / "a", "math")
    assert "of PEFT" in str(caught.value)


@pytest.mark.parametrize("field", ["lora_alpha", "alpha"])
def test_a_configuration_without_alpha(tmp_path, field):
    saved(tmp_path / "a", KINDS["adalora" if field == "lora_alpha" else "loha"])
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: "7"}))
    with pytest.raises(AdapterError, match=f"{field}='7'; it must be a finite number"):
        read_any(tmp_path / "a", "math")


def products(module: str, alpha: float) -> dict[str, torch.Tensor]:
    """LyCORIS' layouts, in kohya's files."""
    return {
        f"{module}_loha.hada_w1_a": random(10, 3, seed=1),
        f"{module}_loha.hada_w1_b": random(3, 8, seed=2),
        f"{module}_loha.hada_w2_a": random(10, 3, seed=3),
        f"{module}_loha.hada_w2_b": random(3, 8, seed=4),
        f"{module}_loha.alpha": torch.tensor(alpha),
        f"{module}_lokr.lokr_w1": random(2, 4, seed=5),
        f"{module}_lokr.lokr_w2_a": random(5, 2, seed=6),
        f"{module}_lokr.lokr_w2_b": random(2, 3, seed=7),
        f"{module}_lokr.alpha": torch.tensor(alpha),
        f"{module}_whole.lokr_w1": random(2, 2, seed=8),
        f"{module}_whole.lokr_w2": random(3, 2, 3, 3, seed=9),
        f"{module}_whole.alpha": torch.tensor(alpha),
        f"{module}_core.hada_t1": random(3, 3, 3, 3, seed=10),
        f"{module}_core.hada_w1_a": random(3, 5, seed=11),
        f"{module}_core.hada_w1_b": random(3, 4, seed=12),
        f"{module}_core.hada_t2": random(3, 3, 3, 3, seed=13),
        f"{module}_core.hada_w2_a": random(3, 5, seed=14),
        f"{module}_core.hada_w2_b": random(3, 4, seed=15),
        f"{module}_core.alpha": torch.tensor(alpha),
    }


def test_lycoris_in_kohyas_files(tmp_path):
    """ComfyUI's formulas: LoHa alpha / r, LoKr alpha / r of what is factored, 1 where nothing is."""
    t = products("lora_unet_x", 6.0)
    path = write(tmp_path, "lyco", t)

    def of(name: str) -> torch.Tensor:
        return t[f"lora_unet_x_{name}"].double()

    def core(number: int) -> torch.Tensor:
        parts = (of(f"core.hada_t{number}"), of(f"core.hada_w{number}_b"), of(f"core.hada_w{number}_a"))
        return torch.einsum("ijkl,jr,ip->prkl", *parts)

    one, two = (of(f"loha.hada_w{n}_a") @ of(f"loha.hada_w{n}_b") for n in (1, 2))
    whole = torch.kron(of("whole.lokr_w1")[:, :, None, None], of("whole.lokr_w2"))
    expected = {
        "lora_unet_x_loha": one * two * 6 / 3,
        "lora_unet_x_lokr": torch.kron(of("lokr.lokr_w1"), of("lokr.lokr_w2_a") @ of("lokr.lokr_w2_b")) * 6 / 2,
        "lora_unet_x_whole": whole,
        "lora_unet_x_core": core(1) * core(2) * 6 / 3,
    }
    adapter = read_any(path, "lyco")
    same(deltas(adapter), expected)
    assert adapter.modules["lora_unet_x_whole"].layout.kernel == (4, 3, 3)
    assert "2 modules as LoHa and 2 modules as LoKr" in adapter.notes[0]
    out = samerge.merge(None, [path], method="linear", progress=False).save(tmp_path / "out")
    same(deltas(read_any(out, "out")), expected)
