"""Names of modules in the servable profile, checked against PEFT's own matching."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from samerge.profile import module_type, siblings, target_modules


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("model.layers.3.mlp.up_proj", "model.layers.*.mlp.up_proj"),
        ("h.0.mlp.experts.11.w1", "h.*.mlp.experts.*.w1"),
        ("0.weights", "*.weights"),
        ("block2.conv1", "block2.conv1"),
        ("layers.10", "layers.*"),
        ("a.1.2.b", "a.*.*.b"),
    ],
)
def test_module_type(module, kind):
    assert module_type(module) == kind


def test_siblings_are_named_as_the_adapters_name_theirs():
    stems = [f"model.layers.{i}.{name}" for i in range(3) for name in ("q", "k")] + ["model.embed"]
    assert siblings({"layers.1.q": "model.layers.1.q"}, stems) == {
        "layers.0.q": "model.layers.0.q",
        "layers.2.q": "model.layers.2.q",
    }
    assert siblings({"bert.layers.1.q": "layers.1.q"}, ["layers.0.q", "layers.1.q"]) == {
        "bert.layers.0.q": "layers.0.q"
    }
    assert siblings({}, stems) == {}


def test_an_encoder_is_no_sibling_of_a_decoder():
    stems = [f"{side}.block.{i}.q" for side in ("encoder", "decoder") for i in range(2)]
    assert siblings({"decoder.block.0.q": "decoder.block.0.q"}, stems) == {"decoder.block.1.q": "decoder.block.1.q"}


def test_the_shortest_names_that_will_do():
    assert target_modules(["h.0.q", "h.1.q"], ["h.0.k"]) == ["q"]
    assert target_modules(["h.0.out.dense"], ["h.0.up.dense", "pooler.dense"]) == ["out.dense"]
    assert target_modules(["h.0.q"], ["h.1.q"]) == ["h.0.q"]
    assert target_modules(["lm_head"], []) == ["lm_head"]
    assert target_modules(["0"], ["1"]) == ["0"]


PARTS = st.lists(st.sampled_from(["a", "b", "0", "1", "dense", "q"]), min_size=1, max_size=4).map(".".join)


@given(st.sets(PARTS, min_size=1, max_size=8), st.data())
def test_peft_finds_exactly_the_adapted_modules(names, data):
    adapted = data.draw(st.sets(st.sampled_from(sorted(names)), min_size=1))
    others = names - adapted
    config = LoraConfig(target_modules=target_modules(adapted, others))
    assert all(check_target_module_exists(config, name) for name in adapted)
    wrong = {name for name in others if check_target_module_exists(config, name)}
    assert all(any(name.endswith(f".{module}") for module in adapted) for name in wrong)  # only where no name can tell
