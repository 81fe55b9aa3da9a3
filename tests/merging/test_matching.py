"""From module names to tensors of the base."""

from __future__ import annotations

import pytest
import torch

from samerge.adapters import AdaptedModule, Adapter
from samerge.adapters.layouts import Layout
from samerge.errors import BaseModelError
from samerge.merging.alignment import assemble
from samerge.merging.alignment.matching import match_modules
from samerge.merging.alignment.projections import PARTS
from samerge.merging.alignment.spelling import together

SHAPES = {
    "bert.layer.0.q.weight": (4, 4),
    "bert.layer.0.q.bias": (4,),
    "bert.layer.1.q.weight": (4, 4),
    "bert.norm.weight": (4,),
    "head.weight": (2, 4),
    "decoder.head.weight": (2, 4),
}


@pytest.mark.parametrize(
    ("module", "tensor"),
    [
        ("bert.layer.0.q", "bert.layer.0.q.weight"),
        ("layer.0.q", "bert.layer.0.q.weight"),  # the base has a prefix more
        ("model.bert.layer.1.q", "bert.layer.1.q.weight"),  # the adapter has
        ("head", "head.weight"),  # exactly, though another ends alike
        ("decoder.head", "decoder.head.weight"),
    ],
)
def test_a_prefix_may_differ(module, tensor):
    assert match_modules("math", [module], SHAPES, "base") == {module: tensor}


def test_several_weights_fit():
    with pytest.raises(BaseModelError, match="its module 'q' fits several weights there") as caught:
        match_modules("math", ["q"], SHAPES, "base")
    assert "adapter 'math' does not fit the base model 'base'" in str(caught.value)
    assert "bert.layer.0.q" in str(caught.value)


def test_no_weight_fits_and_the_nearest_are_shown():
    with pytest.raises(
        BaseModelError, match=r"'bert.layer.2.q' has no weight there \(nearest: .*'bert.layer.3.q' has no"
    ) as caught:
        match_modules("math", ["bert.layer.2.q", "bert.layer.3.q", "head"], SHAPES, "base")
    assert "nearest: ['bert.layer." in str(caught.value)
    assert "another base model?" in str(caught.value)


@pytest.mark.parametrize("module", ["bert.norm", "norm", "0.q", "other.q"])
def test_vectors_and_partial_names_are_no_match(module):
    shapes = {name: shape for name, shape in SHAPES.items() if "layer.1" not in name or module != "0.q"}
    if module == "0.q":  # a tail of one weight alone is a prefix that differs
        assert match_modules("math", [module], shapes, "base") == {"0.q": "bert.layer.0.q.weight"}
        return
    with pytest.raises(BaseModelError):
        match_modules("math", [module], shapes, "base")


def test_a_parameter_without_weight_in_its_name():
    assert match_modules("math", ["mlp.experts.up"], {"mlp.experts.up": (2, 4, 4)}, "base") == {
        "mlp.experts.up": "mlp.experts.up"
    }


def test_many_adapters_of_one_module_are_compared_once_each(monkeypatch):
    compared = []
    monkeypatch.setattr(assemble, "_alike", lambda *layouts: not compared.append(layouts))
    module = AdaptedModule(Layout(), 4, (16, 16), torch.float32, lambda: None)
    adapters = [Adapter(f"a{n}", "there", {}, {"layers.0.q": module}) for n in range(200)]
    [site] = assemble.align(together(adapters, None).adapters, None)
    assert len(site.experts) == 200
    assert len(compared) == 199


@pytest.mark.parametrize("whole", PARTS)
def test_a_projection_in_one_piece_is_refused_beside_its_parts_without_a_base(whole):
    def adapting(name):
        none = AdaptedModule(Layout(), 1, (4, 4), torch.float32, lambda: pytest.fail("read"))
        return Adapter(name, "there", {"base_model_name_or_path": "ada/base"}, {f"h.0.{name}": none})

    for part in PARTS[whole]:
        with pytest.raises(BaseModelError, match=rf"'{whole}' adapts 'h\.0\.{whole}' in one piece, '{part}' its part"):
            together([adapting(whole), adapting(part)], None)
