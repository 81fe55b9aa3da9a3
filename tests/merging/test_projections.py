"""q, k, v and gate, up in one piece and in several: exact in each other's form, as the base has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import write_adapter, write_base
from torch import Tensor

import samerge
from samerge.errors import BaseModelError

OWNER, MLP = "model.layers.0.self_attn", "model.layers.0.mlp"
#: Rows of q, k and v, of gate and up; and the width.
SIZES = {"q_proj": 8, "k_proj": 4, "v_proj": 4, "gate_proj": 6, "up_proj": 6}
WIDTH = 8


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def base(folder: Path, whole: bool) -> str:
    tensors = {}
    for owner, name, parts in (
        (OWNER, "qkv_proj", ("q_proj", "k_proj", "v_proj")),
        (MLP, "gate_up_proj", ("gate_proj", "up_proj")),
    ):
        if whole:
            tensors[f"{owner}.{name}.weight"] = random(sum(SIZES[p] for p in parts), WIDTH, seed=1)
        else:
            tensors |= {f"{owner}.{part}.weight": random(SIZES[part], WIDTH, seed=1) for part in parts}
    return write_base(folder, tensors, model_type="none")


def pair(rows: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    return random(rank, WIDTH, seed=seed), random(rows, rank, seed=seed + 1)


def split_adapter(folder: Path, parts: tuple[str, ...], seed: int = 0) -> tuple[str, dict[str, Tensor]]:
    """An adapter of some parts, of different ranks; and the update of each."""
    factors = {}
    for number, part in enumerate(parts):
        owner = MLP if part in ("gate_proj", "up_proj") else OWNER
        factors[f"{owner}.{part}"] = pair(SIZES[part], 2 + number, seed + 10 * number)
    path = write_adapter(folder, factors, alpha=3.0)
    scales = {name: 3.0 / A.shape[0] for name, (A, _) in factors.items()}
    return path, {name.rpartition(".")[2]: scales[name] * B @ A for name, (A, B) in factors.items()}


def whole_adapter(folder: Path, seed: int = 50) -> tuple[str, dict[str, Tensor]]:
    factors = {f"{OWNER}.qkv_proj": pair(16, 3, seed), f"{MLP}.gate_up_proj": pair(12, 3, seed + 2)}
    path = write_adapter(folder, factors, alpha=6.0)
    return path, {name.rpartition(".")[2]: 2.0 * B @ A for name, (A, B) in factors.items()}


def stacked(updates: dict[str, Tensor], parts: tuple[str, ...]) -> Tensor:
    return torch.cat([updates.get(part, torch.zeros(SIZES[part], WIDTH)) for part in parts])


@pytest.mark.parametrize(
    "parts",
    [
        ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
        ("q_proj", "gate_proj"),
        ("v_proj",),
        ("q_proj", "v_proj"),
    ],
)
def test_parts_on_a_base_in_one_piece(tmp_path, parts):
    one, updates = split_adapter(tmp_path / "a", parts)
    two, other = whole_adapter(tmp_path / "b")
    merged = samerge.merge(base(tmp_path / "base", True), [one, two], method="linear", progress=False)
    assert sorted(merged.factors) == [f"{MLP}.gate_up_proj", f"{OWNER}.qkv_proj"]
    expected = stacked(updates, ("q_proj", "k_proj", "v_proj")) + other["qkv_proj"]
    torch.testing.assert_close(merged.delta(f"{OWNER}.qkv_proj"), expected, rtol=1e-5, atol=1e-5)
    expected = stacked(updates, ("gate_proj", "up_proj")) + other["gate_up_proj"]
    torch.testing.assert_close(merged.delta(f"{MLP}.gate_up_proj"), expected, rtol=1e-5, atol=1e-5)


def test_one_piece_on_a_base_in_parts(tmp_path):
    one, updates = split_adapter(tmp_path / "a", ("q_proj", "up_proj"))
    two, other = whole_adapter(tmp_path / "b")
    merged = samerge.merge(base(tmp_path / "base", False), [one, two], method="linear", progress=False)
    start = {"q_proj": 0, "k_proj": 8, "v_proj": 12, "gate_proj": 0, "up_proj": 6}
    for part, size in SIZES.items():
        owner, name = (MLP, "gate_up_proj") if part in ("gate_proj", "up_proj") else (OWNER, "qkv_proj")
        expected = other[name][start[part] : start[part] + size] + updates.get(part, 0)
        torch.testing.assert_close(merged.delta(f"{owner}.{part}"), expected, rtol=1e-5, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused(tmp_path):
    path = write_adapter(tmp_path / "a", {f"{OWNER}.q_proj": pair(20, 2, 0)})
    with pytest.raises(BaseModelError, match="has no weight there"):
        samerge.merge(base(tmp_path / "base", True), [path], method="linear", progress=False)


def test_without_a_base_it_is_said(tmp_path):
    one, _ = split_adapter(tmp_path / "a", ("q_proj",))
    two, _ = whole_adapter(tmp_path / "b")
    with pytest.raises(BaseModelError, match=r"in one piece.*whose own names decide"):
        samerge.merge(None, [one, two], method="linear", progress=False)
