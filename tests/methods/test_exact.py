"""`linear`, `cat` and `svd` against the dense weighted sum."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter, write_base

import samerge


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A chain, three adapters of ranks 2, 3 and 4 and other scales, and the dense sum of two weights' worth."""
    folder = tmp_path_factory.mktemp("exact")
    base = chain([8, 9, 7])
    adapters, experts = {}, []
    for n, (rank, alpha) in enumerate([(2, 4), (3, 3), (4, 1)]):
        factors = chain_factors(base, rank, seed=n)
        if n == 2:
            del factors["layers.1"]
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", factors, alpha=alpha)
        experts.append({m: alpha / rank * B.double() @ A.double() for m, (A, B) in factors.items()})
    return write_base(folder / "base", base), adapters, experts


WEIGHTS = [1.0, -0.5, 2.0]


def dense(experts, module):
    return sum(w * e[module] for w, e in zip(WEIGHTS, experts, strict=True) if module in e)


@pytest.mark.parametrize("method", ["linear", "cat"])
@pytest.mark.parametrize("with_base", [True, False])
def test_the_sum_is_exact(case, method, with_base):
    base, adapters, experts = case
    merged = samerge.merge(base if with_base else None, adapters, weights=WEIGHTS, method=method)
    for module in ("layers.0", "layers.1"):
        torch.testing.assert_close(merged.delta(module).double(), dense(experts, module), rtol=1e-5, atol=1e-5)
    assert merged.settings["r"] == 9  # the sum of the ranks


def test_there_are_no_cross_terms(case):
    """N copies with weight 1/N are the adapter itself."""
    base, adapters, experts = case
    copies = dict.fromkeys("abcd", adapters["e0"])
    merged = samerge.merge(base, copies, weights=[0.25] * 4, method="linear")
    torch.testing.assert_close(merged.delta("layers.0").double(), experts[0]["layers.0"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 5, 100, None])
def test_svd_is_the_best_approximation(case, rank):
    base, adapters, experts = case
    merged = samerge.merge(base, adapters, weights=WEIGHTS, method="svd", svd_rank=rank)
    rank = rank or 4  # by default the largest source rank
    for module in ("layers.0", "layers.1"):
        u, s, vh = torch.linalg.svd(dense(experts, module), full_matrices=False)
        best = u[:, :rank] * s[:rank] @ vh[:rank]
        torch.testing.assert_close(merged.delta(module).double(), best, rtol=1e-5, atol=1e-5)
        lost = float(s[rank:].square().sum() / s.square().sum())
        assert merged.report.record.layers[module].lost == pytest.approx(lost, abs=1e-6)
    assert merged.settings["r"] == min(rank, 9)  # the sum of the ranks


@pytest.mark.parametrize("method", ["linear", "cat", "svd"])
@pytest.mark.parametrize("name", ["rank", "svd_rank"])
def test_rank_is_the_results_by_either_name(case, method, name):
    base, adapters, experts = case
    merged = samerge.merge(base, adapters, weights=WEIGHTS, method=method, **{name: 3})
    u, s, vh = torch.linalg.svd(dense(experts, "layers.0"), full_matrices=False)
    torch.testing.assert_close(merged.delta("layers.0").double(), u[:, :3] * s[:3] @ vh[:3], rtol=1e-5, atol=1e-5)


def test_svd_keeps_whole_what_fits(case):
    base, adapters, experts = case
    merged = samerge.merge(base, {"a": adapters["e1"]}, method="svd")
    torch.testing.assert_close(merged.delta("layers.0").double(), experts[1]["layers.0"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("option", [{"density": 0.5}, {"basis": "svd"}, {"iterations": 3}, {"connectivity": "local"}])
def test_options_that_mean_nothing_here_are_refused(case, option):
    base, adapters, _ = case
    (name,) = option
    with pytest.raises(samerge.OptionError, match=f"method 'linear' has no option '{name}'"):
        samerge.merge(base, adapters, method="linear", **option)


def test_scaling_multiplies(case):
    base, adapters, experts = case
    merged = samerge.merge(base, adapters, weights=WEIGHTS, method="cat", scaling=0.3)
    torch.testing.assert_close(
        merged.delta("layers.0").double(), 0.3 * dense(experts, "layers.0"), rtol=1e-5, atol=1e-5
    )


def test_weight_zero_leaves_an_adapter_out(case):
    base, adapters, experts = case
    merged = samerge.merge(base, adapters, weights=[0, 0, 1.0], method="cat")
    torch.testing.assert_close(merged.delta("layers.0").double(), experts[2]["layers.0"], rtol=1e-5, atol=1e-6)
    assert not merged.delta("layers.1").any()  # filled in: with a base every layer has what one has
    assert merged.report.warnings == ["weight 0 leaves these adapters out: e0, e1"]
