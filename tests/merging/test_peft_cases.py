"""PEFT's own tests of weighted and of several active adapters, as cases of ours.

After `_test_weighted_combination_of_adapters_lora` (three adapters of ranks 8, 8 and 20), `test_add_weighted_adapter_*`
and `TestMultipleActiveAdapters` of PEFT's test suite. What differs is said where it does.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import samerge

_SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SIZES | {"vocab_size": 40}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 40}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
        | {"vocab_size": 40},
    ),
    "bert": ("BertModel", "BertConfig", _SIZES | {"vocab_size": 40}),
}
NAMES = ["adapter_1", "adapter_2", "adapter_3"]
RANKS = [8, 8, 20]


def three_adapters(name: str) -> PeftModel:
    """A tiny model with adapters of ranks 8, 8 and 20, none of them zero."""
    kind, config, settings = MODELS[name]
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 1} | ({} if name == "t5" else {"bos_token_id": 2})
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings, **special)).eval()
    lora = {"lora_alpha": 32, "init_lora_weights": False, "fan_in_fan_out": name == "gpt2"}
    wrapped = get_peft_model(model, LoraConfig(r=RANKS[0], **lora), adapter_name=NAMES[0])
    for adapter, rank in zip(NAMES[1:], RANKS[1:], strict=True):
        wrapped.add_adapter(adapter, LoraConfig(r=rank, **lora))
    return wrapped.eval()


def logits(model: nn.Module) -> Tensor:
    ids = torch.tensor([[1, 5, 9], [7, 2, 4]])
    more = {"decoder_input_ids": ids} if "T5" in type(model.get_base_model()).__name__ else {}
    with torch.no_grad():
        return model(input_ids=ids, **more)[0]


def layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def activate(model: PeftModel, names: list[str]) -> None:
    for layer in layers(model):
        layer.set_adapter(names)


def add(model: PeftModel, adapters: list[str], weights: list[float] | None, name: str, kind: str, **options) -> None:
    samerge.add_weighted_adapter(model, adapters, weights, name, kind, progress=False, **options)


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request) -> PeftModel:
    """Its adapters are never changed, only new ones are added."""
    return three_adapters(request.param)


_COUNT = itertools.count()


@pytest.fixture
def name() -> str:
    return f"new_{next(_COUNT)}"


@pytest.mark.parametrize("weights", [[0.5, 1.5, 1.5], [-0.5, -0.8, -1.2]])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("svd", {}),
        ("cat", {}),
        ("linear", {}),
        ("paper", {"density": 1.0, "scaling": 1.0}),
    ],
)
def test_one_adapter_reweighted(model, name, weights, kind, options):
    """PEFT's single_adapter_reweighting. Ours keeps the sign of a negative weight."""
    add(model, NAMES[:1], weights[:1], name, kind, **options)
    for layer in layers(model):
        expected = layer.get_delta_weight(NAMES[0]) * weights[0]
        torch.testing.assert_close(layer.get_delta_weight(name), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", [[1.5, 1.5], [-0.8, -1.2]])
@pytest.mark.parametrize("kind", ["cat", "linear", "paper"])
def test_ranks_8_and_20_give_28(model, name, weights, kind):
    """PEFT's multi_adapter_cat_reweighting. Its `linear` refuses different ranks; ours is the same exact sum."""
    add(model, NAMES[1:], weights, name, kind, **({"density": 1.0, "scaling": 1.0} if kind == "paper" else {}))
    for layer in layers(model):
        assert layer.r[name] == 28
        expected = sum(layer.get_delta_weight(n) * w for n, w in zip(NAMES[1:], weights, strict=True))
        torch.testing.assert_close(layer.get_delta_weight(name), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [None, 6])
def test_svd_truncates_to_the_best_approximation(model, name, rank):
    """PEFT's multi_adapter_svd_reweighting: the largest rank by default, the same update as its full SVD."""
    add(model, NAMES[1:], [1.5, 1.5], name, "svd", svd_rank=rank)
    for layer in layers(model):
        assert layer.r[name] == (rank or 20)
        whole = sum(layer.get_delta_weight(n) * 1.5 for n in NAMES[1:]).double()
        U, S, V = torch.linalg.svd(whole, full_matrices=False)
        best = (U[:, : rank or 20] * S[: rank or 20]) @ V[: rank or 20]
        torch.testing.assert_close(layer.get_delta_weight(name).double(), best, rtol=1e-3, atol=1e-3)


def test_an_adapter_of_weight_zero_takes_no_part(model, name):
    """PEFT's multi_adapter_linear_reweighting_single_enabled."""
    add(model, NAMES[:2], [0.5, 0.0], name, "linear")
    for layer in layers(model):
        torch.testing.assert_close(
            layer.get_delta_weight(name), layer.get_delta_weight(NAMES[0]) * 0.5, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("kind", ["svd", "cat", "linear", "paper"])
def test_new_adapters_pass_the_forward_loop(model, name, kind):
    add(model, NAMES, [1.0, -0.5, 0.5], name, kind)
    assert model.active_adapter != name
    model.set_adapter(name)
    assert model.active_adapters == [name]
    assert torch.isfinite(logits(model)).all()
    model.set_adapter(NAMES[0])


@pytest.mark.parametrize("kind", ["cat", "paper"])
def test_several_active_adapters_equal_the_merged_one(model, name, kind):
    """PEFT's test_multiple_active_adapters_forward: at full rank the merge is all adapters at once."""
    apart = []
    for adapter in NAMES:
        model.set_adapter(adapter)
        apart.append(logits(model))
    activate(model, NAMES)
    together = logits(model)
    assert not any(torch.allclose(together, one, atol=1e-5) for one in apart)
    add(model, NAMES, [1.0, 1.0, 1.0], name, kind, **({"density": 1.0, "scaling": 1.0} if kind == "paper" else {}))
    model.set_adapter(name)
    torch.testing.assert_close(logits(model), together, rtol=1e-4, atol=1e-5)


class MLP(nn.Module):
    """PEFT's custom model."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(10, 20)
        self.lin1 = nn.Linear(20, 2)

    def forward(self, X: Tensor) -> Tensor:
        return self.lin1(self.lin0(X).relu())


def mlp(*configs: LoraConfig) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(MLP(), configs[0], adapter_name="a0")
    for number, config in enumerate(configs[1:], start=1):
        model.add_adapter(f"a{number}", config)
    return model.eval()


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"target_modules": ["lin0"], "init_lora_weights": False} | settings)


X = torch.arange(90.0).view(9, 10) / 30


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"target_modules": ["lin1"]},
        {"target_modules": ["lin0", "lin1"], "r": 2, "lora_alpha": 3},
        {"use_rslora": True, "r": 4},
        {"rank_pattern": {"lin0": 3}, "alpha_pattern": {"lin0": 9}},
        {"target_modules": None, "target_parameters": ["lin0.weight"]},  # refused by PEFT's add_weighted_adapter
    ],
)
@pytest.mark.filterwarnings("ignore:.*target_parameters")
@pytest.mark.parametrize("kind", ["cat", "paper"])
def test_custom_models(others, kind):
    if others.get("target_parameters"):
        model = mlp(lora(**others))  # PEFT holds one adapter of parameters on a model
        names = ["a0"]
    else:
        model = mlp(lora(), lora(**others))
        names = ["a0", "a1"]
    for layer in layers(model):
        layer.set_adapter(names)
    together = model(X)
    exact = {"density": 1.0, "scaling": 1.0, "connectivity": "local"} if kind == "paper" else {}
    add(model, names, None, "both", kind, **exact)
    model.set_adapter("both")
    torch.testing.assert_close(model(X), together, rtol=1e-4, atol=1e-4)


def test_a_negative_weight_negates():
    """PEFT's test_add_weighted_adapter_negative_weight_negates_adapter, and with a scaling of its own."""
    for settings in ({}, {"lora_alpha": 24, "r": 4}):
        model = mlp(lora(**settings))
        add(model, ["a0"], [-1.0], "negated", "linear")
        layer = layers(model)[0]
        torch.testing.assert_close(layer.get_delta_weight("negated"), -layer.get_delta_weight("a0"))


def test_an_adapter_less_itself_is_nothing():
    """PEFT's test_add_weighted_adapter_subtraction_with_negative_weights; to rounding, not to the last bit."""
    model = mlp(lora(), lora())
    add(model, ["a0", "a1"], [1.0, -1.0], "difference", "linear")
    layer = layers(model)[0]
    expected = layer.get_delta_weight("a0") - layer.get_delta_weight("a1")
    torch.testing.assert_close(layer.get_delta_weight("difference"), expected)


def test_the_base_is_unchanged(model, name):
    """PEFT's test_add_weighted_adapter_base_unchanged: configurations and weights of the sources stay as they were."""
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    configs = {key: config.to_dict() for key, config in model.peft_config.items()}
    add(model, NAMES, None, name, "paper")
    after = dict(model.named_parameters())
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert {key: model.peft_config[key].to_dict() for key in configs} == configs


def test_what_peft_lets_pass(model):
    """A taken name is no silent return, and weights are not cut short."""
    with pytest.raises(samerge.OutputExistsError, match="already has an adapter"):
        add(model, NAMES, None, NAMES[0], "cat")
    with pytest.raises(samerge.OptionError, match="1 weights for 3 adapters"):
        add(model, NAMES, [1.0], "short", "cat")
    with pytest.raises(samerge.AdapterError, match="there is no adapter 'nobody'"):
        add(model, ["nobody"], [1.0], "short", "cat")
    assert "short" not in model.peft_config
