"""`balance` against dense sums."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge

WEIGHTS = [1.0, -0.5, 2.0]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Three adapters of unlike size, the third without layers.1, as (adapters, dense updates)."""
    folder = tmp_path_factory.mktemp("balance")
    base = chain([9, 8, 10])
    adapters, experts = {}, []
    for n, size in enumerate([1.0, 30.0, 0.1]):
        table = {m: (A, B * size) for m, (A, B) in chain_factors(base, 3 + n, seed=n).items()}
        if n == 2:
            del table["layers.1"]
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", table, alpha=2 * (3 + n))
        experts.append({m: 2 * B.double() @ A.double() for m, (A, B) in table.items()})
    return adapters, experts


def dense(experts, module: str, factors) -> torch.Tensor:
    return sum(w * f * e[module] for w, f, e in zip(WEIGHTS, factors, experts, strict=True) if module in e)


def test_every_layer_to_the_mean_norm(case):
    adapters, experts = case
    merged = samerge.merge(None, adapters, weights=WEIGHTS, method="linear", balance="norm")
    for module in ("layers.0", "layers.1"):
        norms = [float(e[module].norm()) if module in e else 0.0 for e in experts]
        mean = sum(norms) / sum(size > 0 for size in norms)
        factors = [mean / size if size else 1.0 for size in norms]
        torch.testing.assert_close(
            merged.delta(module).double(), dense(experts, module, factors), rtol=1e-5, atol=1e-5 * mean
        )
        for n, share in merged.report.record["layers"][module]["experts"].items():
            assert share["norm"] == pytest.approx(mean, rel=1e-5)
            assert share["balance"] == pytest.approx(factors[int(n[1])], rel=1e-5)


def test_whole_adapters_to_the_mean_norm(case):
    adapters, experts = case
    merged = samerge.merge(None, adapters, weights=WEIGHTS, method="linear", balance="global")
    norms = [sum(float(d.square().sum()) for d in e.values()) ** 0.5 for e in experts]
    factors = [sum(norms) / 3 / size for size in norms]
    for module in ("layers.0", "layers.1"):
        expected = dense(experts, module, factors)
        torch.testing.assert_close(
            merged.delta(module).double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
        )


def test_the_norm_rule_sees_balanced_experts(case):
    adapters, experts = case
    merged = samerge.merge(None, adapters, weights=WEIGHTS, method="linear", balance="norm", scaling="auto")
    norms = [float(e["layers.0"].norm()) for e in experts]
    assert float(merged.delta("layers.0").norm()) == pytest.approx(1.3 * sum(norms) / 3, rel=1e-5)


def test_a_factor_of_one_adapter_cancels_but_for_the_mean(case, tmp_path):
    """With one factor for all layers, or one for each."""
    base = chain([9, 8, 10])
    tables = [chain_factors(base, 3, seed) for seed in range(2)]
    louder = [{m: (A, 50 * B) for m, (A, B) in tables[0].items()}, tables[1]]
    one, other = (
        {f"e{n}": write_adapter(tmp_path / f"{k}e{n}", table) for n, table in enumerate(own)}
        for k, own in enumerate([tables, louder])
    )
    for kind in ("norm", "global"):
        a, b = (samerge.merge(None, own, method="linear", balance=kind).delta("layers.0") for own in (one, other))
        torch.testing.assert_close(a / a.norm(), b / b.norm(), rtol=1e-4, atol=1e-5)


def test_one_adapter_is_itself_and_zeros_count_in_no_mean(case, tmp_path):
    adapters, experts = case
    alone = samerge.merge(None, {"e1": adapters["e1"]}, method="linear", balance="norm")
    torch.testing.assert_close(alone.delta("layers.0").double(), experts[1]["layers.0"], rtol=1e-5, atol=1e-4)
    base = chain([9, 8, 10])
    zero = {m: (A, 0 * B) for m, (A, B) in chain_factors(base, 2, seed=9).items()}
    beside = {"e1": adapters["e1"], "zero": write_adapter(tmp_path / "zero", zero), "off": adapters["e0"]}
    for kind in ("norm", "global"):
        merged = samerge.merge(None, beside, weights=[1.0, 1.0, 0.0], method="linear", balance=kind)
        torch.testing.assert_close(merged.delta("layers.0").double(), experts[1]["layers.0"], rtol=1e-5, atol=1e-4)


def test_adapters_of_one_norm_stay_as_they_are_to_the_bit(tmp_path):
    base = chain([9, 8, 10])
    table = chain_factors(base, 3, 0)
    twins = {name: write_adapter(tmp_path / name, table) for name in ("a", "b")}
    plain, level = (samerge.merge(None, twins, method="linear", balance=kind) for kind in ("none", "norm"))
    assert all(torch.equal(tensor, level.tensors()[name]) for name, tensor in plain.tensors().items())


def test_another_word_is_refused(case):
    adapters, _ = case
    with pytest.raises(samerge.OptionError, match="balance='size' is not known; choose one of none, norm, global"):
        samerge.merge(None, adapters, method="linear", balance="size")
