"""Whole pipelines of diffusers as the base: files of any naming merged, and the result loaded by diffusers itself.

The oracle is diffusers: it loads the sources, each with its weight, and what it makes of them together is what it has
to make of the merged file alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from alike import same_values
from packaging.version import Version
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner
from written_out import random

import samerge
from samerge.adapters.servers import VERSIONS
from samerge.cli import app
from samerge.merging.checking import check_adapter

pytest.importorskip("diffusers")
from pipelines import flux_pipeline, painted, put_on, stable_diffusion, stable_diffusion_xl

WEIGHTS = {"a": 1.0, "b": -0.5}
BLOCK = "attentions.0.transformer_blocks.0"
TEXT = "text_model.encoder.layers"


@pytest.fixture(autouse=True)
def _peft_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.integrations.peft as integration

    if hasattr(integration, "check_peft_version"):  # asks for a PEFT that is not out yet
        monkeypatch.setattr(integration, "check_peft_version", lambda **given: None)


def layer(pipe: Any, module: str) -> Any:
    part, _, path = module.partition(".")
    model = getattr(pipe, part)
    return model.get_submodule(path if hasattr(model, "text_model") else path.removeprefix("text_model."))


def pair(pipe: Any, module: str, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random factors for a module of a pipeline, a linear layer or a convolution."""
    out, into, *kernel = layer(pipe, module).weight.shape
    return random(rank, into, *kernel, seed=seed), random(out, rank, *[1] * len(kernel), seed=seed + 1)


def diffusers_file(pipe: Any, path: Path, modules: list[str], rank: int, seed: int, kind: str = "") -> str:
    tensors = {}
    for number, module in enumerate(modules):
        name = module.replace("text_model.", "") if kind == "today" else module
        A, B = pair(pipe, module, rank, seed + 2 * number)
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    save_file(tensors, path)
    return str(path)


def kohya_file(pipe: Any, path: Path, stems: Mapping[str, str | list[str]], rank: int, seed: int) -> str:
    """A file in kohya's names: stem -> the module that it is, or those that it is one under the other."""
    tensors = {}
    for number, (stem, modules) in enumerate(stems.items()):
        parts = [modules] if isinstance(modules, str) else modules
        pairs = [pair(pipe, module, rank, seed + 10 * number + n) for n, module in enumerate(parts)]
        up = torch.cat([B for _, B in pairs])
        tensors |= {f"{stem}.lora_down.weight": pairs[0][0], f"{stem}.lora_up.weight": up}
        tensors[f"{stem}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path)
    return str(path)


def sd_kohya(pipe: Any, folder: Path) -> str:
    modules = {
        f"lora_unet_down_blocks_1_{BLOCK.replace('.', '_')}_attn1_to_q": f"unet.down_blocks.1.{BLOCK}.attn1.to_q",
        "lora_unet_mid_block_resnets_0_conv1": "unet.mid_block.resnets.0.conv1",
        f"lora_te_{TEXT.replace('.', '_')}_0_self_attn_out_proj": f"text_encoder.{TEXT}.0.self_attn.out_proj",
    }
    return kohya_file(pipe, folder / "a.safetensors", modules, 4, 1)


def sd_diffusers(pipe: Any, folder: Path, kind: str = "") -> str:
    modules = [f"unet.down_blocks.1.{BLOCK}.attn1.{leaf}" for leaf in ("to_q", "to_out.0")]
    modules += ["unet.up_blocks.1.resnets.0.conv1", f"text_encoder.{TEXT}.0.self_attn.out_proj"]
    return diffusers_file(pipe, folder / "b.safetensors", modules, 2, 51, kind)


def xl_kohya(pipe: Any, folder: Path, name: str, rank: int, seed: int) -> str:
    """In the names of SDXL's makers, as kohya's scripts write them; of rank 2 without the convolutions."""
    attention = {
        "input_blocks_4_1": "down_blocks.1.attentions.0",
        "input_blocks_5_1": "down_blocks.1.attentions.1",
        "middle_block_1": "mid_block.attentions.0",
        "output_blocks_2_1": "up_blocks.0.attentions.2",
    }
    modules: dict[str, str | list[str]] = {}
    for stem, path in attention.items():
        for leaf in ("attn1.to_q", "attn2.to_out.0", "ff.net.0.proj"):
            inner = f"transformer_blocks.0.{leaf}"
            modules[f"lora_unet_{stem}_{inner.replace('.', '_')}"] = f"unet.{path}.{inner}"
        modules[f"lora_unet_{stem}_proj_in"] = f"unet.{path}.proj_in"
    modules |= {
        "lora_unet_input_blocks_1_0_in_layers_2": "unet.down_blocks.0.resnets.0.conv1",
        "lora_unet_input_blocks_3_0_op": "unet.down_blocks.0.downsamplers.0.conv",
        "lora_unet_output_blocks_3_0_skip_connection": "unet.up_blocks.1.resnets.0.conv_shortcut",
        "lora_unet_output_blocks_3_0_emb_layers_1": "unet.up_blocks.1.resnets.0.time_emb_proj",
    }
    for number in (1, 2):
        part = "text_encoder" if number == 1 else "text_encoder_2"
        for inner in ("0.self_attn.q_proj", "1.self_attn.out_proj"):
            stem = f"lora_te{number}_{TEXT.replace('.', '_')}_{inner.replace('.', '_')}"
            modules[stem] = f"{part}.{TEXT}.{inner}"
    if rank == 2:
        modules = {stem: module for stem, module in modules.items() if "resnets" not in module}
    return kohya_file(pipe, folder / f"{name}.safetensors", modules, rank, seed)


def flux_kohya(pipe: Any, folder: Path, name: str = "a", rank: int = 4, seed: int = 1) -> str:
    """Projections of q, k and v in one piece."""
    block = "transformer.transformer_blocks.0"
    modules: dict[str, str | list[str]] = {
        "lora_unet_double_blocks_0_img_attn_qkv": [f"{block}.attn.to_{leaf}" for leaf in "qkv"],
        "lora_unet_double_blocks_0_txt_attn_qkv": [f"{block}.attn.add_{leaf}_proj" for leaf in "qkv"],
        "lora_unet_double_blocks_0_img_mlp_0": f"{block}.ff.net.0.proj",
        "lora_unet_single_blocks_0_linear2": "transformer.single_transformer_blocks.0.proj_out",
        f"lora_te1_{TEXT.replace('.', '_')}_1_self_attn_out_proj": f"text_encoder.{TEXT}.1.self_attn.out_proj",
    }
    return kohya_file(pipe, folder / f"{name}.safetensors", modules, rank, seed)


def flux_diffusers(pipe: Any, folder: Path) -> str:
    names = [
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.ff.net.0.proj",
        "single_transformer_blocks.0.proj_mlp",
    ]
    modules = [f"transformer.{name}" for name in names]
    modules.append(f"text_encoder.{TEXT}.0.self_attn.q_proj")
    return diffusers_file(pipe, folder / "b.safetensors", modules, 2, 51)


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any, Path], list[str]]]] = {
    "sd": (stable_diffusion, lambda pipe, folder: [sd_kohya(pipe, folder), sd_diffusers(pipe, folder)]),
    "sd, names of today": (
        stable_diffusion,
        lambda pipe, folder: [sd_kohya(pipe, folder), sd_diffusers(pipe, folder, "today")],
    ),
    "sdxl": (
        stable_diffusion_xl,
        lambda pipe, folder: [xl_kohya(pipe, folder, "a", 4, 1), xl_kohya(pipe, folder, "b", 2, 101)],
    ),
    "flux": (flux_pipeline, lambda pipe, folder: [flux_kohya(pipe, folder), flux_diffusers(pipe, folder)]),
}


def models(pipe: Any) -> dict[str, nn.Module]:
    names = ("unet", "transformer", "text_encoder", "text_encoder_2")
    return {name: pipe.components[name] for name in names if pipe.components.get(name) is not None}


def updates(pipe: Any, weights: Mapping[str, float]) -> dict[str, Tensor]:
    """What adapters add to every weight of a pipeline, by PEFT."""
    found: dict[str, Tensor] = {}
    for part, model in models(pipe).items():
        for path, module in model.named_modules():
            if isinstance(module, LoraLayer):
                parts = [w * module.get_delta_weight(name) for name, w in weights.items() if name in module.lora_A]
                if parts:
                    found[f"{part}.{path}"] = sum(parts[1:], parts[0]).detach()
    return found


def load(pipe: Any, path: str | Path, name: str) -> None:
    """By diffusers; it and the libraries below it warn of one another."""
    of_text = any(key.startswith(("text_encoder", "lora_te")) for key in load_file(path))
    if of_text and Version(version("diffusers")) < Version("0.41"):
        pytest.skip("diffusers before 0.41 loads nothing into CLIP's text encoder of transformers 5.6 and later")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(str(Path(path).parent), weight_name=Path(path).name, adapter_name=name)


def check(found: Any, expected: Any) -> None:
    """One pipeline with the merged adapter "m", one with the sources."""
    expected.set_adapters(list(WEIGHTS), [1.0, 1.0])
    ours, theirs = updates(found, {"m": 1.0}), updates(expected, WEIGHTS)
    assert sorted(ours) == sorted(theirs)
    for module, delta in theirs.items():
        same_values(ours[module], delta, 1e-5, module)
    expected.set_adapters(list(WEIGHTS), list(WEIGHTS.values()))
    found.set_adapters("m")
    for name, model in models(found).items():
        if any(module.startswith(f"{name}.") for module in ours):
            same_values(painted(model), painted(models(expected)[name]), 1e-4, name)


@pytest.mark.parametrize("case", sorted(CASES))
def test_files_merge_on_a_pipeline_and_diffusers_loads_the_result(case: str, tmp_path: Path) -> None:
    make, files = CASES[case]
    expected = make()
    paths = files(expected, tmp_path)
    merged = samerge.merge(make(), paths, method="linear", weights=list(WEIGHTS.values()), progress=False)
    assert merged.format == "diffusers"  # also where both were kohya's, of the makers' modules
    for name, path in zip(WEIGHTS, paths, strict=True):
        load(expected, path, name)
    for format in ("diffusers",) if case == "flux" else ("diffusers", "kohya"):  # see WRITTEN
        out = merged.save(tmp_path / f"merged-{format}", format=format)
        found = make()
        load(found, out, "m")
        check(found, expected)


@pytest.mark.parametrize("case", ["sdxl", "flux"])
@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_makers_names_merge_without_a_base(case: str, format: str, tmp_path: Path) -> None:
    make, files = CASES[case]
    expected, found = make(), make()
    paths = files(expected, tmp_path) if case == "sdxl" else [flux_kohya(expected, tmp_path)]
    if case == "flux":
        paths.append(flux_kohya(expected, tmp_path, "b", 2, 51))
    for name, path in zip(WEIGHTS, paths, strict=True):
        load(expected, path, name)
    merged = samerge.merge(None, paths, method="linear", weights=list(WEIGHTS.values()), progress=False)
    load(found, merged.save(tmp_path / "merged", format=format), "m")
    check(found, expected)


@pytest.mark.parametrize("case", ["sd", "flux"])
def test_live_adapters_and_files_merge_on_a_pipeline(case: str, tmp_path: Path) -> None:
    make, files = CASES[case]
    pipe, expected = make(), make()
    one, two = files(pipe, tmp_path)
    for name, path in zip(WEIGHTS, (one, two), strict=True):
        load(expected, path, name)
    load(pipe, one, "a")
    merged = samerge.merge(pipe, ["a", two], method="linear", weights=list(WEIGHTS.values()), progress=False)
    assert merged.format == "diffusers"
    merged.apply_to(pipe, "m")
    check(pipe, expected)
    out = merged.save(tmp_path / "again")
    pipe.set_adapters("a")
    pipe.delete_adapters("m")
    load(pipe, out, "m")
    check(pipe, expected)
    assert merged.report.record.base.name == type(pipe).__name__


def test_the_default_on_a_pipeline_says_how_it_ranked() -> None:
    pipe = stable_diffusion()
    put_on(pipe.unet, "a", 1, ["to_q"])
    put_on(pipe.text_encoder, "b", 2, ["q_proj"])
    merged = samerge.merge(pipe, ["a", "b"], progress=False)
    assert merged.report.record.method == "even"
    assert any("no flow graph" in note for note in merged.report.record.notes)
    local = samerge.merge(pipe, ["a", "b"], method="saliency", connectivity="local", progress=False)
    assert local.report.record.options["connectivity"] == "local"


def test_what_a_pipeline_refuses(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    with pytest.raises(samerge.AdapterError, match=r"no adapter 'x' in this StableDiffusionPipeline; it has \[\]"):
        samerge.merge(pipe, ["x"])
    strange = {"unet.nowhere.to_q.lora_A.weight": random(2, 8), "unet.nowhere.to_q.lora_B.weight": random(8, 2)}
    save_file(strange, tmp_path / "strange.safetensors")
    with pytest.raises(samerge.BaseModelError, match=r"'unet\.nowhere\.to_q' has no weight there"):
        samerge.merge(pipe, [tmp_path / "strange.safetensors"], method="linear")
    path = sd_diffusers(pipe, tmp_path)
    merged = samerge.merge(pipe, [path], method="linear", progress=False)
    with pytest.raises(samerge.AdapterError, match=r"expected a PeftModel, or a model with adapters in it"):
        merged.apply_to(pipe, "m")
    alone = samerge.merge(None, [sd_kohya(pipe, tmp_path)], method="linear", progress=False)
    with pytest.raises(samerge.BaseModelError, match=r"is of none of its models.*pipe\.load_lora_weights"):
        alone.apply_to(pipe, "m")


def test_what_diffusers_converter_would_lose_is_refused(tmp_path: Path) -> None:
    """Beside Flux's own layers, T5's, for which its converter has a warning only."""
    pipe = flux_pipeline()
    tensors = load_file(flux_kohya(pipe, tmp_path))
    stem = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    tensors |= {f"{stem}.lora_down.weight": random(2, 8), f"{stem}.lora_up.weight": random(8, 2)}
    save_file(tensors, tmp_path / "t5.safetensors")
    merged = samerge.merge(None, [tmp_path / "t5.safetensors"], method="linear", progress=False)
    with pytest.raises(samerge.AdapterError, match="diffusers"):
        merged.save(tmp_path / "out", format="diffusers")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_pipelines_folder_is_a_base_on_the_command_line(tmp_path: Path) -> None:
    pipe, expected, found = (stable_diffusion() for _ in range(3))
    pipe.save_pretrained(tmp_path / "sd")
    words = ["merge", "--base", str(tmp_path / "sd"), "--method", "linear", "--quiet", "-o", str(tmp_path / "both")]
    for name, path in zip(WEIGHTS, [sd_kohya(pipe, tmp_path), sd_diffusers(pipe, tmp_path, "today")], strict=True):
        load(expected, path, name)
        words += ["-a", f"{path}:{WEIGHTS[name]}"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    load(found, tmp_path / "both.safetensors", "m")
    check(found, expected)


def test_a_pipeline_says_names_for_converting_and_comparing(tmp_path: Path) -> None:
    pipe, expected, found = (stable_diffusion() for _ in range(3))
    path = sd_kohya(pipe, tmp_path)
    load(expected, path, "a")
    load(found, samerge.convert_adapter(path, "diffusers", pipe, progress=False).save(tmp_path / "out"), "m")
    ours, theirs = updates(found, {"m": 1.0}), updates(expected, {"a": 1.0})
    for module, delta in theirs.items():
        same_values(ours[module], delta, 1e-6, module)
    told = samerge.compare(pipe, [path, sd_diffusers(pipe, tmp_path)], ["linear", "even"], progress=False)
    assert set(told.merged) == {"linear", "even"}
    small = samerge.compress_adapter(path, 2, base=pipe, progress=False)
    assert max(one.rank for one in small.factors.values()) == 2


ALONE = [("sd", "unet", "lora_unet_"), ("sdxl", "unet", "lora_unet_"), ("sd", "text_encoder", "lora_te_")]
#: Of Flux, diffusers reads kohya's names of the makers' modules, and of its own those of some layers alone.
WRITTEN = [(*one, format) for one in ALONE for format in ("diffusers", "kohya")]
WRITTEN.append(("flux", "transformer", "lora_unet_", "diffusers"))


@pytest.mark.parametrize(("case", "part", "stems", "format"), WRITTEN)
@pytest.mark.parametrize("on_disk", [False, True])
def test_one_model_of_a_pipeline_as_the_base(
    case: str, part: str, stems: str, on_disk: bool, format: str, tmp_path: Path
) -> None:
    """Which of the pipeline's models it is, its class says; what is saved has the model's name."""
    make, files = CASES[case]
    expected, found = make(), make()
    tensors = {key: one for key, one in load_file(files(expected, tmp_path)[0]).items() if key.startswith(stems)}
    save_file(tensors, tmp_path / "part.safetensors")
    load(expected, tmp_path / "part.safetensors", "a")
    base = getattr(make(), part)
    if on_disk or part == "text_encoder":  # then its configuration names its class
        base.save_pretrained(tmp_path / part)
        base = tmp_path / part
    merged = samerge.merge(base, [tmp_path / "part.safetensors"], method="linear", progress=False)
    load(found, merged.save(tmp_path / "out", format=format), "m")
    ours, theirs = updates(found, {"m": 1.0}), updates(expected, {"a": 1.0})
    assert sorted(ours) == sorted(theirs)
    for module, delta in theirs.items():
        same_values(ours[module], delta, 1e-5, module)


def test_which_text_encoder_it_is_must_be_said(tmp_path: Path) -> None:
    """One with a projection is SDXL's second, or either of Stable Diffusion 3."""
    pipe = stable_diffusion_xl()
    tensors = {k: t for k, t in load_file(xl_kohya(pipe, tmp_path, "a", 4, 1)).items() if k.startswith("lora_te2_")}
    save_file(tensors, tmp_path / "te.safetensors")
    pipe.text_encoder_2.save_pretrained(tmp_path / "text_encoder_2")
    merged = samerge.merge(tmp_path / "text_encoder_2", [tmp_path / "te.safetensors"], method="linear", progress=False)
    for format in ("diffusers", "kohya"):
        with pytest.raises(samerge.AdapterError, match=r"nothing says which one.*give the whole pipeline as the base"):
            merged.save(tmp_path / "out", format=format)
    assert merged.save(tmp_path / "peft", format="peft").is_dir()


@pytest.mark.parametrize("case", sorted(CASES))
def test_no_server_of_language_models_serves_them(case: str, tmp_path: Path) -> None:
    make, files = CASES[case]
    for path in files(make(), tmp_path):
        report = check_adapter(path)
        assert report.serving is not None
        assert set(report.serving) == set(VERSIONS)
        assert all("of a diffusion model" in reasons[0] for reasons in report.serving.values())
        assert not any("convert --format peft" in note for note in report.notes)


def test_comfyuis_names_of_the_makers_modules(tmp_path: Path) -> None:
    """`diffusion_model.` and the makers' path, as ComfyUI writes it; diffusers reads the same in kohya's names."""
    pipe, expected, found = (flux_pipeline() for _ in range(3))
    stems = {"img_attn_qkv": "img_attn.qkv", "txt_attn_qkv": "txt_attn.qkv", "img_mlp_0": "img_mlp.0"}
    tensors, same = {}, {}
    for key, tensor in load_file(flux_kohya(pipe, tmp_path)).items():
        stem, _, part = key.partition(".")
        inner = stems.get(stem.removeprefix("lora_unet_double_blocks_0_"))
        if inner is not None:
            part = part.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
            tensors[f"diffusion_model.double_blocks.0.{inner}.{part}"] = same[key] = tensor
    save_file(tensors, tmp_path / "comfy.safetensors")
    save_file(same, tmp_path / "kohya.safetensors")
    load(expected, tmp_path / "kohya.safetensors", "a")
    merged = samerge.merge(pipe, [tmp_path / "comfy.safetensors"], method="linear", progress=False)
    load(found, merged.save(tmp_path / "out", format="diffusers"), "m")
    ours, theirs = updates(found, {"m": 1.0}), updates(expected, {"a": 1.0})
    assert sorted(ours) == sorted(theirs)
    for module, delta in theirs.items():
        same_values(ours[module], delta, 1e-5, module)


def test_kohyas_names_of_comfyuis_and_back_as_they_came(tmp_path: Path) -> None:
    """A merge of ai-toolkit's files comes back as theirs; who asks for kohya's format gets kohya's names."""
    module = "diffusion_model.double_blocks.0.img_attn.qkv"
    tensors = {f"{module}.lora_A.weight": random(2, 32), f"{module}.lora_B.weight": random(96, 2)}
    save_file(tensors, tmp_path / "comfy.safetensors")
    merged = samerge.merge(None, [tmp_path / "comfy.safetensors"], method="linear", progress=False)
    assert f"{module}.lora_A.weight" in load_file(merged.save(tmp_path / "same"))
    made = samerge.convert_adapter(tmp_path / "comfy.safetensors", "kohya", progress=False)
    words = ["merge", "-a", str(tmp_path / "comfy.safetensors"), "-q", "--method", "linear", "--format", "kohya"]
    assert CliRunner().invoke(app, [*words, "-o", str(tmp_path / "shell")]).exit_code == 0
    paths = merged.save(tmp_path / "a", format="kohya"), made.save(tmp_path / "b"), tmp_path / "shell.safetensors"
    for path in paths:
        stem = "lora_unet_double_blocks_0_img_attn_qkv"
        found = load_file(path)
        assert sorted(found) == [f"{stem}.alpha", f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"]
        delta = found[f"{stem}.lora_up.weight"] @ found[f"{stem}.lora_down.weight"]
        same_values(delta * (found[f"{stem}.alpha"] / 2), next(iter(merged.factors.values())).delta(), 1e-5)


def test_what_diffusers_does_not_read_of_kohyas_form_is_said(tmp_path: Path) -> None:
    pipe = flux_pipeline()
    linear = "transformer.single_transformer_blocks.0.proj_mlp"
    path = diffusers_file(pipe, tmp_path / "a.safetensors", [linear], 2, 1)
    with pytest.warns(UserWarning, match="diffusers itself the attention layers alone.*format='diffusers'"):
        samerge.convert_adapter(path, "kohya", progress=False).save(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = CliRunner().invoke(app, ["convert", path, "--format", "kohya", "-o", str(tmp_path / "again")])
    assert "attention layers alone: for it, choose --format diffusers" in " ".join(result.output.split())
    attention = diffusers_file(pipe, tmp_path / "b.safetensors", [linear.replace("proj_mlp", "attn.to_q")], 2, 1)
    samerge.convert_adapter(attention, "kohya", progress=False).save(tmp_path / "quiet")


def test_names_that_nobody_knows_are_told_with_the_nearest(tmp_path: Path) -> None:
    """Those of another model whose names diffusers converts, by the converted ones."""
    unknown, wans = "diffusion_model.strange.0.q", "diffusion_model.blocks.0.self_attn.q"
    for module, told in ((unknown, unknown), (wans, "transformer.blocks.0.attn1.to_q")):
        tensors = {f"{module}.lora_A.weight": random(2, 8), f"{module}.lora_B.weight": random(8, 2)}
        save_file(tensors, tmp_path / "other.safetensors")
        with pytest.raises(samerge.BaseModelError, match=rf"'{told}' has no weight there \(nearest: "):
            samerge.merge(flux_pipeline(), [tmp_path / "other.safetensors"], method="linear", progress=False)


@pytest.fixture(scope="module")
def sd_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    stable_diffusion().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["kohya", "diffusers"])
def test_what_a_lora_has_beside_the_base_is_left_out_with_weight_0(kind: str, sd_on_disk: Path, tmp_path: Path) -> None:
    """Merged on, or baked into, one model of the pipeline that it was trained on."""
    pipe = stable_diffusion()
    path = sd_kohya(pipe, tmp_path) if kind == "kohya" else sd_diffusers(pipe, tmp_path)
    pattern = "lora_te_*" if kind == "kohya" else "text_encoder.*"
    own = {k: t for k, t in load_file(path).items() if not k.startswith(pattern.rstrip("*"))}
    save_file(own, tmp_path / "unet.safetensors")
    base = sd_on_disk / "unet"
    expected = samerge.merge(base, [tmp_path / "unet.safetensors"], method="linear", progress=False)
    for rules in ({pattern: 0}, {"*": 0, "unet.*": 1}):
        found = samerge.merge(base, [path], method="linear", modules=rules, progress=False)
        assert list(found.factors) == list(expected.factors), rules
        for module in found.factors:
            same_values(found.delta(module), expected.delta(module), 1e-6, module)
    words = ["-b", str(base), "-a", str(path), "-q", "-o", str(tmp_path / "out")]
    for command in ("merge", "bake", "check"):
        result = CliRunner().invoke(app, [command, *(words[:4] if command == "check" else words)])
        assert result.exit_code == 2, result.output
        assert f"--module-weight '{pattern}=0'" in " ".join(result.output.split())
    with pytest.raises(samerge.BaseModelError, match=rf"modules={{'{re.escape(pattern)}': 0}}"):
        samerge.merge(base, [path], method="linear", progress=False)
    result = CliRunner().invoke(app, ["bake", *words, "--module-weight", f"{pattern}=0"])
    assert result.exit_code == 0, result.output
    plain = samerge.bake(base, [tmp_path / "unet.safetensors"], progress=False).save(tmp_path / "plain")
    name = "diffusion_pytorch_model.safetensors"
    baked, oracle = load_file(tmp_path / "out" / name), load_file(plain / name)
    assert baked.keys() == oracle.keys()
    for key, tensor in oracle.items():
        assert torch.equal(baked[key], tensor), key


def test_own_names_of_a_file_on_a_whole_pipeline(tmp_path: Path) -> None:
    """A rule in kohya's names and one in the base's: the last one wins."""
    pipe, path = stable_diffusion(), sd_kohya(stable_diffusion(), tmp_path)
    plain = samerge.merge(pipe, [path], method="linear", progress=False)
    for rules, factors in {
        (("lora_te_*", 0.5),): (0.5, 1.0),
        (("lora_te_*", 0.0),): (0.0, 1.0),
        (("lora_te_*", 0.0), ("unet.*", 2.0)): (0.0, 2.0),
        (("lora_te_*", 0.0), ("*.out_proj", 2.0)): (2.0, 1.0),
        (("text_encoder.*", 2.0), ("lora_te_*", 0.5)): (0.5, 1.0),
    }.items():
        found = samerge.merge(pipe, [path], method="linear", modules=dict(rules), progress=False)
        for module in plain.factors:
            factor = factors[not module.startswith("text_encoder")]
            if factor:
                same_values(found.delta(module), factor * plain.delta(module), 1e-6, f"{rules} {module}")
            else:
                assert module not in found.factors


def test_convolutions_that_no_adapter_has(sd_on_disk: Path, tmp_path: Path) -> None:
    """Those of an adapted type get zeros in PEFT's format, each in its own number of channels."""
    path = sd_diffusers(stable_diffusion(), tmp_path)
    rules = {"text_encoder.*": 0}
    merged = samerge.merge(sd_on_disk / "unet", [path], method="linear", modules=rules, progress=False)
    merged.save(tmp_path / "out", format="peft")
    weights = load_file(sd_on_disk / "unet" / "diffusion_pytorch_model.safetensors")
    own = load_file(path)
    for module in merged.factors:
        dense = merged.delta(module)
        assert dense.shape == weights[f"{module.removeprefix('unet.')}.weight"].shape
        assert bool(dense.any()) == (f"{module}.lora_A.weight" in own)


def test_blocks_by_number(tmp_path: Path) -> None:
    """Strengths by block, whatever the files call the blocks; also of one adapter alone."""
    pipe, expected = stable_diffusion(), stable_diffusion()
    paths = [sd_kohya(pipe, tmp_path), sd_diffusers(pipe, tmp_path)]
    for name, path in zip(WEIGHTS, paths, strict=True):
        load(expected, path, name)
    blocks = {"down_blocks.1.*": 0.5, "up_blocks.[0-9].*": {"b": 3.0}, "mid_block.*": 0.0}
    merged = samerge.merge(pipe, paths, modules=blocks, method="linear", progress=False)
    one, two = updates(expected, {"a": 1.0}), updates(expected, {"b": 1.0})
    for module in {*one, *two}:
        factor = 0.5 if "down_blocks" in module else 3.0 if "up_blocks" in module else 1.0
        parts = [factor * found[module] for found in (one, two) if module in found]
        if "mid_block" in module:
            assert module not in merged.factors
        else:
            same_values(merged.delta(module), sum(parts[1:], parts[0]), 1e-5, module)
    assert merged.report.record.options["modules"] == blocks


def test_what_takes_one_model_says_so(tmp_path: Path) -> None:
    pipe = stable_diffusion()
    merged = samerge.merge(pipe, [sd_diffusers(pipe, tmp_path)], method="linear", progress=False)
    for call in (lambda: samerge.bake(pipe, merged), lambda: samerge.merge_full(pipe, [pipe])):
        with pytest.raises(samerge.OptionError, match=r"is a StableDiffusionPipeline, which is several models"):
            call()


def test_an_adapter_of_two_pipelines(tmp_path: Path) -> None:
    """What was trained in any of the models, in one file."""
    base, tuned, found = (stable_diffusion() for _ in range(3))
    changed = {f"unet.mid_block.{BLOCK}.attn1.to_q", "text_encoder.encoder.layers.0.self_attn.q_proj"}
    with torch.no_grad():
        for number, module in enumerate(sorted(changed)):
            weight = layer(tuned, module).weight
            weight.add_(random(weight.shape[0], 2, seed=number) @ random(2, weight.shape[1], seed=number + 5))
    extracted = samerge.extract_adapter(base, tuned, rank=2, progress=False)
    load(found, extracted.save(tmp_path / "out", format="diffusers"), "m")
    ours = updates(found, {"m": 1.0})
    assert set(ours) == changed
    for module, delta in ours.items():
        difference = layer(tuned, module).weight.detach() - layer(base, module).weight.detach()
        same_values(delta, difference, 1e-4, module)
