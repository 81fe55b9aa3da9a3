"""Adapters of single experts, as of transformers 4, beside adapters of the stacked parameters of transformers 5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import samerge
from pitfalls.lab import Bench, close, mixtral, output, quiet, qwen3_moe

EXACT: dict[str, Any] = {"method": "linear", "progress": False}
_PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
#: Model -> how to make one, where its experts were, and the names of gate, up and down there.
FAMILIES = {
    "mixtral": (mixtral, "block_sparse_moe.experts", ("w1", "w3", "w2"), 24),
    "qwen3_moe": (qwen3_moe, "mlp.experts", ("gate_proj", "up_proj", "down_proj"), 12),
}


def of_single_experts(lab: Bench, family: str, name: str, lacking: frozenset[tuple[int, str]] = frozenset()) -> str:
    """An adapter as PEFT on transformers 4 wrote it: a LoRA for each projection of each expert."""
    _, owner, shorts, inner = FAMILIES[family]
    folder = lab.train(name, target_modules=["q_proj"])
    file = Path(folder) / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    tensors = load_file(file)
    for layer in range(2):
        for expert in range(3):
            for short in shorts:
                if (expert, short) in lacking:
                    continue
                rows, columns = (16, inner) if short == shorts[2] else (inner, 16)
                stem = f"base_model.model.model.layers.{layer}.{owner}.{expert}.{short}.lora_"
                tensors[f"{stem}A.weight"] = torch.randn(2, columns, generator=generator) * 0.1
                tensors[f"{stem}B.weight"] = torch.randn(rows, 2, generator=generator) * 0.1
    save_file(tensors, file)
    return lab.altered(folder, target_modules=["q_proj", *shorts])


def truth(lab: Bench, family: str, old: str, *new: str) -> Tensor:
    """What the model says with every update added densely, scale 2 for the adapter of single experts."""
    _, owner, shorts, inner = FAMILIES[family]
    model = lab.with_adapters(*new).merge_and_unload() if new else lab.fresh()
    tensors = load_file(Path(old) / "adapter_model.safetensors")
    for key, A in tensors.items():
        if "lora_A" not in key:
            continue
        change = 2.0 * tensors[key.replace("lora_A", "lora_B")] @ A
        name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        if owner in name:
            layer, expert, short = name.split(".")[2], int(name.split(".")[-2]), name.split(".")[-1]
            experts = model.model.layers[int(layer)].mlp.experts
            if short == shorts[2]:
                experts.down_proj.data[expert] += change
            else:
                rows = slice(0, inner) if short == shorts[0] else slice(inner, 2 * inner)
                experts.gate_up_proj.data[expert, rows] += change
        else:
            model.get_submodule(name).weight.data += change
    return output(model)


@pytest.mark.filterwarnings("ignore:by name these adapters")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lacking", [False, True], ids=["all experts", "some experts"])
def test_old_and_new(bench, family: str, lacking: bool) -> None:
    make, _, shorts, _ = FAMILIES[family]
    lab = bench(make)
    left = frozenset({(1, shorts[0]), (2, shorts[2]), (0, shorts[1])}) if lacking else frozenset()
    old = of_single_experts(lab, family, "old", left)
    new = lab.train("new", target_modules=["q_proj", "v_proj"], target_parameters=_PARAMETERS)
    expected = truth(lab, family, old, new)
    for given in ([old, new], [new, old]):
        for base in (lab.base, lab.model):
            merged = samerge.merge(base, given, **EXACT)
            assert not [name for name in merged.factors if any(f".{short}" in name for short in ("w1", "gate_proj"))]
            folder = merged.save(lab.folder / "out", overwrite=True)
            with quiet():
                close(output(PeftModel.from_pretrained(lab.fresh(), str(folder)).eval()), expected)


@pytest.mark.filterwarnings("ignore:by name these adapters")
@pytest.mark.parametrize("family", FAMILIES)
def test_old_alone_on_a_live_model(bench, family: str) -> None:
    lab = bench(FAMILIES[family][0])
    old = of_single_experts(lab, family, "old")
    merged = samerge.merge(lab.model, [old], **EXACT)
    with quiet():
        model = PeftModel.from_pretrained(lab.fresh(), str(merged.save(lab.folder / "out"))).eval()
    close(output(model), truth(lab, family, old))


@pytest.mark.parametrize("family", FAMILIES)
def test_old_ones_keep_their_form(bench, family: str) -> None:
    """The checkpoint has every expert apart, and PEFT converts such an adapter when it loads it."""
    lab = bench(FAMILIES[family][0])
    olds = [of_single_experts(lab, family, name) for name in ("one", "two")]
    merged = samerge.merge(lab.base, olds, **EXACT)
    assert any(FAMILIES[family][1] in name for name in merged.factors)
    with quiet():
        model = PeftModel.from_pretrained(lab.fresh(), str(merged.save(lab.folder / "out"))).eval()
        both = lab.with_adapters(*olds)
    close(output(model), output(both))
