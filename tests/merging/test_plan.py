"""A plan has every option filled in, whatever form it was given in, or says which one is wrong and what was meant."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from tiny import Beast, write_adapter, write_base

import samerge
from samerge.merging.plan import plan


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"rank": 16.0}, "rank", 16),
        ({"svd_rank": "8"}, "rank", 8),
        ({"rank": "none"}, "rank", None),
        ({"scaling": "0.5"}, "scaling", 0.5),
        ({"scaling": torch.tensor(0.5)}, "scaling", 0.5),
        ({"scaling": "auto:1.5"}, "scaling", "auto:1.5"),
        ({"dtype": torch.bfloat16}, "dtype", "bfloat16"),
        ({"residual": "no"}, "residual", False),
        ({"density": "0.25"}, "density", 0.25),
        ({"method": "ties_svd"}, "trim", "layer"),
        ({"method": "ties_svd", "trim": "adapter"}, "trim", "adapter"),
        ({}, "balance", "norm"),
        ({"method": "linear"}, "balance", "none"),
        ({"method": "elementwise"}, "scaling", "auto"),
    ],
)
def test_an_option_means_the_same_in_every_form(given, name, value) -> None:
    options = dict(given)
    assert plan(options.pop("method", None), options).record()[name] == value


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (None, {"densty": 0.5}, r"method 'saliency' has no option 'densty'; did you mean 'density'\?"),
        ("linear", {"density": 0.5}, "method 'linear' has no option 'density'"),
        ("ties", {"rank": 3, "svd_rank": 4}, "rank and svd_rank are the same option"),
        (None, {"rank": 3, "density": 0.5}, "rank=3 and density=0.5 together"),
        (None, {"rank": 2.5}, "rank=2.5 must be a whole number of at least 1"),
        (None, {"rank": True}, "rank=True must be a whole number"),
        (None, {"scaling": float("nan")}, "scaling=nan must be a finite number"),
        (None, {"connectivity": "floww"}, "connectivity='floww' is not known"),
        ("della", {"density": 0.04}, "must lie in"),
        ("tie", {}, r"method='tie' is not known; did you mean 'ties'\?"),
    ],
)
def test_what_is_wrong_is_named(method, options, words: str) -> None:
    with pytest.raises(samerge.OptionError, match=words):
        plan(method, options)


def test_without_a_base_the_default_is_even_and_says_so(llama: Beast, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "samerge"):
        merged = samerge.merge(None, llama.adapters, progress=False)
    assert merged.report.record.method == "even"
    assert any("ranked by their size alone" in note for note in merged.report.notes)
    assert any("ranked by their size alone" in record.getMessage() for record in caplog.records)
    named = samerge.merge(None, llama.adapters, method="even", progress=False)
    assert not any("size alone" in note for note in named.report.notes)
    for module in merged.factors:
        torch.testing.assert_close(merged.delta(module), named.delta(module))


def test_a_family_that_is_not_known_likewise(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = write_base(tmp_path / "base", {"a.weight": torch.randn(6, 5, generator=generator)}, model_type="nobody")
    factors = [(torch.randn(2, 5, generator=generator), torch.randn(6, 2, generator=generator)) for _ in "ab"]
    adapters = [write_adapter(tmp_path / name, {"a": one}) for name, one in zip("xy", factors, strict=True)]
    merged = samerge.merge(base, adapters, progress=False)
    assert merged.report.record.method == "even"
    assert any("connectivity" in note for note in merged.report.notes)
    with pytest.raises(samerge.GraphError):
        samerge.merge(base, adapters, method="saliency", progress=False)
    local = samerge.merge(base, adapters, connectivity="local", progress=False)
    assert local.report.record.method == "saliency"


def test_a_base_of_a_known_family_that_lacks_layers_is_told_as_such(llama: Beast, tmp_path) -> None:
    """It may be half a download: that its architecture were not known would send its owner the wrong way."""
    base = shutil.copytree(llama.folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    merged = samerge.merge(base, llama.adapters, progress=False)
    [note] = [note for note in merged.report.notes if "method even" in note]
    assert "the configuration says 5 layers, but 2 were found" in note
    assert "no shard is missing), so the components were ranked by their size alone" in note
    assert "architecture has no flow graph" not in note


@pytest.mark.parametrize("options", [{"method": "saliency"}, {"iterations": 3}, {"connectivity": "local"}])
def test_who_asks_for_gamma_without_a_base_is_refused(llama: Beast, options) -> None:
    with pytest.raises(samerge.OptionError, match="reads the base model"):
        samerge.merge(None, llama.adapters, progress=False, **options)
