"""Weights by module: dense oracles, and the laws that hold for every method."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from alike import same_merge, same_tensors, same_values
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import samerge
from samerge.adapters import read_adapter
from samerge.methods.registry import available_methods, find
from samerge.report.card import model_card
from samerge.report.report import read_report

#: Methods that look at more than a layer at a time: flows, or thresholds of the whole adapter.
_THRESHOLDS = ("breadcrumbs", "della", "doge", "knots-ties", "localize-and-stitch", "magnitude-prune", "pcb")
_WHOLE = ("paper", "elementwise", *_THRESHOLDS)


def dense(folder: str) -> dict[str, torch.Tensor]:
    return {name: one.load().delta() for name, one in read_adapter(folder, "x").modules.items()}


def without(folder: str, part: str, out: Path) -> str:
    """The adapter, its modules of this name taken out of the file."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "adapter_model.safetensors")
    save_file({k: t for k, t in tensors.items() if part not in k}, out / "adapter_model.safetensors")
    return str(out)


def merged(beast, adapters=None, method="linear", **options):
    base = beast.base if find(method).base == "needed" else None
    return samerge.merge(base, adapters or beast.adapters, method=method, progress=False, **options)


def test_the_sum_is_the_dense_one(llama, tmp_path) -> None:
    rules = {"*": {"code": 0.5}, "layers.1.*": {"math": -2, "talk": 0}, "down_proj": 0.25}
    weights = {"math": 1.0, "code": 0.8, "talk": 0.3}
    found = samerge.merge(llama.base, llama.adapters, method="linear", weights=weights, modules=rules, progress=False)
    tau = {name: dense(folder) for name, folder in llama.adapters.items()}

    def factor(name: str, module: str) -> float:
        if module.endswith("down_proj"):
            return 0.25
        if ".layers.1." in module and name != "code":
            return {"math": -2, "talk": 0}[name]
        return 0.5 if name == "code" else 1.0

    for module in found.factors:
        expected = sum(weights[n] * factor(n, module) * tau[n][module] for n in tau if module in tau[n])
        same_values(found.delta(module), expected, where=module)
    record = json.loads((found.save(tmp_path / "out") / "samerge.json").read_text())
    assert record["options"]["modules"] == {**rules, "layers.1.*": {"math": -2.0, "talk": 0.0}}
    assert record["inputs"][1]["weight"] == 0.8
    layers = {module: layer["adapters"] for module, layer in record["layers"].items()}
    assert layers["model.layers.1.self_attn.q_proj"]["math"]["weight"] == -2.0
    assert "talk" not in layers["model.layers.1.self_attn.q_proj"]
    assert layers["model.layers.0.mlp.down_proj"]["code"]["weight"] == pytest.approx(0.2)
    told = "layers.1.* of math times -2"
    assert any(told in note for note in record["notes"])
    assert "`modules`" in model_card(found.report.record)
    assert told in model_card(read_report(tmp_path / "out").record)


@pytest.mark.parametrize("method", list(available_methods()))
def test_weight_0_is_absence(llama, method: str, tmp_path) -> None:
    """As if the adapter's file had not got these modules; modules that no adapter has left are not there at all."""
    absent = {**llama.adapters, "code": without(llama.adapters["code"], ".q_proj.", tmp_path / "code")}
    expected = merged(llama, absent, method)
    same_merge(merged(llama, method=method, modules={"q_proj": {"code": 0}}), expected, 1e-4)
    no_mlp = {name: without(f, ".mlp.", tmp_path / f"{name}-attention") for name, f in llama.adapters.items()}
    same_merge(merged(llama, method=method, modules={"*.mlp.*": 0}), merged(llama, no_mlp, method), 1e-4)


@pytest.mark.parametrize("method", list(available_methods()))
def test_a_factor_everywhere_is_a_weight(llama, method: str) -> None:
    found = merged(llama, method=method, modules={"*": {"code": 0.5, "talk": -1}})
    same_merge(found, merged(llama, method=method, weights={"math": 1, "code": 0.5, "talk": -1}), 1e-4)


@pytest.mark.parametrize("method", [name for name in available_methods() if name not in _WHOLE])
def test_a_layer_has_the_merge_of_its_weights(llama, method: str) -> None:
    """A method that merges every layer by itself gives in a layer what the same weights everywhere give there."""
    options = {"trim": "layer"} if hasattr(find(method).options(), "trim") else {}
    plain = merged(llama, method=method, **options)
    other = merged(llama, method=method, weights={"math": 0.5, "code": 1, "talk": 1}, **options)
    found = merged(llama, method=method, modules={"layers.1.*": {"math": 0.5}}, **options)
    assert list(found.factors) == list(plain.factors)
    for module in found.factors:
        same_values(found.delta(module), (other if ".layers.1." in module else plain).delta(module), 1e-4, module)


def test_biases_and_trained_modules(bert, tmp_path) -> None:
    folders = {}
    for seed, name in enumerate(("a", "b")):
        config = LoraConfig(r=2, target_modules=["query"], bias="all", modules_to_save=["classifier"])
        model = get_peft_model(bert.model(), config)
        generator = torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and "original_module" not in key:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(tmp_path / name)
        folders[name] = str(tmp_path / name)
    base = {f"base_model.model.{key}": tensor for key, tensor in bert.model().state_dict().items()}
    one, two = (load_file(Path(folder) / "adapter_model.safetensors") for folder in folders.values())
    rules = {"classifier": {"a": 0.5}, "output.dense": {"a": 0, "b": -1}}
    found = samerge.merge(
        bert.base, folders, method="linear", modules=rules, modules_to_save="update", progress=False
    ).tensors()
    for key, factors in {
        "base_model.model.classifier.weight": (0.5, 1),
        "base_model.model.bert.encoder.layer.0.output.dense.bias": (0, -1),
        "base_model.model.bert.encoder.layer.0.intermediate.dense.bias": (1, 1),
    }.items():
        change = sum(factor * (tensors[key] - base[key]) for factor, tensors in zip(factors, (one, two), strict=True))
        same_values(found[key], base[key] + change, where=key)
    silent = samerge.merge(bert.base, folders, method="linear", modules={"classifier": 0}, progress=False)
    assert not [key for key in silent.tensors() if "classifier" in key]


def test_an_adapter_without_any_module_left(llama) -> None:
    found = merged(llama, modules={"*": {"talk": 0}})
    two = {name: llama.adapters[name] for name in ("math", "code")}
    same_tensors(found.tensors(), merged(llama, two).tensors())
    with pytest.raises(samerge.OptionError, match="every module of every adapter the weight 0"):
        merged(llama, modules={"*": 0})


def test_what_there_is_not(llama) -> None:
    with pytest.raises(samerge.OptionError, match=r"'\*.attn.\*', which matches no module.*layers.\*.mlp.down_proj"):
        merged(llama, modules={"*.attn.*": 0.5})
    with pytest.raises(samerge.OptionError, match="names the adapter 'maths'"):
        merged(llama, modules={"q_proj": {"maths": 0.5}})
    # an adapter of weight 0 may be named
    merged(llama, weights={"math": 1, "code": 1, "talk": 0}, modules={"q_proj": {"talk": 0.5}})


def test_on_a_live_model(llama) -> None:
    model = llama.peft_model()
    live = samerge.add_weighted_adapter(
        model, list(llama.adapters), None, "merged", "linear", modules={"*.mlp.*": 0.5}, progress=False
    )
    same_merge(live, samerge.merge(llama.base, llama.adapters, method="linear", modules={"*.mlp.*": 0.5}))


def test_verify_reproduces_it(llama, tmp_path) -> None:
    from samerge.merging.verifying import verify

    found = samerge.merge(llama.base, llama.adapters, modules={"*.mlp.*": 0.5, "q_proj": {"code": 0}}, progress=False)
    found.save(tmp_path / "out")
    assert all(one.sound for one in verify(tmp_path / "out", reproduce=True))
