"""Every kind that is merged exactly: one adapter is itself, two are their sum; from files and on a live model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from alike import same_merge, same_record
from safetensors.torch import load_file, save_file

import samerge
from pitfalls.lab import (
    EXACT_LIVE,
    Attentive,
    Bench,
    Convolutions,
    assert_untouched,
    bert,
    close,
    gpt2,
    gpt_oss,
    llama,
    mixtral,
    output,
    quiet,
    qwen3_moe,
    snapshot,
)
from samerge.methods.registry import find

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

#: What the two adapters of each kind are; the base's settings stand in front where it has any.
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "plain": (llama, {"target_modules": ["q_proj"]}, {"target_modules": ["q_proj"]}),
    "ranks": (llama, {"target_modules": ["q_proj"], "r": 1}, {"target_modules": ["q_proj"], "r": 5}),
    "rslora": (
        llama,
        {"target_modules": ["q_proj"], "r": 4, "use_rslora": True},
        {"target_modules": ["q_proj"], "r": 8},
    ),
    "rank_pattern": (
        llama,
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 6}},
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 3}},
    ),
    "alpha_pattern": (
        llama,
        {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"v_proj": 16}},
        {"target_modules": ["q_proj", "v_proj"], "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 9}},
    ),
    "rslora with patterns": (
        llama,
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True, "rank_pattern": {"v_proj": 6}},
        {"target_modules": ["q_proj"], "alpha_pattern": {"q_proj": 3}},
    ),
    "different modules": (llama, {"target_modules": ["q_proj", "o_proj"]}, {"target_modules": ["down_proj"]}),
    "layers_to_transform": (
        llama,
        {"target_modules": ["q_proj"], "layers_to_transform": [0]},
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]},
    ),
    "exclude_modules": (
        llama,
        {"target_modules": ["q_proj"], "exclude_modules": r".*layers\.0.*"},
        {"target_modules": ["q_proj"]},
    ),
    "a regex and a list": (
        llama,
        {"target_modules": r".*\.1\.(self_attn\.q_proj|mlp\.up_proj)"},
        {"target_modules": ["q_proj"]},
    ),
    "all-linear": (llama, {"target_modules": "all-linear"}, {"target_modules": ["up_proj"]}),
    "embeddings and head": (
        llama,
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
    ),
    "Conv1D": (
        gpt2,
        {"target_modules": ["c_attn"], "fan_in_fan_out": True},
        {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "r": 3},
    ),
    "Conv1D and Linear": (
        gpt2,
        {"target_modules": ["c_proj", "lm_head"], "fan_in_fan_out": True},
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "r": 3},
    ),
    "Conv1D and wte": (
        gpt2,
        {"target_modules": ["wte"]},
        {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True},
    ),
    "bert": (bert, {"target_modules": ["query", "output.dense"]}, {"target_modules": ["attention.output.dense"]}),
    "convolutions": (
        Convolutions,
        {"target_modules": ["one", "two", "three"]},
        {"target_modules": ["one", "three"], "r": 3},
    ),
    "nn.MultiheadAttention": (
        Attentive,
        {"target_modules": ["mha", "last"]},
        {"target_modules": ["mha", "enter"], "r": 3},
    ),
    "experts": (
        mixtral,
        {"target_modules": ["q_proj"], "target_parameters": BOTH},
        {"target_modules": ["v_proj"], "target_parameters": BOTH, "r": 3},
    ),
    "experts, one parameter": (
        mixtral,
        {"target_modules": [], "target_parameters": BOTH[1:]},
        {"target_modules": ["q_proj"], "target_parameters": BOTH[1:], "r": 3},
    ),
    "experts by short names": (
        qwen3_moe,
        {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"]},
        {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj"], "use_rslora": True},
    ),
    "experts stored (in, out)": (
        gpt_oss,
        {"target_modules": ["q_proj"], "target_parameters": BOTH},
        {"target_modules": [], "target_parameters": BOTH, "r": 3},
    ),
    "router": (
        mixtral,
        {"target_modules": [], "target_parameters": ["mlp.gate.weight"]},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]},
    ),
    "experts that were modules": (
        mixtral,
        {"target_modules": ["q_proj", "w1", "w2", "w3"]},
        {"target_modules": ["w1", "w2", "w3"], "r": 3},
    ),
    "lora_bias": (
        lambda: llama(attention_bias=True),
        {"target_modules": ["q_proj"], "lora_bias": True},
        {"target_modules": ["q_proj", "v_proj"], "lora_bias": True, "use_rslora": True},
    ),
    "lora_bias in one": (
        lambda: llama(attention_bias=True),
        {"target_modules": ["q_proj"], "lora_bias": True},
        {"target_modules": ["q_proj", "v_proj"]},
    ),
}
_LOCAL = {"Conv1D and wte", "convolutions", "nn.MultiheadAttention"}  # nothing of them is in a flow graph


def _method(kind: str) -> dict[str, Any]:
    return {"connectivity": "local"} if kind in _LOCAL else {}


@pytest.mark.parametrize("kind", KINDS)
def test_from_files(bench, kind: str) -> None:
    factory, one, two = KINDS[kind]
    lab = bench(factory)
    first, second = lab.train("a", **one), lab.train("b", **two)
    base = output(lab.fresh())
    for folders in ([first], [second], [first, second]):
        expected = output(lab.with_adapters(*folders))
        assert (expected - base).abs().max() > 1e-3  # the adapters do something
        merged = lab.merge(*folders, **_method(kind))
        with quiet():
            close(output(lab.reloaded(merged)), expected)


#: One kind for each way in which an update lies in a tensor. (Experts that were modules are none: joined, two updates
#: of rank 1 are one of rank 2.)
LAYOUTS = (
    *("plain", "embeddings and head", "Conv1D", "Conv1D and wte", "convolutions", "nn.MultiheadAttention"),
    *("experts", "experts by short names", "experts stored (in, out)", "router"),
)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_default_merge_in_every_layout(bench, kind: str) -> None:
    """One adapter is itself. Two: files and live agree."""
    factory, one, two = KINDS[kind]
    lab = bench(factory)
    single = lab.train("single", **one)
    first, second = lab.train("a", **one), lab.train("b", **two)
    with quiet():
        alone = samerge.merge(lab.base, {"first": single}, progress=False)
        assert alone.report.record.method in ("saliency", "even")
        close(output(lab.reloaded(alone)), output(lab.with_adapters(single)))
        merged = samerge.merge(lab.base, {"first": first, "second": second}, progress=False)
        model = lab.with_adapters(first, second)
        before = snapshot(model)
        live = samerge.add_weighted_adapter(model, ["first", "second"], progress=False)
        assert_untouched(before, model, "merged")
        model.base_model.set_adapter(["merged"])
        stored = output(lab.reloaded(merged))
    close(output(model), stored, 1e-4)
    assert float((stored - output(lab.fresh())).abs().max()) > 1e-3
    for module, layer in live.report.record.layers.items():
        assert layer.scale == 1.0
        norms = [share.norm * share.balance for share in layer.adapters.values()]
        assert norms == pytest.approx([sum(norms) / len(norms)] * len(norms), rel=1e-4)
        if len(norms) == 1:
            assert layer.norm == pytest.approx(norms[0], rel=1e-4)
        else:  # 1.7 times one of them at its rank, 1.7 * 2 ** (1 / 4) times where all of both is kept; less where alike
            assert 0.5 * norms[0] < layer.norm < 2.03 * norms[0]
        assert float(live.delta(module).norm()) == pytest.approx(layer.norm, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_live(bench, kind: str) -> None:
    factory, one, two = KINDS[kind]
    lab = bench(factory)
    first, second = lab.train("a", **one), lab.train("b", **two)
    model = lab.with_adapters(first, second)
    expected = output(model)
    before = snapshot(model)
    with quiet():
        for adapters, name in ((["first"], "alone"), (["first", "second"], "merged")):
            samerge.add_weighted_adapter(model, adapters, None, name, **EXACT_LIVE, **_method(kind))
        assert_untouched(before, model, "alone", "merged")
        model.base_model.set_adapter(["merged"])
        close(output(model), expected)
        model.base_model.set_adapter(["alone"])
        close(output(model), output(lab.with_adapters(first)))
        model.save_pretrained(str(lab.folder / "live"), selected_adapters=["merged"])  # PEFT's own writer
        close(output(lab.with_adapters(str(lab.folder / "live" / "merged"))), expected)


@pytest.mark.parametrize("kind", ["rank_pattern", "experts", "nn.MultiheadAttention", "a regex and a list"])
def test_the_target_names_resolve_to_exactly_the_modules(bench, kind: str) -> None:
    """Not one more and not one less, and every layer of a type of module is there."""
    factory, one, two = KINDS[kind]
    lab = bench(factory)
    merged = lab.merge(lab.train("a", **one), lab.train("b", **two), **_method(kind))
    model = lab.reloaded(merged)
    stored = {key.removesuffix(".weight") for key in merged.tensors()}
    loaded = {
        name.replace(".first", "").removesuffix(".weight") for name, _ in model.named_parameters() if ".lora_" in name
    }
    assert loaded == stored
    assert merged.settings["target_modules"] == sorted(merged.settings["target_modules"])
    assert len({factors.rank for factors in merged.factors.values()}) == 1
    assert merged.settings["lora_alpha"] == merged.settings["r"] == next(iter(merged.factors.values())).rank


def test_what_fan_in_fan_out_says_of_a_mixture_is_not_trusted(bench) -> None:
    """PEFT sets it by the last module that it came to; a square weight does not show which way round it is."""
    lab = bench(gpt2)
    settings = {"target_modules": ["c_proj", "lm_head"], "fan_in_fan_out": True}
    first, second = lab.train("a", **settings), lab.train("b", **settings)
    says = {flag: lab.altered(first, fan_in_fan_out=flag) for flag in (True,)}
    says[False] = first
    config = json.loads((lab.folder / "a" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is False
    options = {"method": "paper", "density": 0.5, "scaling": 1.0, "progress": False}
    live = samerge.merge(lab.with_adapters(first, second), ["first", "second"], **options)
    for folder in says.values():
        merged = lab.merge(folder, second, **options)
        same_record(merged.report.record.layers, live.report.record.layers)
        same_merge(merged, live)
    plain = lab.train("c", target_modules=["c_proj"], fan_in_fan_out=True)
    samerge.merge(None, [plain, lab.altered(plain, fan_in_fan_out=False)], method="linear")


@pytest.mark.parametrize("method", list(samerge.available_methods()))
@pytest.mark.parametrize("kind", ["experts", "nn.MultiheadAttention", "Conv1D and Linear"])
def test_every_method_takes_every_kind(bench, kind: str, method: str) -> None:
    factory, one, two = KINDS[kind]
    lab = bench(factory)
    options = _method(kind) if find(method).base == "needed" else {}
    folders = {"first": lab.train("a", **one), "second": lab.train("b", **two)}
    with quiet():
        merged = samerge.merge(lab.base, folders, method=method, progress=False, **options)
        assert torch.isfinite(output(lab.reloaded(merged))).all()


def test_layers_that_no_expert_adapts_are_there_with_a_zero_update(bench) -> None:
    lab = bench(mixtral)
    down = {"target_modules": [], "target_parameters": ["model.layers.1.mlp.experts.down_proj"]}
    merged = lab.merge(lab.train("a", **down))
    names = [f"model.layers.{layer}.mlp.experts.down_proj[{expert}]" for layer in (0, 1) for expert in (0, 1, 2)]
    assert list(merged.factors) == names
    assert [bool(merged.delta(name).any()) for name in names] == [False] * 3 + [True] * 3
    with quiet():
        close(output(lab.reloaded(merged)), output(lab.with_adapters(str(lab.folder / "a"))))


@pytest.mark.parametrize("factory", [mixtral, gpt_oss])
def test_experts_take_part_in_the_flow(bench, factory) -> None:
    """Every expert of a stack is scored by itself, the same from the checkpoint's pieces as from the live stack."""
    lab = bench(factory)
    folders = [lab.train(name, target_modules=["q_proj"], target_parameters=BOTH, r=4) for name in ("a", "b")]
    options = {"method": "paper", "density": 0.5, "scaling": 1.0, "progress": False}
    on_disk = lab.merge(*folders, **options)
    live = samerge.merge(lab.with_adapters(*folders), ["first", "second"], **options)
    layers = on_disk.report.record.layers
    assert not any(layer.outside for layer in layers.values())
    for name, layer in layers.items():
        assert layer.adapters == live.report.record.layers[name].adapters, name
        close(on_disk.delta(name), live.delta(name))
    alone = lab.merge(folders[0])
    changed = lab.with_adapters(folders[0]).merge_and_unload().state_dict()
    stack = "model.layers.0.mlp.experts.down_proj"
    for expert in range(3):  # in the orientation of the parameter
        close(alone.delta(f"{stack}[{expert}]"), (changed[stack] - lab.model.state_dict()[stack])[expert])
    assert len({str(layers[f"model.layers.0.mlp.experts.down_proj[{e}]"].adapters) for e in range(3)}) > 1


_ELSEWHERE = """
import json, sys, torch, transformers
from pathlib import Path
from peft import PeftModel
sys.path.insert(0, sys.argv[1])
from pitfalls.lab import close, output, quiet
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
for folder in map(Path, sys.argv[2:]):
    if (folder / "base.pt").exists():
        base = torch.load(folder / "base.pt", weights_only=False)
    else:
        architecture = json.loads((folder / "base" / "config.json").read_text())["architectures"][0]
        base = getattr(transformers, architecture).from_pretrained(folder / "base")
    for name in ("one", "two"):
        with quiet():
            model = PeftModel.from_pretrained(base, folder / name, adapter_name=name)
            close(output(model.eval()), torch.load(folder / f"{name}.pt"))
            base = model.unload()
    print(folder.name)
"""


@pytest.mark.slow
def test_in_another_process(tmp_path) -> None:
    """What is written of every kind, one adapter or two, says the same to a process that had no part in it."""
    folders = []
    for number, (kind, (factory, one, two)) in enumerate(KINDS.items()):
        torch.manual_seed(0)
        lab = Bench(factory().eval(), tmp_path / str(number))
        lab.folder.mkdir()
        trained = [lab.train("a", **one), lab.train("b", **two)]
        if isinstance(lab.base, str):
            lab.fresh()
        else:
            torch.save(lab.model, lab.folder / "base.pt")
        for name, parts in (("one", trained[:1]), ("two", trained)):
            lab.merge(*parts, **_method(kind)).save(lab.folder / name)
            torch.save(output(lab.with_adapters(*parts)), lab.folder / f"{name}.pt")
        folders.append(str(lab.folder))
    tests = str(Path(__file__).parent.parent)
    command = [sys.executable, "-W", "ignore", "-c", _ELSEWHERE, tests, *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(number) for number in range(len(KINDS))]


def test_experts_of_different_parameters(bench) -> None:
    """PEFT refuses to hold them on one model; their sum is one adapter of both parameters."""
    lab = bench(mixtral)
    folders = [lab.train(f"a{n}", target_modules=[], target_parameters=[parameter]) for n, parameter in enumerate(BOTH)]
    base = lab.fresh()
    total = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for folder in folders:
        changed = lab.with_adapters(folder).merge_and_unload().state_dict()
        total = {name: tensor + changed[name] - base.state_dict()[name] for name, tensor in total.items()}
    summed = lab.fresh()
    summed.load_state_dict(total)
    merged = lab.merge(*folders)
    assert merged.settings["target_parameters"] == ["down_proj", "gate_up_proj"]
    with quiet():
        close(output(lab.reloaded(merged)), output(summed))


def test_what_is_not_yet_in_the_file_is_not_guessed(bench) -> None:
    """Nested wrappers say which parameter is which by their number alone: too few or too many is an error."""
    lab = bench(mixtral)
    folder = lab.train("a", target_modules=[], target_parameters=BOTH)
    with pytest.raises(samerge.AdapterError, match=r"has 2 nested LoRA layers, but target_parameters=.* names \['down"):
        lab.merge(lab.altered(folder, target_parameters=BOTH[1:]))


def test_a_stack_of_another_number_of_experts(bench, tmp_path) -> None:
    lab = bench(mixtral)
    folder = lab.train("a", target_modules=[], target_parameters=BOTH)
    config = type(lab.model.config)(**{**lab.model.config.to_dict(), "num_local_experts": 4})
    type(lab.model)(config).save_pretrained(tmp_path / "four")
    with pytest.raises(samerge.BaseModelError, match=r"in each of 3 experts, the base's .* is \(4, "):
        samerge.merge(str(tmp_path / "four"), [folder], method="paper")


def test_a_checkpoint_with_an_expert_missing(bench) -> None:
    lab = bench(mixtral)
    folder = lab.train("a", target_modules=[], target_parameters=BOTH)
    file = Path(lab.base) / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if ".experts.1.w2" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(samerge.BaseModelError, match=r"are not complete, so they make no 'down_proj'; is a shard"):
        lab.merge(folder)
