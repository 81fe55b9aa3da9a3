"""`register_with_peft`: samerge's methods on PEFT's own method, PEFT's types untouched, and all of it undone."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from alike import same_updates
from peft import PeftModel
from tiny import Beast

import samerge
from samerge.errors import OptionError


@pytest.fixture(autouse=True)
def undone():
    yield
    samerge.unregister_from_peft()
    assert "add_weighted_adapter" not in PeftModel.__dict__


def factors(model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    found = model.named_parameters()
    return {key: tensor.detach().clone() for key, tensor in found if f".{name}." in key}


def test_a_method_of_samerge(llama: Beast):
    samerge.register_with_peft()
    samerge.register_with_peft()
    model = llama.peft_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.add_weighted_adapter(["math", "code"], [1.0, 0.5], "merged", combination_type="saliency", rank=3)
    other = llama.peft_model()
    samerge.add_weighted_adapter(other, ["math", "code"], [1.0, 0.5], "merged", "saliency", rank=3, progress=False)
    found, expected = (
        {key.replace(".merged.", "."): t for key, t in factors(one, "merged").items()} for one in (model, other)
    )
    same_updates(found, expected)
    assert model.active_adapters == ["math"]
    after = dict(model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_pefts_types_stay_pefts(llama: Beast):
    plain, model = llama.peft_model(), llama.peft_model()
    plain.add_weighted_adapter(["math", "code"], [1.0, 0.5], "merged", combination_type="linear")
    samerge.register_with_peft()
    model.add_weighted_adapter(["math", "code"], [1.0, 0.5], "merged", combination_type="linear")
    for key, tensor in factors(plain, "merged").items():
        assert torch.equal(tensor, factors(model, "merged")[key])
    model.add_weighted_adapter(["math", "code"], [1.0, 0.5], "default", svd_rank=4)  # PEFT's default, svd
    assert model.peft_config["default"].r == 4


def test_an_unknown_type_and_what_is_undone(llama: Beast):
    model = llama.peft_model()
    samerge.register_with_peft()
    with pytest.raises(OptionError, match="'salience' is not known"):
        model.add_weighted_adapter(["math", "code"], [1.0, 1.0], "merged", combination_type="salience")
    assert "merged" not in model.peft_config
    samerge.unregister_from_peft()
    samerge.unregister_from_peft()
    with pytest.raises(ValueError, match="combination_type"):
        model.add_weighted_adapter(["math", "code"], [1.0, 1.0], "merged", combination_type="saliency")


def test_nothing_is_changed_by_an_import():
    code = (
        "import samerge, samerge.merging.peft_method, peft; "
        "assert 'add_weighted_adapter' not in peft.PeftModel.__dict__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
