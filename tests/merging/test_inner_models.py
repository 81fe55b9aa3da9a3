"""Adapters of a model inside another, of CLIP's text or vision model: its widths say which is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from alike import same_values
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
)

import samerge

TEXT = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "num_hidden_layers": 2}
TEXT |= {"vocab_size": 40, "max_position_embeddings": 16, "projection_dim": 16}
TEXT |= {"bos_token_id": 0, "eos_token_id": 39, "pad_token_id": 1}
VISION = {"num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4, "projection_dim": 16}


def vision_of(hidden: int, inner: int) -> dict[str, Any]:
    return {**VISION, "hidden_size": hidden, "intermediate_size": inner}


def clip(vision: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=16)).eval()


def inner(kind: str, vision: dict[str, Any]) -> nn.Module:
    if kind == "vision":
        return CLIPVisionModel(CLIPVisionConfig(**vision))
    return (CLIPTextModel if kind == "text" else CLIPTextModelWithProjection)(CLIPTextConfig(**TEXT))


def trained(
    model: nn.Module, folder: Path, seed: int, targets: tuple[str, ...] = ("q_proj", "v_proj", "fc1")
) -> dict[str, Tensor]:
    """An adapter on a model, saved; and its updates, by the last parts of the names."""
    torch.manual_seed(seed)
    peft = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=list(targets), init_lora_weights=False))
    peft.save_pretrained(folder)
    layers = peft.base_model.model.named_modules()
    found = {name: one.get_delta_weight("default").detach() for name, one in layers if hasattr(one, "get_delta_weight")}
    return {name[name.index("encoder.") :]: delta for name, delta in found.items()}


@pytest.mark.parametrize("kind", ["text", "projection", "vision"])
@pytest.mark.parametrize("live", [False, True])
def test_the_widths_say_which(kind: str, live: bool, tmp_path: Path) -> None:
    vision = vision_of(24, 20)
    expected = trained(inner(kind, vision), tmp_path / "a", 1)
    base = clip(vision)
    base.save_pretrained(tmp_path / "clip")
    given = base if live else tmp_path / "clip"
    merged = samerge.merge(given, [tmp_path / "a"], weights=[2.0], method="linear", progress=False)
    owner = "vision_model" if kind == "vision" else "text_model"
    own = {name[name.index("encoder.") :]: name for name in merged.factors}
    assert sorted(own) == sorted(expected)
    if live:
        assert all(name.startswith(f"{owner}.") for name in merged.factors)
    for name, delta in expected.items():
        same_values(merged.delta(own[name]), 2 * delta, 1e-5, name)


def test_where_some_modules_are_of_one_width_the_others_tell(tmp_path: Path) -> None:
    """The attention's layers are as wide in both models, the others are not; an adapter of both fits one alone."""
    vision = vision_of(16, 28)
    expected = trained(inner("vision", vision), tmp_path / "a", 1)
    base = clip(vision)
    merged = samerge.merge(base, [tmp_path / "a"], method="linear", progress=False)
    assert {name.partition(".")[0] for name in merged.factors} == {"vision_model"}
    for name, delta in expected.items():
        same_values(merged.delta(f"vision_model.{name}"), delta, 1e-5, name)
    trained(inner("vision", vision), tmp_path / "q", 2, ("q_proj", "v_proj"))
    with pytest.raises(samerge.BaseModelError) as caught:
        samerge.merge(base, [tmp_path / "q"], method="linear", progress=False)
    told = str(caught.value)
    for words in ("text_model.encoder.layers.0.self_attn.q_proj", "vision_model.encoder.layers.0.self_attn.q_proj"):
        assert words in told
    assert "'q'" in told
    assert "is one of the models in it the base?" in told


def test_adapters_of_both_models_keep_the_names_of_the_whole(tmp_path: Path) -> None:
    vision = vision_of(24, 20)
    updates = {}
    for number, (kind, owner) in enumerate((("text", "text_model"), ("vision", "vision_model"))):
        found = trained(inner(kind, vision), tmp_path / kind, number)
        updates |= {f"{owner}.{name}": delta for name, delta in found.items()}
    clip(vision).save_pretrained(tmp_path / "clip")
    folders = [tmp_path / "text", tmp_path / "vision"]
    merged = samerge.merge(tmp_path / "clip", folders, method="linear", progress=False)
    assert sorted(merged.factors) == sorted(updates)
    for name, delta in updates.items():
        same_values(merged.delta(name), delta, 1e-5, name)
    merged.save(tmp_path / "both")
    peft = PeftModel.from_pretrained(clip(vision), str(tmp_path / "both"))
    for name, layer in peft.base_model.model.named_modules():
        if hasattr(layer, "lora_A"):
            same_values(layer.get_delta_weight("default").detach(), updates.pop(name), 1e-5, name)
    assert not updates
