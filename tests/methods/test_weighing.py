"""`weights="nan"` and `scaling="lines:..."`, which need no data either."""

from __future__ import annotations

import pytest
import torch
from tiny import Beast, chain, chain_factors, write_adapter, write_base

import samerge
from samerge.options.lines import layer_scalings


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighing")
    base = chain([8, 9, 7])
    adapters, experts = {}, []
    for n, rank in enumerate([2, 3, 4]):
        factors = chain_factors(base, rank, seed=n)
        if n == 2:
            del factors["layers.1"]
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", factors)
        experts.append({m: B.double() @ A.double() for m, (A, B) in factors.items()})
    return write_base(folder / "base", base), adapters, experts


def test_nan_weights_are_inverse_norms(case):
    _, adapters, experts = case
    inverse = [1 / sum(float(d.square().sum()) for d in e.values()) ** 0.5 for e in experts]
    weights = [x / (sum(inverse) / 3) for x in inverse]
    merged = samerge.merge(None, adapters, weights="nan", method="linear")
    expected = sum(w * e["layers.0"] for w, e in zip(weights, experts, strict=True))
    torch.testing.assert_close(merged.delta("layers.0").double(), expected, rtol=1e-5, atol=1e-5)
    recorded = [item["weight"] for item in merged.report.record["inputs"]]
    assert recorded == pytest.approx(weights, rel=1e-6)
    assert sum(recorded) == pytest.approx(3)
    with pytest.raises(samerge.OptionError, match=r"weights='norm' is not known; .* or 'nan', or 'auto'"):
        samerge.merge(None, adapters, weights="norm", method="linear")


@pytest.mark.parametrize("weights", ["nan", "auto"])
def test_weights_are_measured_on_what_they_weigh(tmp_path, weights):
    """Experts that differ in size alone get one weight where a balance brings them to one size first."""
    eye = torch.eye(4)
    small, large = ({"layer": (eye[i : i + 1], eye[:, i : i + 1] * size)} for i, size in ((0, 1.0), (1, 9.0)))
    adapters = [write_adapter(tmp_path / name, factors) for name, factors in (("small", small), ("large", large))]
    merged = samerge.merge(None, adapters, weights=weights, balance="global", method="linear")
    assert [item["weight"] for item in merged.report.record["inputs"]] == pytest.approx([1.0, 1.0])
    torch.testing.assert_close(merged.delta("layer"), torch.diag(torch.tensor([5.0, 5.0, 0.0, 0.0])))


def test_the_record_says_how_weights_were_found(case):
    _, adapters, _ = case
    for weights in ("nan", "auto"):
        merged = samerge.merge(None, adapters, weights=weights)
        assert merged.report.record["options"]["weights"] == weights
    assert "weights" not in samerge.merge(None, adapters, weights=[1, 2, 3]).report.record["options"]


def test_nan_weights_with_saliency(llama: Beast):
    merged = samerge.merge(llama.base, llama.adapters, method="saliency", weights="nan")
    assert len({item["weight"] for item in merged.report.record["inputs"]}) == 3


@pytest.mark.parametrize("method", ["linear", "tsv"])
def test_lines(case, method):
    base, adapters, _ = case
    plain = samerge.merge(base, adapters, method=method, scaling=1.0)
    for given in (base, None):
        merged = samerge.merge(given, adapters, method=method, scaling="lines:0.25:0.5")
        torch.testing.assert_close(merged.delta("layers.0"), 0.25 * plain.delta("layers.0"))
        torch.testing.assert_close(merged.delta("layers.1"), 0.75 * plain.delta("layers.1"))


def test_the_layers_of_the_base_count():
    modules = {"enc.layer.0.q": False, "enc.layer.3.q": False, "dec.1.q": False, "pooler": False, "embed": True}
    found = layer_scalings(modules, ["enc.layer.5.q.weight", "dec.0.q.weight"], "lines:1:1")
    assert found == {"enc.layer.0.q": 1.0, "enc.layer.3.q": 1.6, "dec.1.q": 2.0, "pooler": 2.0, "embed": 1.0}


@pytest.mark.parametrize("scaling", ["lines", "lines:1", "lines:1:2:3", "lines:a:b", "lines:nan:1", "lines:1:inf"])
def test_wrong_lines_are_refused(case, scaling):
    _, adapters, _ = case
    with pytest.raises(samerge.OptionError, match="must be 'lines:<alpha>:<beta>' with two numbers"):
        samerge.merge(None, adapters, method="linear", scaling=scaling)
