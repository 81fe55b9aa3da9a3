"""diffusers' files, in and out, against the formula written out, and against what diffusers itself loads."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from written_out import Q, deltas, kohya_deltas, random, same, write

import samerge
from samerge.adapters.formats.diffusers_ranks import told_ranks
from samerge.adapters.formats.table import read_any
from samerge.errors import AdapterError

UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
CONV = "unet.down_blocks.0.resnets.0.conv1"
STYLES = {
    "today": ("lora_A.weight", "lora_B.weight"),
    "older": ("lora.down.weight", "lora.up.weight"),
    "text": ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
}


def pair(module: str, rank: int, out: int, into: int, seed: int, style: str = "today", *kernel: int):
    low, high = STYLES[style]
    ones = (1,) * len(kernel)
    return {
        f"{module}.{low}": random(rank, into, *kernel, seed=seed),
        f"{module}.{high}": random(out, rank, *ones, seed=seed + 1),
    }


def lora(folder: Path, name: str, seed: int, rank: int = 4, style: str = "today", **header: str) -> str:
    tensors = pair(UNET, rank, 10, 12, seed, style)
    tensors |= pair(TEXT, rank, 8, 8, seed + 2, "text" if style == "older" else style)
    return write(folder, name, tensors | pair(CONV, 2, 5, 6, seed + 4, style, 3, 3), **header)


def formula(path: str | Path, scales: dict[str, float] | None = None) -> dict[str, torch.Tensor]:
    """B A, times alpha / r of the component."""
    tensors = {key: tensor.double() for key, tensor in load_file(path).items()}
    found = {}
    for key, low in tensors.items():
        for down, up in STYLES.values():
            if key.endswith(f".{down}"):
                module = key.removesuffix(f".{down}")
                scale = (scales or {}).get(module.partition(".")[0], 1.0)
                found[module] = scale * tensors[f"{module}.{up}"].flatten(1) @ low.flatten(1)
    return found


@pytest.mark.parametrize("style", ["today", "older"])
def test_every_update_is_the_formula(tmp_path, style):
    path = lora(tmp_path, "a", 1, style=style)
    adapter = read_any(path, "a")
    assert adapter.format == "diffusers"
    same(deltas(adapter), formula(path))


def test_alphas_as_keys_and_in_the_header(tmp_path):
    path = write(tmp_path, "keys", {**pair(UNET, 4, 10, 12, 1), f"{UNET}.alpha": torch.tensor(6.0)})
    same(deltas(read_any(path, "a")), formula(path, {"unet": 1.5}))
    about = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.rank_pattern": {"conv1": 2},
        "unet.alpha_pattern": {"conv1": 4},
        "text_encoder.r": 4,
        "text_encoder.lora_alpha": 2,
    }
    path = lora(tmp_path, "header", 1, lora_adapter_metadata=json.dumps(about))
    same(deltas(read_any(path, "a")), formula(path, {"unet": 2.0, "text_encoder": 0.5}))


def test_the_time_of_attention_processors(tmp_path):
    tensors = {}
    for module, path, leaf in (
        (UNET.rpartition(".")[0], "processor.to_q_lora", "to_q"),
        (UNET.rpartition(".")[0], "processor.to_out_lora", "to_out.0"),
        (TEXT.rpartition(".")[0], "to_q_lora", "q_proj"),
    ):
        tensors[f"{module}.{path}.down.weight"] = random(4, 8, seed=len(leaf))
        tensors[f"{module}.{path}.up.weight"] = random(8, 4, seed=len(leaf) + 1)
    adapter = read_any(write(tmp_path, "old", tensors), "old")
    assert sorted(adapter.modules) == sorted([UNET, UNET.replace("to_q", "to_out.0"), TEXT])


def test_a_merge_comes_back_in_diffusers_format(tmp_path):
    paths = [lora(tmp_path, "a", 1), lora(tmp_path, "b", 11, rank=8)]
    merged = samerge.merge(None, paths, method="linear", weights=[0.5, 2.0], progress=False)
    (tmp_path / "out").mkdir()
    out = merged.save(tmp_path / "out")
    assert out == tmp_path / "out" / "pytorch_lora_weights.safetensors"
    one, two = (formula(path) for path in paths)
    same(formula(out), {module: 0.5 * one[module] + 2 * two[module] for module in one})
    tensors = load_file(out)
    assert tensors[f"{CONV}.lora_A.weight"].shape == (4, 6, 3, 3)
    assert tensors[f"{UNET}.lora_A.weight"].shape == (12, 12)


def test_to_kohya_and_back(tmp_path):
    pytest.importorskip("diffusers")
    path = lora(tmp_path, "a", 1)
    there = samerge.merge(None, [path], method="linear", progress=False).save(tmp_path / "k", format="kohya")
    found = kohya_deltas(there)
    same({"x": found[Q]}, {"x": formula(path)[UNET]})
    back = samerge.merge(None, [there], method="linear", progress=False).save(tmp_path / "d", format="diffusers")
    same(formula(back), formula(path))


def test_several_ranks_are_said_as_peft_reads_them():
    """Also where a module's name ends with another's; and nothing is said where one rank is that of all."""
    ranks = {"unet.proj": 4, "unet.mid_block.proj": 2, "unet.up.mid_block.proj": 2, "unet.conv": 2}
    ranks |= {"text_encoder.text_model.encoder.layers.0.q_proj": 3}
    [text] = told_ranks(ranks).values()
    said = json.loads(text)
    for name, rank in ranks.items():
        component, _, module = name.partition(".")
        config = {key.partition(".")[2]: value for key, value in said.items() if key.startswith(f"{component}.")}
        for usual, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            for path in {module, module.removeprefix("text_model.")}:
                key = get_pattern_key(config[pattern], path)
                assert config[pattern].get(key, config[usual]) == rank, (path, pattern)
                assert any(path == target or path.endswith(f".{target}") for target in config["target_modules"])
    assert told_ranks({**ranks, "unet.proj": 2}) == {}


def test_to_pefts_format_one_component_at_a_time(tmp_path):
    path = write(tmp_path, "unet", pair(UNET, 4, 10, 12, 1))
    merged = samerge.merge(None, [path], method="linear", progress=False)
    folder = merged.save(tmp_path / "peft", format="peft")
    module = UNET.removeprefix("unet.")
    same(deltas(read_any(folder, "peft")), {module: formula(path)[UNET]})
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == [module]
    both = samerge.merge(None, [lora(tmp_path, "a", 1)], method="linear", progress=False)
    with pytest.raises(AdapterError, match=r"modules of text_encoder, unet, and the format holds one model"):
        both.save(tmp_path / "both", format="peft")


def test_flux_of_kohya_by_diffusers_own_converter(tmp_path):
    """One projection of q, k and v in kohya's names, three in diffusers'."""
    pytest.importorskip("diffusers")
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{stem}.lora_down.weight": random(4, 6), f"{stem}.lora_up.weight": random(9216, 4, seed=1)}
    path = write(tmp_path, "flux", {**tensors, f"{stem}.alpha": torch.tensor(2.0)})
    out = samerge.merge(None, [path], method="linear", progress=False).save(tmp_path / "out", format="diffusers")
    parts = kohya_deltas(path)[stem].chunk(3)
    names = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    same(formula(out), dict(zip(names, parts, strict=True)))


def test_what_diffusers_loads_is_what_was_written(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own, and those of the releases beside it
        torch.manual_seed(0)
        model = diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            sample_size=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=8,
            norm_num_groups=8,
        )
        block = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
        conv = "down_blocks.0.resnets.0.conv1"
        paths = []
        for name, rank in (("a", 4), ("b", 6)):
            tensors = pair(f"unet.{block}.to_q", rank, 64, 64, rank) | pair(
                f"unet.{block}.to_k", rank, 64, 64, rank + 2
            )
            paths.append(write(tmp_path, name, tensors | pair(f"unet.{conv}", 2, 32, 32, rank + 4, "today", 3, 3)))
        out = samerge.merge(None, paths, method="linear", progress=False).save(tmp_path / "out")
        model.load_lora_adapter(out.parent, weight_name=out.name, prefix="unet", adapter_name="merged")
    found = {
        f"unet.{name}": layer.get_delta_weight("merged").detach()
        for name, layer in model.named_modules()
        if "merged" in getattr(layer, "lora_A", {})
    }
    one, two = (formula(path) for path in paths)
    same(found, {module: one[module] + two[module] for module in one})


@pytest.mark.parametrize(
    ("tensors", "header", "words"),
    [
        ({}, {"lora_adapter_metadata": "[1]"}, "lora_adapter_metadata holds no object"),
        ({}, {"lora_adapter_metadata": '{"unet.r": 4}'}, "does not say lora_alpha"),
        ({}, {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 1e999}'}, "lora_alpha=inf"),
        ({f"{UNET}.alpha": torch.tensor(float("inf"))}, {}, "one finite number"),
        ({f"{UNET}.lora_B.weight": torch.zeros(10, 3)}, {}, r"\(10, 3\)"),
        ({"unet.conv_norm_out.weight": torch.zeros(3)}, {}, "also holds 'unet.conv_norm_out.weight'"),
        ({f"{UNET}.lora.down.weight": torch.zeros(4, 12)}, {}, "do not go together"),
    ],
)
def test_a_broken_file_is_refused_by_the_formats_name(tmp_path, tensors, header, words):
    path = write(tmp_path, "a", {**pair(UNET, 4, 10, 12, 1), **tensors}, **header)
    with pytest.raises(AdapterError, match=words) as caught:
        read_any(path, "style")
    assert "adapter 'style'" in str(caught.value)
    assert "diffusers" in str(caught.value)


def test_a_language_models_modules_are_in_no_pipeline(llama, tmp_path):
    merged = samerge.merge(None, [llama.adapters["math"]], method="linear", progress=False)
    with pytest.raises(AdapterError, match=r"of no component of a pipeline"):
        merged.save(tmp_path / "out", format="diffusers")
    with pytest.raises(AdapterError, match=r"of no diffusion model"):
        merged.save(tmp_path / "out", format="kohya")
    assert not (tmp_path / "out.safetensors").exists()
