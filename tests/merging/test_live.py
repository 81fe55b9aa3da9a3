"""Merging on a live `PeftModel`: nothing but the new adapter changes, and a failure leaves nothing behind."""

from __future__ import annotations

import peft
import pytest
import torch
from alike import same_merge
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from tiny import NAMES, Beast, randomise

import samerge
import samerge.merging.live
import samerge.merging.merge_adapters

OPTIONS = {"density": 0.5, "scaling": 1.0}


def add(model, adapters=NAMES, weights=None, name="merged", **options):
    return samerge.add_weighted_adapter(model, list(adapters), weights, name, **(OPTIONS | options))


def state(model) -> dict:
    """Everything that shall stay: values, requires_grad, modes, the active adapter, the configurations."""
    return {
        "values": {name: p.detach().clone() for name, p in model.named_parameters()},
        "buffers": {name: b.clone() for name, b in model.named_buffers()},
        "trained": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "active": (model.active_adapter, model.active_adapters, list(model.base_model.active_adapters)),
        "layers": {
            name: (list(module.active_adapters), module.disable_adapters, dict(module.scaling), dict(module.r))
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer)
        },
        "configs": {name: config.to_dict() for name, config in model.peft_config.items()},
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict, after: dict) -> None:
    for part in ("values", "buffers"):
        assert set(before[part]) == set(after[part])
        for name, tensor in before[part].items():
            assert torch.equal(tensor, after[part][name]), name
    assert torch.equal(before["random"], after["random"])
    for part in ("trained", "modes", "active", "layers", "configs"):
        assert before[part] == after[part], part


def without(found: dict, name: str) -> dict:
    """A state without one adapter."""

    def keep(key: str) -> bool:
        return f".{name}." not in f".{key}."

    layers = {
        layer: (active, off, *({k: v for k, v in table.items() if k != name} for table in tables))
        for layer, (active, off, *tables) in found["layers"].items()
    }
    tables = {part: {k: v for k, v in found[part].items() if keep(k)} for part in ("values", "buffers", "trained")}
    tables["modes"] = {k: v for k, v in found["modes"].items() if keep(k)}
    return found | tables | {"layers": layers, "configs": {k: v for k, v in found["configs"].items() if k != name}}


def adapted_before(before: dict, after: dict) -> dict:
    """PEFT wraps modules that only the merged adapter's filled-in layers reach; leave those out of the comparison."""
    layers = {name: value for name, value in after["layers"].items() if name in before["layers"]}
    return after | {"layers": layers, "modes": {k: v for k, v in after["modes"].items() if k in before["modes"]}}


@pytest.mark.parametrize("active", ["math", "talk"])
def test_nothing_but_the_new_adapter_changes(beast: Beast, active):
    model = beast.peft_model()
    model.set_adapter(active)
    before = state(model)
    add(model)
    assert "merged" in model.peft_config
    assert_same(before, adapted_before(before, without(state(model), "merged")))


def test_what_is_trained_stays_trained(llama: Beast):
    """Also where the user froze the active adapter, or trains a parameter of the base."""
    model = llama.peft_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name or "code" in name)
    before = state(model)["trained"]
    add(model)
    after = without(state(model), "merged")["trained"]
    assert after == before
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".merged." in n)


def test_it_does_what_the_file_does(beast: Beast, tmp_path):
    """The merged adapter on the live model and on disk are one and the same."""
    model = beast.peft_model()
    merged = add(model)
    model.set_adapter("merged")
    loaded = peft.PeftModel.from_pretrained(beast.model(), merged.save(tmp_path / "out")).eval()
    torch.testing.assert_close(beast.logits(model), beast.logits(loaded), rtol=1e-5, atol=1e-6)
    from_files = samerge.merge(beast.model(), beast.adapters, **OPTIONS)
    for module in merged.factors:
        torch.testing.assert_close(from_files.delta(module), merged.delta(module))


@pytest.mark.parametrize("combination", ["cat", "linear", "paper"])
def test_all_components_equal_all_adapters_active_together(beast: Beast, combination):
    model = beast.peft_model()
    samerge.add_weighted_adapter(
        model,
        list(NAMES),
        adapter_name="merged",
        combination_type=combination,
        scaling=1.0,
        density=1.0 if combination == "paper" else None,
    )
    model.base_model.set_adapter(list(NAMES))
    together = beast.logits(model)
    model.set_adapter("merged")
    torch.testing.assert_close(beast.logits(model), together, rtol=1e-5, atol=1e-5)


def test_weights_are_by_adapter(llama: Beast):
    model = llama.peft_model()
    merged = samerge.add_weighted_adapter(model, ["code", "math"], [0.0, -2.0], "merged", combination_type="cat")
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    torch.testing.assert_close(merged.delta("model.layers.0.self_attn.q_proj"), -2 * layer.get_delta_weight("math"))
    torch.testing.assert_close(layer.get_delta_weight("merged"), -2 * layer.get_delta_weight("math"))


def test_adapters_merged_into_the_base_at_the_moment_stay_there(llama: Beast):
    model = llama.peft_model()
    expected = add(llama.peft_model())
    model.merge_adapter(["talk"])
    before = state(model)
    merged = add(model)
    assert_same(before, adapted_before(before, without(state(model), "merged")))
    assert model.get_base_model().model.layers[0].self_attn.q_proj.merged_adapters == ["talk"]
    for module in expected.factors:  # what was read is the base below them
        torch.testing.assert_close(merged.delta(module), expected.delta(module), rtol=1e-3, atol=1e-5)


def test_apply_to_another_model_of_the_same_base(llama: Beast):
    merged = samerge.merge(llama.base, llama.adapters, **OPTIONS)
    model = llama.peft_model()
    merged.apply_to(model, "fresh")
    model.set_adapter("fresh")
    layer = model.get_base_model().model.layers[1].mlp.down_proj
    torch.testing.assert_close(layer.get_delta_weight("fresh"), merged.delta("model.layers.1.mlp.down_proj"))


def test_a_second_merge_can_use_the_first(llama: Beast):
    model = llama.peft_model()
    add(model, ["math", "code"], name="two")
    merged = add(model, ["two", "talk"], name="three")
    assert set(model.peft_config) == {*NAMES, "two", "three"}
    assert list(merged.report.adapters) == ["two", "talk"]


# ---- all or nothing


def failing_after(count: int, original):
    """`original`, which fails on its call number `count`."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) > count:
            raise RuntimeError("the disk is on fire")
        return original(*args, **kwargs)

    return wrapped


POINTS = {
    "first layer": (LoraLayer, "update_layer", 0),
    "third layer": (LoraLayer, "update_layer", 2),
    "loading": (peft, "set_peft_model_state_dict", 0),
    "merging": (samerge.merging.finish.Finisher, "done", 0),
    "add_adapter": (peft.PeftModel, "add_adapter", 0),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_failure_half_way_leaves_no_trace(llama: Beast, monkeypatch, point):
    model = llama.peft_model()
    model.set_adapter("code")
    before = state(model)
    owner, name, count = POINTS[point]
    if point.endswith("layer"):
        owner = type(model.get_base_model().model.layers[0].self_attn.q_proj)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing_after(count, getattr(owner, name)))
        with pytest.raises((samerge.BaseModelError, RuntimeError), match="the disk is on fire"):
            add(model)
    after = state(model)
    assert not [key for key in after["values"] if "merged" in key]
    assert not [k for _, _, scaling, ranks in after["layers"].values() for k in (*scaling, *ranks) if k == "merged"]
    assert_same(before, adapted_before(before, after))
    add(model)  # and the name is free
    assert "merged" in model.peft_config


def test_an_interruption_leaves_no_trace_either(llama: Beast, monkeypatch):
    model = llama.peft_model()
    before = state(model)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(peft, "set_peft_model_state_dict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            add(model)
    assert_same(before, adapted_before(before, state(model)))


def test_an_adapter_that_does_not_fit_the_model(llama: Beast, zoo):
    model = llama.peft_model()
    before = state(model)
    merged = samerge.merge(zoo("bert").base, zoo("bert").adapters, **OPTIONS)
    with pytest.raises(samerge.BaseModelError, match="adding 'merged' to this PeftModel"):
        merged.apply_to(model, "merged")
    assert_same(before, state(model))


# ---- what is refused, in words


def test_a_name_that_is_taken(llama: Beast):
    model = llama.peft_model()
    with pytest.raises(samerge.OutputExistsError, match=r"already has an adapter 'code' .*choose another name.*delete"):
        add(model, name="code")
    merged = samerge.merge(llama.base, llama.adapters, **OPTIONS)
    with pytest.raises(samerge.OutputExistsError, match=r"already has an adapter 'code'"):
        merged.apply_to(model, "code")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"adapters": ["math", "poetry"]}, samerge.AdapterError, r"no adapter 'poetry' in this .*; it has \['code'"),
        ({"weights": [1.0, 1.0]}, samerge.OptionError, r"2 weights for 3 adapters \['math', 'code', 'talk'\]"),
        ({"weights": [1.0] * 4}, samerge.OptionError, "4 weights for 3 adapters"),
        ({"weights": [1.0, float("nan"), 1.0]}, samerge.OptionError, r"weights\[1\]=nan must be a finite number"),
        ({"adapters": ["math", "math"]}, samerge.OptionError, "must be a list of different adapter names"),
        ({"adapters": "math"}, samerge.OptionError, "must be a list of different adapter names"),
        ({"adapters": []}, samerge.OptionError, "adapters is empty"),
        ({"svd_clamp": 0.9}, samerge.OptionError, "svd_clamp=0.9 is not supported"),
        ({"density": 1.5}, samerge.OptionError, r"density=1.5 must lie in \(0, 1\]"),
        ({"combination_type": "magic"}, samerge.OptionError, "'magic' is not known. Methods: saliency"),
    ],
)
def test_refusals(llama: Beast, arguments, error, words):
    model = llama.peft_model()
    arguments = {
        "adapters": list(NAMES),
        "weights": None,
        "adapter_name": "merged",
        "combination_type": "paper",
    } | arguments
    with pytest.raises(error, match=words):
        samerge.add_weighted_adapter(model, **arguments)
    assert set(model.peft_config) == set(NAMES)


def test_arguments_of_peft_that_mean_nothing_are_said_to_be_ignored(llama: Beast):
    model = llama.peft_model()
    with pytest.warns(UserWarning, match="ignores svd_driver='gesvd', svd_full_matrices=False"):
        add(model, svd_driver="gesvd", svd_full_matrices=False)


def test_only_a_peft_model_takes_an_adapter(llama: Beast):
    merged = samerge.merge(llama.base, llama.adapters, **OPTIONS)
    with pytest.raises(
        samerge.AdapterError, match="expected a PeftModel, or a model with adapters in it, got LlamaForCausalLM"
    ):
        merged.apply_to(llama.model(), "merged")


def test_any_module_that_peft_wraps():
    """No transformers model: a plain module, every layer by itself."""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 5))
    model = get_peft_model(plain, LoraConfig(r=3, target_modules=["0", "2"]), adapter_name="one")
    model.add_adapter("two", LoraConfig(r=2, target_modules=["0"]))
    randomise(model)
    samerge.add_weighted_adapter(
        model,
        ["one", "two"],
        None,
        "merged",
        combination_type="paper",
        density=1.0,
        scaling=1.0,
        connectivity="local",
    )
    x = torch.randn(4, 6)
    model.base_model.set_adapter(["one", "two"])
    together = model(x)
    model.set_adapter("merged")
    torch.testing.assert_close(model(x), together, rtol=1e-5, atol=1e-6)


def test_factors_in_eight_bits_on_a_live_model(llama) -> None:
    """As layer-wise casting holds them."""
    plain, small = llama.peft_model(), llama.peft_model()
    for model, kinds in ((plain, (torch.float8_e4m3fn, torch.float32)), (small, (torch.float8_e4m3fn,))):
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                for kind in kinds:
                    parameter.data = parameter.data.to(kind)
    names = list(llama.adapters)
    one, other = (samerge.merge(model, names, method="linear", progress=False) for model in (plain, small))
    same_merge(other, one)
