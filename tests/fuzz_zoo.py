"""Sound folders and files of every format, and the commands that read them: what the fuzzer breaks."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import make
from torch import Tensor
from typer.testing import CliRunner

from samerge.cli import app


def make_zoo(folder: Path) -> Path:
    """Sound folders: bases, adapters of every format, a checkpoint, and a merge of adapters."""
    beast = make("llama", folder)
    tensors = load_file(beast.folder / "model.safetensors")
    _bases(folder, tensors)
    _pefts(folder)
    _single_files(folder)
    run(["convert", folder / "math", "--format", "mlx", "--out", folder / "mlx"])
    (folder / "gguf").mkdir()
    base = ("--base", folder / "base")
    run(["convert", folder / "math", "--format", "gguf", *base, "--out", folder / "gguf" / "style.gguf"])
    run(["merge", *_adapters(folder, "math", "code"), "--method", "linear", "--out", folder / "merged"])
    return folder


def _bases(folder: Path, tensors: dict[str, Tensor]) -> None:
    """The base in shards, in eight-bit floats with a scale a row, and fine-tuned."""
    sharded = folder / "sharded"
    sharded.mkdir()
    names = sorted(tensors)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, sharded / file)
    where = {name: file for file, part in parts.items() for name in part}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    shutil.copyfile(folder / "base" / "config.json", sharded / "config.json")
    expert = folder / "expert"
    shutil.copytree(folder / "base", expert)
    generator = torch.Generator().manual_seed(0)
    changed = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    save_file(changed, expert / "model.safetensors", metadata={"format": "pt"})
    quantised = folder / "quantised"
    shutil.copytree(folder / "base", quantised)
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            packed[name] = tensor
            continue
        scale = tensor.abs().amax(dim=1, keepdim=True) / 400
        packed[name], packed[f"{name}_scale"] = (tensor / scale).to(torch.float8_e4m3fn), scale
    save_file(packed, quantised / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((quantised / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (quantised / "config.json").write_text(json.dumps(config))


def _pefts(folder: Path) -> None:
    """Beside the plain ones: one with a trained norm and patterns, and one of AdaLoRA."""
    rich = folder / "rich"
    shutil.copytree(folder / "math", rich)
    tensors = load_file(rich / "adapter_model.safetensors")
    more = {**tensors, "base_model.model.model.norm.weight": torch.ones(32)}
    save_file(more, rich / "adapter_model.safetensors")
    config = json.loads((rich / "adapter_config.json").read_text())
    changes = {"modules_to_save": ["norm"], "target_modules": r".*\.(q|v)_proj", "rank_pattern": {"^none$": 3}}
    (rich / "adapter_config.json").write_text(json.dumps(config | changes))
    adalora = folder / "adalora"
    shutil.copytree(folder / "math", adalora)
    factors = {name.removesuffix(".weight"): tensor for name, tensor in tensors.items()}
    sizes = {
        name.replace("lora_A", "lora_E"): torch.ones(len(tensor), 1)
        for name, tensor in factors.items()
        if "lora_A" in name
    }
    save_file(factors | sizes, adalora / "adapter_model.safetensors")
    changes = {"peft_type": "ADALORA", "init_r": 8, "target_r": 8, "rank_pattern": None}
    (adalora / "adapter_config.json").write_text(json.dumps(config | changes))


def _single_files(folder: Path) -> None:
    """Diffusion models' files: kohya's LoCon, LoHa and LoKr, and diffusers'; each alone in a folder."""
    module, conv = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", "down_blocks_0_resnets_0_conv1"
    dotted = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    alpha = torch.tensor(2.0)
    for name in ("kohya", "kohya_too"):
        tensors = {
            f"lora_unet_{module}.lora_down.weight": random(4, 12),
            f"lora_unet_{module}.lora_up.weight": random(10, 4),
            f"lora_unet_{module}.alpha": alpha.clone(),
            f"lora_unet_{conv}.lora_down.weight": random(2, 6, 1, 1),
            f"lora_unet_{conv}.lora_mid.weight": random(2, 2, 3, 3),
            f"lora_unet_{conv}.lora_up.weight": random(5, 2, 1, 1),
            f"lora_unet_{conv}.alpha": alpha.clone(),
        }
        _file(folder / name, tensors, ss_network_dim="4", ss_network_alpha="2.0")
    _file(
        folder / "lycoris",
        {
            f"lora_unet_{module}.hada_w1_a": random(10, 2),
            f"lora_unet_{module}.hada_w1_b": random(2, 12),
            f"lora_unet_{module}.hada_w2_a": random(10, 2),
            f"lora_unet_{module}.hada_w2_b": random(2, 12),
            f"lora_unet_{module}.alpha": alpha.clone(),
            f"lora_unet_{conv}.lokr_w1": random(1, 2),
            f"lora_unet_{conv}.lokr_w2_a": random(5, 2),
            f"lora_unet_{conv}.lokr_w2_b": random(2, 3 * 9),
            f"lora_unet_{conv}.alpha": alpha.clone(),
        },
    )
    for name in ("diffusers", "diffusers_too"):
        _file(folder / name, {f"{dotted}.lora_A.weight": random(4, 12), f"{dotted}.lora_B.weight": random(10, 4)})


def _file(folder: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    folder.mkdir()
    save_file(tensors, folder / "style.safetensors", metadata=metadata or None)


def run(words: list[Any]) -> tuple[int, str]:
    """The command line in this process: its exit code and all that it said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, [str(word) for word in words])
    text = result.output
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        text += f"Traceback: {result.exception!r}"
    return result.exit_code, text


def _adapters(folder: Path, *names: str) -> list[Any]:
    return [word for name in names for word in ("--adapter", f"{name}={folder / name}")]


def _merge(base: str | None, *names: str, method: str | None = None) -> Callable[[Path], list[Any]]:
    def words(work: Path) -> list[Any]:
        given = ["--base", work / base] if base else []
        chosen = ["--method", method] if method else []
        return [
            "merge",
            *given,
            *_adapters(work, *names),
            *chosen,
            "--modules-to-save",
            "average",
            "--out",
            work / "out",
        ]

    return words


def _style(work: Path, name: str) -> Path:
    return work / name / "style.safetensors"


def _styles(*names: str, method: str = "linear") -> Callable[[Path], list[Any]]:
    return lambda work: [
        "merge",
        *(word for name in names for word in ("--adapter", f"{name}={_style(work, name)}")),
        "--method",
        method,
        "--out",
        work / "out",
    ]


#: Name, the words of the command, and the folders that it reads.
COMMANDS: tuple[tuple[str, Callable[[Path], list[Any]], tuple[str, ...]], ...] = (
    ("linear", _merge(None, "math", "code", method="linear"), ("math", "code")),
    ("linear rich", _merge(None, "rich", "math", method="linear"), ("rich", "math")),
    ("default", _merge("base", "math", "talk"), ("base", "math", "talk")),
    ("default sharded", _merge("sharded", "math", "rich"), ("sharded", "math", "rich")),
    ("default quantised", _merge("quantised", "math", "code"), ("quantised", "math", "code")),
    ("check", lambda work: ["check", work / "rich", "--base", work / "base"], ("rich", "base")),
    ("inspect two", lambda work: ["inspect", work / "math", work / "code"], ("math", "code")),
    ("inspect", lambda work: ["inspect", work / "merged"], ("merged",)),
    ("inspect json", lambda work: ["inspect", work / "merged", "--json"], ("merged",)),
    ("verify", lambda work: ["verify", work / "merged"], ("merged",)),
    (
        "full",
        lambda work: ["full", "--base", work / "base", "--expert", f"e={work / 'expert'}", "--iterations", "1",
                      "--out", work / "out", "--quiet"],
        ("base", "expert"),
    ),
    ("compress", lambda work: ["compress", work / "rich", "--rank", "2", "--out", work / "out"], ("rich",)),
    (
        "extract",
        lambda work: ["extract", "--base", work / "sharded", "--model", work / "expert", "--rank", "2",
                      "--out", work / "out"],
        ("sharded", "expert"),
    ),
    ("bake", lambda work: ["bake", work / "math", "--base", work / "base", "--out", work / "out"], ("math", "base")),
    ("kohya", _styles("kohya", "kohya_too"), ("kohya", "kohya_too")),
    ("lycoris", _styles("lycoris", "kohya", method="svd"), ("lycoris", "kohya")),
    ("diffusers", _styles("diffusers", "diffusers_too"), ("diffusers", "diffusers_too")),
    ("check kohya", lambda work: ["check", _style(work, "kohya")], ("kohya",)),
    ("mlx", _merge(None, "mlx", "math", method="linear"), ("mlx", "math")),
    ("adalora", _merge(None, "adalora", "math", method="linear"), ("adalora", "math")),
    ("gguf", lambda work: ["convert", work / "gguf" / "style.gguf", "--format", "gguf", "--out", work / "out"],
     ("gguf",)),
    ("to kohya", lambda work: ["convert", _style(work, "diffusers"), "--format", "kohya", "--out", work / "out"],
     ("diffusers",)),
    ("from mlx", lambda work: ["convert", work / "mlx", "--format", "peft", "--out", work / "out"], ("mlx",)),
    (
        "to gguf",
        lambda work: ["convert", work / "math", "--format", "gguf", "--base", work / "base", "--out", work / "out"],
        ("math", "base"),
    ),
)  # fmt: skip
