"""`elementwise` against the element-wise algorithm written out with dense tensors, autograd and a dense SVD."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from alike import same_merge
from safetensors.torch import load_file
from tiny import Beast, chain, chain_factors, write_adapter, write_base

import samerge
from samerge.graph import FlowGraph, Weight, build_graph
from samerge.weights import ModelSource


def dense_merge(network, base, taus, weights, density, iterations, agreement, only=None):
    """Masks and merge of the element-wise algorithm, in float64.

    Args:
        network: R as a function of the weights.
        base: weights by name.
        taus: for each expert, its dense updates by name.
        weights: one for each.
        density: the share of elements kept at the end.
        iterations: T.
        agreement: "paper" or "task".
        only: names that are pruned; those with a gradient by default.
    """
    base = {name: weight.double() for name, weight in base.items()}
    masks = [{name: torch.ones_like(tau, dtype=torch.bool) for name, tau in own.items()} for own in taus]
    names = sorted({name for own in taus for name in own})

    def merge():
        return {
            name: sum(
                w * own[name] * mask[name] for w, own, mask in zip(weights, taus, masks, strict=True) if name in own
            )
            for name in names
        }

    for step in range(1, iterations + 1):
        merged, after = merge(), [dict(own) for own in masks]
        for n, own in enumerate(taus):
            leaves = {name: (base[name] + own[name] * masks[n][name]).requires_grad_() for name in own}
            found = torch.autograd.grad(network({**base, **leaves}), list(leaves.values()), allow_unused=True)
            for name, G in zip(leaves, found, strict=True):
                if G is None or (only is not None and name not in only):
                    continue
                tau = own[name] * masks[n][name]
                score = G * merged[name] if agreement == "paper" else G.abs() * weights[n] * tau * merged[name]
                score = torch.where(masks[n][name], score, -torch.inf).flatten()
                count = max(1, round(score.numel() * density ** (step / iterations)))
                kept = torch.zeros_like(score, dtype=torch.bool)
                kept[score.sort(descending=True, stable=True).indices[:count]] = True
                after[n][name] = kept.view(tau.shape)
        masks = after
    return merge(), masks


def chain_graph(base) -> FlowGraph:
    names = sorted(base)
    return FlowGraph([Weight(f"s{i}", f"s{i + 1}", name) for i, name in enumerate(names)], ["s0"], [f"s{len(names)}"])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A chain of three layers, three adapters, the last without the middle layer: (folder, adapters, base, taus)."""
    folder = tmp_path_factory.mktemp("elementwise")
    base = chain([24, 22, 26, 20])
    adapters, taus = {}, []
    for n, (rank, alpha) in enumerate([(8, 16), (5, 5), (3, 2)]):
        factors = chain_factors(base, rank, seed=n)
        if n == 2:
            del factors["layers.1"]
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", factors, alpha=alpha)
        taus.append({f"{m}.weight": alpha / rank * B.double() @ A.double() for m, (A, B) in factors.items()})
    return write_base(folder / "base", base), adapters, base, taus


def merge(case, **options):
    folder, adapters, base, _ = case
    defaults = {"method": "elementwise", "connectivity": chain_graph(base), "scaling": 1.0, "svd_rank": 64}
    return samerge.merge(folder, adapters, **{**defaults, **options})


@pytest.mark.parametrize("agreement", ["paper", "task"])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, -0.7, 2.0]])
@pytest.mark.parametrize(("density", "iterations"), [(0.1, 10), (0.35, 3), (0.2, 1)])
def test_against_the_dense_algorithm(case, agreement, weights, density, iterations):
    _, _, base, taus = case
    network = oracles.chain_network(sorted(base))
    expected, masks = dense_merge(network, base, taus, weights, density, iterations, agreement)
    merged = merge(case, weights=weights, density=density, iterations=iterations, agreement=agreement)
    for name in expected:
        module = name.removesuffix(".weight")
        torch.testing.assert_close(merged.delta(module).double(), expected[name], rtol=1e-5, atol=1e-5)
        layer = merged.report.record.layers[module]
        for n, own in enumerate(taus):
            if name not in own:
                assert f"e{n}" not in layer.adapters
                continue
            share = layer.adapters[f"e{n}"]
            assert share.elements == (int(masks[n][name].sum()), own[name].numel())
            energy = float((own[name] * masks[n][name]).square().sum() / own[name].square().sum())
            assert share.energy_kept == pytest.approx(energy, rel=1e-4)
            assert share.norm == pytest.approx(float(own[name].norm()), rel=1e-5)


@pytest.mark.parametrize("rank", [1, 4, None])
def test_the_way_back_is_the_best_approximation_and_says_what_it_lost(case, rank):
    _, _, base, taus = case
    expected, _ = dense_merge(oracles.chain_network(sorted(base)), base, taus, [1.0] * 3, 0.1, 10, "paper")
    merged = merge(case, svd_rank=rank)
    rank = rank or 8  # by default the largest source rank
    lost = []
    for name, dense in expected.items():
        u, s, vh = torch.linalg.svd(dense, full_matrices=False)
        module = name.removesuffix(".weight")
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(merged.delta(module).double(), best, rtol=1e-5, atol=1e-5)
        lost.append(float(s[rank:].square().sum() / s.square().sum()))
        assert merged.report.record.layers[module].lost == pytest.approx(lost[-1], abs=1e-6)
    assert merged.settings["r"] == rank
    said = [w for w in merged.report.warnings if "truncation to the rank lost over 20%" in w]
    assert bool(said) == (max(lost) > 0.2)


def test_every_family_against_the_dense_algorithm(beast: Beast):
    """Through the family's graph, with stored orientations; what lies outside R is pruned by w tau T."""
    model = beast.model()
    source = ModelSource(model)
    network = oracles.graph_network(build_graph(source.config, source.shapes))
    base = {name: parameter.detach() for name, parameter in model.named_parameters()}
    taus = [{} for _ in beast.adapters]
    for n, name in enumerate(beast.adapters):
        alone = samerge.merge(model, {name: beast.adapters[name]}, method="cat")
        taus[n] = {f"{module}.weight": alone.delta(module).double() for module in alone.factors}
    merged = samerge.merge(
        model, beast.adapters, method="elementwise", density=0.2, iterations=4, scaling=1.0, svd_rank=64
    )
    for tau in taus:  # the exact method fills layers that nobody adapts with zeros
        for name in [name for name, value in tau.items() if not value.any()]:
            del tau[name]
    expected, _ = dense_merge(network, base, taus, [1.0] * 3, 0.2, 4, "paper")
    outside = {name for name in expected if merged.report.record.layers[name.removesuffix(".weight")].outside}
    assert outside == ({"bert.pooler.dense.weight"} if "bert" in str(beast.folder) else set())
    if outside:
        tau = taus[2]["bert.pooler.dense.weight"]
        kept = torch.zeros(tau.numel(), dtype=torch.bool)
        kept[tau.square().flatten().sort(descending=True).indices[: round(0.2 * tau.numel())]] = True
        expected["bert.pooler.dense.weight"] = tau * kept.view(tau.shape)
    different = sum(
        int(((merged.delta(name.removesuffix(".weight")).double() - delta).abs() > 1e-5).sum())
        for name, delta in expected.items()
    )
    assert different <= 2  # elements on the threshold, which float32 may see the other way round


def test_all_of_it_is_the_exact_sum(beast: Beast):
    ours = samerge.merge(beast.base, beast.adapters, method="elementwise", density=1.0, scaling=1.0, svd_rank=99)
    exact = samerge.merge(beast.base, beast.adapters, method="cat")
    assert sorted(ours.factors) == sorted(exact.factors)
    for module in exact.factors:
        torch.testing.assert_close(ours.delta(module), exact.delta(module), rtol=1e-5, atol=1e-6)
    assert all(row.elements[0] == row.elements[1] for row in ours.report.adapters.values())


def test_defaults(case):
    merged = merge(case, scaling=None, svd_rank=None)
    options = merged.report.record.options
    assert (options["scaling"], options["density"], options["agreement"]) == ("auto", 0.1, "paper")
    layer = merged.report.record.layers["layers.0"]
    mean = sum(share.norm for share in layer.adapters.values()) / 3
    assert layer.norm == pytest.approx(1.3 * mean, rel=1e-5)
    assert "10.0%" in str(merged.report._repr_html_())


def test_local_connectivity_needs_no_graph(case):
    _, _, base, taus = case
    expected, _ = dense_merge(oracles.local_network, base, taus, [1.0] * 3, 0.1, 10, "paper")
    merged = merge(case, connectivity="local")
    for name, dense in expected.items():
        torch.testing.assert_close(merged.delta(name[:-7]).double(), dense, rtol=1e-5, atol=1e-5)


def test_weight_zero_takes_no_part(case):
    folder, adapters, base, _ = case
    with_it = merge(case, weights=[1.0, 0.0, 0.5])
    two = {name: adapters[name] for name in ("e0", "e2")}
    without = merge((folder, two, base, None), weights=[1.0, 0.5])
    for module in ("layers.0", "layers.1", "layers.2"):
        torch.testing.assert_close(with_it.delta(module), without.delta(module))
    with pytest.warns(UserWarning, match="zero in every layer, .*: all weights are 0"):
        nobody = merge(case, weights=[0.0, 0.0, 0.0])
    assert not nobody.delta("layers.0").any()


def test_the_same_every_time_and_the_base_untouched(llama: Beast):
    model = llama.peft_model()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    same_merge(*(samerge.merge(model, list(llama.adapters), method="elementwise", iterations=2) for _ in range(2)))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_on_a_live_model_as_from_files(llama: Beast, tmp_path):
    model = llama.peft_model()
    merged = samerge.add_weighted_adapter(
        model, list(llama.adapters), [1.0, 0.5, 1.0], "merged", "elementwise", density=0.3, iterations=2
    )
    files = samerge.merge(
        llama.base, llama.adapters, weights=[1.0, 0.5, 1.0], method="elementwise", density=0.3, iterations=2
    )
    stored = load_file(files.save(tmp_path / "out") / "adapter_model.safetensors")
    for key, tensor in merged.tensors().items():
        torch.testing.assert_close(tensor, stored[key], rtol=1e-4, atol=1e-5)
    model.set_adapter("merged")
    assert torch.isfinite(llama.logits(model)).all()
    assert "elements" in (tmp_path / "out" / "README.md").read_text()


def test_options_of_components_are_refused(case):
    with pytest.raises(samerge.OptionError, match="method 'elementwise' has no option 'basis'"):
        merge(case, basis="native")


def test_an_agreement_that_is_not_known(case):
    with pytest.raises(samerge.OptionError, match="agreement='signed' is not known; choose one of paper, task"):
        merge(case, agreement="signed")


def test_a_broken_base_is_an_error(case, tmp_path):
    _, adapters, base, _ = case
    broken = {**base, "layers.1.weight": base["layers.1.weight"] * torch.nan}
    folder = write_base(tmp_path / "base", broken)
    with pytest.raises(samerge.BaseModelError, match=r"scoring adapter 'e0' on the base model .* log R = nan"):
        merge((folder, adapters, base, None))
