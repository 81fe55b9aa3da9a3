"""Flux at its own widths: kohya's joint projections, of single blocks too, beside a file in diffusers' names.

The base is a file with Flux's header and holes for its numbers, which a sum of adapters does not read.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from written_out import random, write

import samerge

pytest.importorskip("diffusers")

WIDTH, INNER, RANK = 3072, 12288, 2
DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks.0"
SHAPES = {
    **{f"{DOUBLE}.attn.{name}": (WIDTH, WIDTH) for name in ("to_q", "to_k", "to_v", "to_out.0")},
    **{f"{SINGLE}.attn.{name}": (WIDTH, WIDTH) for name in ("to_q", "to_k", "to_v")},
    f"{SINGLE}.proj_mlp": (INNER, WIDTH),
    f"{SINGLE}.proj_out": (WIDTH, WIDTH + INNER),
}
#: A joint projection -> its parts, one under the other, and their rows.
JOINT = {
    "lora_unet_double_blocks_0_img_attn_qkv": [(f"{DOUBLE}.attn.to_{part}", WIDTH) for part in "qkv"],
    "lora_unet_single_blocks_0_linear1": [
        *((f"{SINGLE}.attn.to_{part}", WIDTH) for part in "qkv"),
        (f"{SINGLE}.proj_mlp", INNER),
    ],
    "lora_unet_single_blocks_0_linear2": [(f"{SINGLE}.proj_out", WIDTH)],
}


def holes(folder: Path) -> Path:
    """A transformer's folder, its file sparse."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    header, end = {}, 0
    for name, shape in SHAPES.items():
        start, end = end, end + 2 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(folder / "diffusion_pytorch_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder


def makers_file(folder: Path) -> tuple[str, dict[str, tuple[Tensor, Tensor]]]:
    """A file in kohya's names, and A and B of every part of it, the scale in B."""
    tensors, parts = {}, {}
    for number, (stem, names) in enumerate(JOINT.items()):
        A = random(RANK, SHAPES[names[0][0]][1], seed=number)
        B = random(sum(rows for _, rows in names), RANK, seed=10 + number)
        tensors |= {f"{stem}.lora_down.weight": A, f"{stem}.lora_up.weight": B, f"{stem}.alpha": torch.tensor(1.0)}
        start = 0
        for name, rows in names:
            parts[name] = A, 0.5 * B[start : start + rows]
            start += rows
    return write(folder, "makers", tensors), parts


def diffusers_file(folder: Path) -> tuple[str, dict[str, tuple[Tensor, Tensor]]]:
    names = (f"{DOUBLE}.attn.to_q", f"{SINGLE}.proj_mlp", f"{DOUBLE}.attn.to_out.0")
    parts, tensors = {}, {}
    for seed, name in enumerate(names):
        A, B = random(3, SHAPES[name][1], seed=30 + seed), random(SHAPES[name][0], 3, seed=40 + seed)
        parts[name] = A, B
        tensors |= {f"transformer.{name}.lora_A.weight": A, f"transformer.{name}.lora_B.weight": B}
    save_file(tensors, folder / "diffusers.safetensors")
    return str(folder / "diffusers.safetensors"), parts


def test_joint_projections_meet_those_in_parts(tmp_path: Path) -> None:
    one, first = makers_file(tmp_path)
    two, second = diffusers_file(tmp_path)
    base = holes(tmp_path / "flux")
    merged = samerge.merge(base, [one, two], weights=[1.0, -2.0], method="linear", progress=False)
    assert set(merged.factors) == {f"transformer.{name}" for name in {*first, *second}}
    for name in {*first, *second}:
        x = random(SHAPES[name][1], seed=7)
        sources = [weight * B @ (A @ x) for (A, B), weight in _there(name, first, second)]
        found = merged.factors[f"transformer.{name}"]
        torch.testing.assert_close(found.scale * found.B @ (found.A @ x), sum(sources), rtol=1e-4, atol=1e-4)
    assert merged.save(tmp_path / "out").name == "out.safetensors"


def _there(name: str, *files: dict[str, tuple[Tensor, Tensor]]) -> list[tuple[tuple[Tensor, Tensor], float]]:
    return [(file[name], weight) for file, weight in zip(files, (1.0, -2.0), strict=True) if name in file]


def test_other_widths_are_refused_by_name(tmp_path: Path) -> None:
    """Which rows of a joint projection are whose, diffusers knows at Flux's widths alone."""
    stem = "lora_unet_single_blocks_0_linear1"
    tensors = {f"{stem}.lora_down.weight": random(2, 32), f"{stem}.lora_up.weight": random(224, 2)}
    path = write(tmp_path, "tiny", tensors)
    with pytest.raises(samerge.AdapterError, match=rf"'tiny' to the names.*diffusers cannot convert.*{stem}"):
        samerge.merge(holes(tmp_path / "flux"), [path], method="linear", progress=False)
