from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from .conftest import write_adapter


def edited(folder, **settings):
    """A new adapter with other settings."""
    write_adapter(folder, 7)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


def test_check_tells_of_each_adapter(invoke, tiny_base, loras) -> None:
    result = invoke("check", loras / "math", f"other={loras / 'far'}", "--base", tiny_base)
    assert result.exit_code == 0
    for words in (
        *("math", "other", "LORA, rank 4, scale 2, F32", "model.layers.*.mlp.down_proj x 2", "trained on tiny-llama"),
        *("merge     yes", "vLLM      yes", "llama.cpp yes"),
    ):
        assert words in result.stdout


def test_check_fails_when_one_cannot_be_merged(invoke, loras, tmp_path) -> None:
    result = invoke("check", loras / "math", edited(tmp_path / "far", init_lora_weights="pissa"))
    assert result.exit_code == 2
    assert "merge     no: reading adapter 'far': it was initialised with 'pissa'" in result.stdout
    assert result.stdout.count("merge     yes") == 1


def test_check_json(invoke, tmp_path) -> None:
    result = invoke("check", edited(tmp_path / "math", alpha_pattern={"q_proj": 1}), "--json")
    assert result.exit_code == 0
    (told,) = json.loads(result.stdout)
    assert told["mergeable"] is True
    assert told["ranks"] == {"4": 4}
    assert told["scales"] == [0.25, 2.0]
    assert "does not know alpha_pattern" in told["serving"]["SGLang"][0]
    assert told["serving"]["LoRAX"] == []


def test_check_of_nothing(invoke, tmp_path) -> None:
    assert invoke("check").exit_code == 2
    result = invoke("check", tmp_path)
    assert result.exit_code == 2
    assert "there is no adapter_config.json" in result.stdout
    assert invoke("check", tmp_path, "--base", tmp_path).exit_code == 2


def test_a_problem_is_told_in_the_shell_s_words(invoke, loras, tmp_path) -> None:
    folder = edited(tmp_path / "math", modules_to_save=["norm"])
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.model.norm.weight": torch.ones(3)}, file)
    result = invoke("check", folder)
    assert result.exit_code == 2
    assert "Choose --modules-to-save average (the mean" in result.stdout


def test_kohyas_modules_are_folded_by_layer_and_their_scale_is_told(invoke, tmp_path) -> None:
    tensors = {}
    for block in range(3):
        for leaf in ("attn1_to_q", "ff_net_0_proj"):
            stem = f"lora_unet_down_blocks_{block}_attentions_1_transformer_blocks_0_{leaf}"
            tensors |= {f"{stem}.lora_down.weight": torch.ones(4, 8), f"{stem}.lora_up.weight": torch.ones(8, 4)}
            tensors[f"{stem}.alpha"] = torch.tensor(2.0 if block else 1.0)
    save_file(tensors, tmp_path / "style.safetensors")
    result = invoke("check", tmp_path / "style.safetensors")
    assert result.exit_code == 0, result.output
    assert "rank 4, scale 0.25 to 0.5" in result.stdout
    folded = "lora_unet_down_blocks_*_attentions_*_transformer_blocks_*_"
    assert f"{folded}attn1_to_q x 3" in result.stdout
    assert f"{folded}ff_net_*_proj x 3" in result.stdout


def test_all_are_told_of_where_one_is_not_there(invoke, loras, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = invoke("check", "nobody/nothing", loras / "math", loras / "lost", loras / "far")
    assert result.exit_code == 2
    assert result.stdout.count("merge     yes") == 2
    assert result.stdout.count("merge     no: ") == 2
    told = json.loads(invoke("check", "nobody/nothing", loras / "math", "--json").stdout)
    assert [one["mergeable"] for one in told] == [False, True]
