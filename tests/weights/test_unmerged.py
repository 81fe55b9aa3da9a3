"""A live model into which adapters are merged at the moment: the base read is theta0, or an error says why not."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoHaConfig, LoraConfig, get_peft_model
from torch import Tensor, nn

import samerge
from samerge.weights import ModelSource, WeightSource


def everything(source: WeightSource, step: int = 5) -> dict[str, Tensor]:
    """All weights, read in tiles."""
    found = {}
    for name, shape in source.shapes.items():
        rows = [source.read(name, start, start + step) for start in range(0, shape[0], step)]
        found[name] = torch.cat([row.clone() for row in rows])
    return found


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name] - b[name]).norm() <= tolerance * b[name].norm(), name


def test_reads_the_base_below_merged_adapters(beast):
    expected = everything(ModelSource(beast.model()))
    model = beast.peft_model()
    model.merge_adapter(["math", "talk"])
    assert_same(everything(ModelSource(model)), expected)


def test_merges_the_same_with_adapters_merged_in(llama):
    expected = samerge.merge(llama.peft_model(), ["math", "code"], method="saliency", progress=False)
    model = llama.peft_model()
    model.merge_adapter(["talk"])
    found = samerge.merge(model, ["math", "code"], method="saliency", progress=False)
    for module in expected.factors:
        torch.testing.assert_close(found.delta(module), expected.delta(module), rtol=1e-4, atol=1e-6)


class Menagerie(nn.Module):
    """One of each kind of layer that LoRA adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.linear = nn.Linear(8, 6)
        self.conv1 = nn.Conv1d(4, 6, 3)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.experts = nn.Module()
        self.experts.stack = nn.Parameter(torch.randn(3, 5, 8))


def menagerie(**settings) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    base = Menagerie()
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, lora_alpha=3, **settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return base, model


@pytest.mark.parametrize("target", ["embed", "linear", "conv1", "conv2"])
def test_every_kind_of_layer(target):
    base, model = menagerie(target_modules=[target])
    expected = everything(ModelSource(base))
    model.merge_adapter()
    assert_same(everything(ModelSource(model)), expected, 1e-5)


def test_a_stack_of_experts():
    base, model = menagerie(target_modules=[], target_parameters=["experts.stack"])
    model.merge_adapter()
    source = ModelSource(model)
    assert_same(everything(source, 2), everything(ModelSource(base), 2), 1e-5)
    rows = source.read("experts.stack", 1, 4, expert=2)
    torch.testing.assert_close(rows, base.experts.stack[2, 1:4].detach(), rtol=1e-4, atol=1e-5)


def test_a_bias_of_lora():
    base, model = menagerie(target_modules=["linear"], lora_bias=True)
    model.merge_adapter()
    assert_same(everything(ModelSource(model)), everything(ModelSource(base)), 1e-5)


@pytest.mark.filterwarnings("ignore:All adapters are already merged")
def test_attention_is_refused():
    _, model = menagerie(target_modules=["attention"])
    model.merge_adapter()
    with pytest.raises(
        samerge.BaseModelError, match=r"into attention .*MultiheadAttention .*unmerge_adapter\(\) first"
    ):
        ModelSource(model)


@pytest.mark.filterwarnings("ignore:Already unmerged")
def test_half_precision_gives_what_unmerging_would_and_says_so(llama):
    model = llama.peft_model().to(torch.bfloat16)
    model.merge_adapter(["math"])
    with pytest.warns(UserWarning, match=r"\['math'\] are merged .* bfloat16: merging rounded them"):
        found = everything(ModelSource(model))
    model.unmerge_adapter()
    assert_same(found, everything(ModelSource(model)), 2**-8)
    assert all(tensor.dtype == torch.bfloat16 for tensor in found.values())


def test_dora_is_refused():
    _, model = menagerie(target_modules=["linear"], use_dora=True)
    model.merge_adapter()
    with pytest.raises(samerge.BaseModelError, match=r"'default' is merged into linear .*Dora.*unmerge_adapter\(\)"):
        ModelSource(model)


def test_what_is_not_lora_is_refused():
    model = get_peft_model(Menagerie(), LoHaConfig(r=2, target_modules=["linear"]))
    model.merge_adapter()
    with pytest.raises(samerge.BaseModelError, match=r"it is no LoRA \(.*unmerge_adapter\(\) first"):
        ModelSource(model)


def test_nothing_of_peft_is_taken_for_the_base():
    _, model = menagerie(
        target_modules=["linear"], modules_to_save=["conv1"], trainable_token_indices={"embed": [1, 2]}
    )
    assert set(ModelSource(model).shapes) == set(ModelSource(Menagerie()).shapes)
