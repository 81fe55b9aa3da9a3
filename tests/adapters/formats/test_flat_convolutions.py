"""A convolution that one file has with its kernel and another flat, or as a linear layer, merges without a base."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from written_out import kohya_deltas, random, same, write

import samerge
from samerge.errors import BaseModelError

CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
POINT = "lora_unet_down_blocks_0_attentions_0_proj_in"


def locon(folder: Path, name: str, seed: int) -> str:
    """A convolution of 6 to 8 channels, 3 x 3."""
    tensors = {f"{CONV}.lora_down.weight": random(3, 6, 3, 3, seed=seed)}
    tensors[f"{CONV}.lora_up.weight"] = random(8, 3, 1, 1, seed=seed + 1)
    return write(folder, name, tensors)


def flat_lokr(folder: Path, name: str, seed: int) -> tuple[str, Tensor]:
    """The same convolution as a Kronecker product of two matrices, (2, 2) and (4, 27): 8 x 54."""
    tensors = {f"{CONV}.lokr_w1": random(2, 2, seed=seed), f"{CONV}.lokr_w2": random(4, 27, seed=seed + 1)}
    delta = torch.kron(tensors[f"{CONV}.lokr_w1"].double(), tensors[f"{CONV}.lokr_w2"].double())
    return write(folder, name, {**tensors, f"{CONV}.alpha": torch.tensor(7.0)}), delta


def flat_loha(folder: Path, name: str, seed: int) -> tuple[str, Tensor]:
    shapes = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 54), "hada_w2_a": (8, 2), "hada_w2_b": (2, 54)}
    tensors = {f"{CONV}.{part}": random(*shape, seed=seed + n) for n, (part, shape) in enumerate(shapes.items())}
    one, two, three, four = (tensor.double() for tensor in tensors.values())
    return write(folder, name, {**tensors, f"{CONV}.alpha": torch.tensor(1.0)}), 0.5 * (one @ two) * (three @ four)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_flat_product_takes_the_kernel_of_the_others(tmp_path: Path, order: tuple[int, ...]) -> None:
    lokr, one = flat_lokr(tmp_path, "lokr", 1)
    loha, two = flat_loha(tmp_path, "loha", 11)
    path = locon(tmp_path, "locon", 21)
    paths, weights = (lokr, loha, path), (1.0, -0.5, 2.0)
    merged = samerge.merge(
        None, [paths[n] for n in order], weights=[weights[n] for n in order], method="linear", progress=False
    )
    expected = one - 0.5 * two + 2 * kohya_deltas(path)[CONV]
    assert merged.delta(CONV).shape == (8, 6, 3, 3)
    same({CONV: merged.delta(CONV)}, {CONV: expected})
    out = merged.save(tmp_path / "out")
    tensors = load_file(out)
    assert tensors[f"{CONV}.lora_down.weight"].shape[1:] == (6, 3, 3)
    assert tensors[f"{CONV}.lora_up.weight"].shape[2:] == (1, 1)
    same(kohya_deltas(out), {CONV: expected})


@pytest.mark.parametrize("turned", [False, True])
def test_a_convolution_of_one_pixel_and_a_linear_layer(tmp_path: Path, turned: bool) -> None:
    """Stable Diffusion's proj_in is the one, SDXL's the other; scripts write either."""
    paths = []
    for name, ones, rank in (("linear", (), 2), ("conv", (1, 1), 3)):
        tensors = {f"{POINT}.lora_down.weight": random(rank, 6, *ones, seed=rank)}
        tensors[f"{POINT}.lora_up.weight"] = random(8, rank, *ones, seed=rank + 10)
        paths.append(write(tmp_path, name, {**tensors, f"{POINT}.alpha": torch.tensor(1.0)}))
    merged = samerge.merge(None, paths[::-1] if turned else paths, method="linear", progress=False)
    one, two = (kohya_deltas(path)[POINT] for path in paths)
    out = merged.save(tmp_path / "out")
    assert load_file(out)[f"{POINT}.lora_down.weight"].shape == (5, 6, 1, 1)
    same(kohya_deltas(out), {POINT: one + two})


def test_two_kernels_are_refused(tmp_path: Path) -> None:
    """As many columns, of 6 channels under 3 x 3 and of 54 under 1 x 1."""
    one = locon(tmp_path, "one", 1)
    tensors = {f"{CONV}.lora_down.weight": random(3, 54, 1, 1), f"{CONV}.lora_up.weight": random(8, 3, 1, 1)}
    two = write(tmp_path, "two", tensors)
    with pytest.raises(BaseModelError, match=rf"{CONV}.*'one' updates \(8, 54\) \(conv\).*'two' updates \(8, 54\)"):
        samerge.merge(None, [one, two], method="linear", progress=False)
