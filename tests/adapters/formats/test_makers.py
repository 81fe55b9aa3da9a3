"""Names of the makers of diffusion transformers, brought to diffusers' own, or refused; and names that are kept.

The oracle is the table of what each module is called on either side, written out, and diffusers' own model.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import write_base
from torch import Tensor
from typer.testing import CliRunner
from written_out import deltas, kohya_deltas, random, same, write

import samerge
from samerge.adapters.formats.table import read_any
from samerge.cli import app
from samerge.errors import AdapterError
from samerge.merging.checking import check_adapter

diffusers = pytest.importorskip("diffusers")

#: What Wan's makers call a module of a block, and what diffusers calls it.
WAN = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.v": "attn2.to_v",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
QWEN = ["attn.to_q", "attn.add_k_proj", "attn.to_add_out", "attn.to_out.0", "img_mlp.net.0.proj", "txt_mod.1"]
Z_IMAGE = ["attention.to_q", "attention.to_out.0", "feed_forward.w1", "adaLN_modulation.0"]
MODELS: Mapping[str, dict[str, str]] = {
    "Wan": {f"blocks.1.{theirs}": f"blocks.1.{ours}" for theirs, ours in WAN.items()},
    "Qwen-Image": {f"transformer_blocks.1.{name}": f"transformer_blocks.1.{name}" for name in QWEN},
    "Z-Image": {f"layers.1.{name}": f"layers.1.{name}" for name in Z_IMAGE},
}


def model_of(kind: str) -> torch.nn.Module:
    with torch.device("meta"):
        if kind == "Wan":
            return diffusers.WanTransformer3DModel(num_attention_heads=2, attention_head_dim=8, num_layers=2)
        if kind == "Qwen-Image":
            return diffusers.QwenImageTransformer2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=2)
        return diffusers.ZImageTransformer2DModel(dim=256, n_heads=2, n_kv_heads=2, n_layers=2, n_refiner_layers=1)


def spelled(path: str, way: str) -> str:
    return f"lora_unet_{path.replace('.', '_')}" if way == "kohya" else f"{way}{path}"


def pairs(
    paths: list[str], way: str, parts: tuple[str, str], seed: int = 0, alpha: float | None = 1.0
) -> dict[str, Tensor]:
    tensors = {}
    for number, path in enumerate(paths):
        stem = spelled(path, way)
        tensors[f"{stem}.{parts[0]}"] = random(2, 6, seed=seed + number)
        tensors[f"{stem}.{parts[1]}"] = random(7, 2, seed=seed + number + 50)
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


DOWN_UP, A_B = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")


@pytest.mark.parametrize("way", ["kohya", "diffusion_model."])
@pytest.mark.parametrize("kind", MODELS)
def test_a_makers_names_become_diffusers(kind: str, way: str, tmp_path: Path) -> None:
    names = MODELS[kind]
    path = write(tmp_path, "theirs", pairs(list(names), way, DOWN_UP if way == "kohya" else A_B))
    out = samerge.convert_adapter(path, "diffusers", progress=False).save(tmp_path / "ours")
    theirs = kohya_deltas(path)
    found = kohya_deltas(out)
    same(found, {f"transformer.{ours}": theirs[spelled(name, way)] for name, ours in names.items()})
    there = {f"transformer.{name.removesuffix('.weight')}" for name in model_of(kind).state_dict()}
    assert set(found) <= there


@pytest.mark.parametrize("kind", ["Qwen-Image", "Z-Image"])
def test_diffusers_names_that_are_the_makers_too_become_kohyas(kind: str, tmp_path: Path) -> None:
    """What diffusers itself reads of musubi-tuner's files: `lora_unet_`, which it brings back to its own names."""
    names = [f"transformer.{name}" for name in MODELS[kind]]
    path = write(tmp_path, "ours", pairs(names, "", A_B, alpha=None))
    out = samerge.convert_adapter(path, "kohya", progress=False).save(tmp_path / "theirs")
    assert {key.partition(".")[0] for key in load_file(out)} == {spelled(name, "kohya") for name in MODELS[kind]}
    back = samerge.convert_adapter(out, "diffusers", progress=False).save(tmp_path / "back")
    same(kohya_deltas(back), kohya_deltas(path))


def test_diffusers_names_that_nobody_else_has_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, "wan", pairs(["transformer.blocks.0.attn1.to_q"], "", A_B, alpha=None))
    with pytest.warns(UserWarning, match=r"makers call them otherwise.*choose format='diffusers'"):
        samerge.convert_adapter(path, "kohya", progress=False).save(tmp_path / "out")


@pytest.mark.parametrize(
    "module",
    [
        "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "lora_unet_layers_0_attention_qkv",
        "lora_unet_transformer_blocks_0_ff_context_net_2",
        "diffusion_model.layers.0.attention.qkv",
        "diffusion_model.distilled_guidance_layer.layers.0.in_layer",
        "diffusion_model.layers.0.feed_forward.w1",  # of Lumina, or of Z-Image
        "diffusion_model.layers.0.adaLN_modulation.1",  # Lumina's
        "net.blocks.0.self_attn.q_proj",  # Anima's, not Wan's
    ],
)
def test_names_that_no_converter_is_for_are_refused(module: str, tmp_path: Path) -> None:
    """Stable Diffusion's converter would take them, and give modules that no model has."""
    tensors = pairs(["x"], "", A_B if "." in module else DOWN_UP)
    path = write(tmp_path, "a", {key.replace("x.", f"{module}.", 1): tensor for key, tensor in tensors.items()})
    with pytest.raises(
        AdapterError, match=rf"no converter of diffusers is known here for its names, such as '{module}'"
    ):
        samerge.convert_adapter(path, "diffusers", progress=False).save(tmp_path / "out")


def test_wans_names_beside_stable_diffusions_are_refused(tmp_path: Path) -> None:
    tensors = pairs(["blocks.0.self_attn.q", "mid_block.attentions.0.proj_in"], "kohya", DOWN_UP)
    with pytest.raises(AdapterError, match="or for all of them together"):
        samerge.convert_adapter(write(tmp_path, "a", tensors), "diffusers", progress=False).save(tmp_path / "out")


KEPT = {
    "Qwen-Image Lightning": ("transformer_blocks.0.attn.to_q", DOWN_UP, 1.0),
    "OneTrainer": ("transformer.transformer_blocks.0.attn.to_q", DOWN_UP, 1.0),
    "DiffSynth": ("blocks.0.self_attn.q", ("lora_A.default.weight", "lora_B.default.weight"), None),
    "fal": ("base_model.model.double_blocks.0.img_attn.proj", A_B, None),
    "Anima": ("net.blocks.0.self_attn.q_proj", A_B, None),
    "Z-Image without a prefix": ("layers.0.attention.to_q", DOWN_UP, 1.0),
    "ComfyUI's text encoder": ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1", DOWN_UP, None),
    "Stable Cascade": ("lora_prior_unet_down_blocks_0_x", DOWN_UP, 1.0),
}


@pytest.mark.parametrize("source", KEPT)
def test_what_comes_in_under_a_trainers_names_comes_back_under_them(source: str, tmp_path: Path) -> None:
    """What reads the sources need not know any other names of the same modules."""
    module, parts, alpha = KEPT[source]
    paths = [write(tmp_path, name, pairs([module], "", parts, seed, alpha)) for name, seed in (("a", 1), ("b", 2))]
    out = samerge.merge(None, paths, method="linear", weights=[1.0, 0.5], progress=False).save(tmp_path / "out")
    (a, b) = (kohya_deltas(unnamed(path, tmp_path)) for path in paths)
    same(kohya_deltas(out), {module: a[module] + 0.5 * b[module]})
    same(deltas(read_any(out, "out")), kohya_deltas(out))


def unnamed(path: str, folder: Path) -> str:
    """The same file without the name that the adapter has in its keys."""
    plain = {key.replace(".default.", "."): tensor for key, tensor in load_file(path).items()}
    save_file(plain, folder / "plain.safetensors")
    return str(folder / "plain.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.q_proj",
        "base_model.model.model.layers.0.attention.wqkv",  # InternLM2
        "base_model.model.model.layers.0.feed_forward.w1",  # LFM2, Llama 4
        "layers.0.attention.query_key_value",  # GPT-NeoX
        "model.layers.0.feed_forward.gate_proj",
        "model.blocks.0.self_attn.q_proj",
        "blocks.0.ffn.key",  # RWKV
        "blocks.0.ffn.up_proj",
    ],
)
def test_a_language_models_factors_need_their_configuration(name: str, tmp_path: Path) -> None:
    """Nothing but it says their scale."""
    with pytest.raises(AdapterError, match=r"adapter_config.json|of no format"):
        read_any(write(tmp_path, "adapter_model", pairs([name], "", A_B, alpha=None)), "a")


def test_one_module_that_only_diffusion_models_have_tells_of_all(tmp_path: Path) -> None:
    """And they come back in the same file, with what alone would not be read."""
    paths = ["layers.0.attention.to_q", "layers.0.feed_forward.w1", "layers.0.attention.qkv"]
    path = write(tmp_path, "z", pairs(paths, "", A_B, alpha=None))
    out = samerge.merge(None, [path], method="linear", progress=False).save(tmp_path / "out")
    same(deltas(read_any(out, "out")), kohya_deltas(path))


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base as diffusers has it: the transformer alone, whose `blocks.0.ffn` its makers have, too."""
    folder = tmp_path_factory.mktemp("wan")
    diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        ffn_dim=16,
        text_dim=8,
        freq_dim=8,
        in_channels=4,
        out_channels=4,
    ).save_pretrained(folder)
    return folder


def factors_for(base: Path, named: Mapping[str, str], parts: tuple[str, str]) -> dict[str, Tensor]:
    """Factors of the shapes of the base's weights; a name each, and the weight that it means."""
    weights = load_file(base / "diffusion_pytorch_model.safetensors")
    tensors = {}
    for number, (name, real) in enumerate(named.items()):
        out, into = weights[f"{real}.weight"].shape
        tensors[f"{name}.{parts[0]}"] = random(2, into, seed=number)
        tensors[f"{name}.{parts[1]}"] = random(out, 2, seed=number + 50)
    return tensors


@pytest.mark.parametrize("way", ["kohya", "diffusion_model.", ""])
def test_wans_names_fit_a_base_of_diffusers(way: str, wan: Path, tmp_path: Path) -> None:
    named = {spelled(theirs, way): ours for theirs, ours in MODELS["Wan"].items()}
    path = write(tmp_path, "theirs", factors_for(wan, named, DOWN_UP if way == "kohya" else A_B))
    out = samerge.merge(str(wan), [path], method="linear", progress=False).save(tmp_path / "out")
    theirs = kohya_deltas(path)
    same(kohya_deltas(out), {f"transformer.{ours}": theirs[name] for name, ours in named.items()})


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_peft_folder_of_diffusers_wan(form: str, wan: Path, tmp_path: Path) -> None:
    names = ["blocks.0.attn1.to_q", "blocks.0.ffn.net.0.proj", "blocks.0.ffn.net.2"]
    tensors = factors_for(wan, {f"base_model.model.{name}": name for name in names}, A_B)
    write(tmp_path / "peft", "adapter_model", tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["to_q", "net.0.proj", "net.2"]}
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of kohya's form of these names; told above
        merged = samerge.convert_adapter(tmp_path / "peft", form, str(wan), progress=False)
        found = kohya_deltas(merged.save(tmp_path / "out"))
    made = {name: f"transformer.{name}" for name in names}
    if form == "kohya":
        made = {name: f"lora_transformer_{name.replace('.', '_')}" for name in names}
    same(found, {made[name]: tensors_delta(tensors, f"base_model.model.{name}") for name in names})


def tensors_delta(tensors: Mapping[str, Tensor], module: str) -> Tensor:
    return tensors[f"{module}.lora_B.weight"].double() @ tensors[f"{module}.lora_A.weight"].double()


PREFIXES = ["base_model.model.", "net.", "model.diffusion_model.", "diffusion_model."]


class Maker(torch.nn.Module):
    """A model with the names that a maker's transformer has; the prefixes are its trainers'."""

    def __init__(self) -> None:
        super().__init__()
        block = torch.nn.ModuleDict({"self_attn": torch.nn.ModuleDict({"q": torch.nn.Linear(6, 7, bias=False)})})
        self.blocks = torch.nn.ModuleList([block])


@pytest.mark.parametrize("way", PREFIXES)
def test_a_peft_folder_of_a_makers_names_is_read_by_peft(way: str, tmp_path: Path) -> None:
    from peft import PeftModel

    path = write(tmp_path, "theirs", pairs(["blocks.0.self_attn.q"], way, A_B, alpha=None))
    out = samerge.convert_adapter(path, "peft", progress=False).save(tmp_path / "peft")
    model = Maker()
    before = model.blocks[0]["self_attn"]["q"].weight.detach().double()
    merged = PeftModel.from_pretrained(model, str(out)).merge_and_unload()
    [delta] = kohya_deltas(path).values()
    torch.testing.assert_close(merged.blocks[0]["self_attn"]["q"].weight.double() - before, delta, atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", [None, "peft"])
def test_a_peft_folder_keeps_the_names_of_the_model_that_it_is_of(form: str | None, tmp_path: Path) -> None:
    """A wrapper's attribute may be called as a trainer's prefix."""
    key = "base_model.model.diffusion_model.double_blocks.0.proj"
    peft_folder(tmp_path / "peft", ["diffusion_model.double_blocks.0.proj"])
    merged = samerge.merge(None, [tmp_path / "peft"], method="linear", progress=False)
    for made in (merged, samerge.convert_adapter(tmp_path / "peft", form, progress=False)):
        out = made.save(tmp_path / "out", format=form, overwrite=True)
        assert list(kohya_deltas(out / "adapter_model.safetensors")) == [key]


def test_comfyuis_text_encoder_and_transformer_are_no_one_model(tmp_path: Path) -> None:
    names = ["diffusion_model.double_blocks.0.proj", "text_encoders.clip_l.transformer.text_model.encoder.x"]
    path = write(tmp_path, "both", pairs(names, "", A_B, alpha=None))
    with pytest.raises(AdapterError, match=r"modules of text_encoders\.clip_l.*holds one model"):
        samerge.convert_adapter(path, "peft", progress=False).save(tmp_path / "out")


def test_what_a_trainer_put_before_is_no_part_of_kohyas_names(tmp_path: Path) -> None:
    tensors = pairs(["base_model.model.double_blocks.0.img_attn.proj"], "", A_B, alpha=None)
    out = samerge.convert_adapter(write(tmp_path, "fal", tensors), "kohya", progress=False).save(tmp_path / "out")
    assert list(kohya_deltas(out)) == ["lora_unet_double_blocks_0_img_attn_proj"]


@pytest.mark.parametrize("source", KEPT)
def test_a_dtype_alone_keeps_the_names(source: str, tmp_path: Path) -> None:
    module, parts, alpha = KEPT[source]
    path = write(tmp_path, "a", pairs([module], "", parts, 0, alpha))
    words = ["convert", path, "--dtype", "bfloat16", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    written = load_file(tmp_path / "out.safetensors")
    assert {key.partition(".lora_")[0].removesuffix(".alpha") for key in written} == {module}
    assert {one.dtype for key, one in written.items() if not key.endswith("alpha")} == {torch.bfloat16}
    assert read_any(tmp_path / "out.safetensors", "out").format == read_any(path, "a").format


def stems_of(folder: Path, names: list[str], base: Path | None = None) -> list[str]:
    path = write(folder, "ours", pairs([f"transformer.{name}" for name in names], "", A_B, alpha=None))
    made = samerge.convert_adapter(path, "kohya", None if base is None else str(base), progress=False)
    return sorted(kohya_deltas(made.save(folder / "theirs", overwrite=True)))


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (["layers.0.attention.to_q", "cap_embedder.1"], "lora_unet_"),  # Z-Image
        (["layers.0.attn.to_q", "layers.0.feed_forward.linear_1"], "lora_transformer_"),  # Lumina2
        (["transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.2", "img_in"], "lora_unet_"),  # Qwen
    ],
)
def test_what_a_transformer_alone_has_says_whose_it_is(names: list[str], prefix: str, tmp_path: Path) -> None:
    assert stems_of(tmp_path, names) == sorted(prefix + name.replace(".", "_") for name in names)


def test_attention_alone_is_told_by_the_base(tmp_path: Path) -> None:
    names = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_k_proj"]
    with pytest.warns(UserWarning, match=r"may be Flux's, SD3's or Qwen-Image's.*give base="):
        assert stems_of(tmp_path, names)[0].startswith("lora_transformer_")
    weights = {f"{name}.weight": random(7, 6) for name in names}
    for kind, prefix in (
        ("QwenImageTransformer2DModel", "lora_unet_"),
        ("SD3Transformer2DModel", "lora_transformer_"),
        ("QwenImage21Transformer2DModel", "lora_transformer_"),
    ):
        base = Path(write_base(tmp_path / kind, weights, _class_name=kind))
        assert all(stem.startswith(prefix) for stem in stems_of(tmp_path, names, base))


def test_the_way_out_of_names_that_nobody_else_has(wan: Path, tmp_path: Path) -> None:
    """With dots, diffusers' format; kohya's need the base for that."""
    names = ["blocks.0.attn1.to_q", "blocks.0.ffn.net.2"]
    stems = {f"lora_transformer_{name.replace('.', '_')}": name for name in names}
    path = write(tmp_path, "a", factors_for(wan, stems, DOWN_UP))
    with pytest.warns(UserWarning, match=r"give base=, the model, and choose format='diffusers'"):
        samerge.convert_adapter(path, "kohya", progress=False).save(tmp_path / "out")
    out = samerge.convert_adapter(path, "diffusers", str(wan), progress=False).save(tmp_path / "out", overwrite=True)
    theirs = kohya_deltas(path)
    same(kohya_deltas(out), {f"transformer.{ours}": theirs[stem] for stem, ours in stems.items()})


def peft_folder(folder: Path, names: list[str]) -> str:
    write(folder, "adapter_model", pairs([f"base_model.model.{name}" for name in names], "", A_B, alpha=None))
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return str(folder)


def test_attention_that_diffusers_calls_self_attn(tmp_path: Path) -> None:
    """Of LongCat's audio transformer and of Wan Animate 2; nothing of it is a maker's name."""
    names = ["blocks.0.self_attn.to_q", "blocks.0.cross_attn.to_out.0", "blocks.0.ffn.ff.0"]
    weights = {f"{name}.weight": random(7, 6) for name in names}
    base = write_base(tmp_path / "base", weights, _class_name="LongCatAudioDiTTransformer")
    out = samerge.convert_adapter(peft_folder(tmp_path / "peft", names), "diffusers", base, progress=False)
    assert sorted(kohya_deltas(out.save(tmp_path / "out"))) == sorted(f"transformer.{name}" for name in names)


def test_a_language_model_may_have_blocks_with_self_attn(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "peft", ["blocks.0.self_attn.q_proj", "blocks.0.ffn.up_proj"])
    serving = check_adapter(folder).serving
    assert not any("diffusion model" in reason for reasons in serving.values() for reason in reasons)


def test_files_of_two_formats_make_a_folder_that_peft_reads(tmp_path: Path) -> None:
    fal = write(tmp_path, "fal", pairs(["base_model.model.double_blocks.0.proj"], "", A_B, alpha=None))
    other = peft_folder(tmp_path / "peft", ["double_blocks.0.proj"])
    out = samerge.merge(None, [fal, other], method="linear", progress=False).save(tmp_path / "out")
    found = kohya_deltas(out / "adapter_model.safetensors")
    assert sorted(found) == ["base_model.model.double_blocks.0.proj"]
