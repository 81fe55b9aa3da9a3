"""`saliency` against a literal dense transcription of the paper, and its budgets, scopes and bases."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from tiny import Beast, chain, chain_factors, write_adapter, write_base

import samerge
from samerge.graph import FlowGraph, Weight


def chain_graph(base) -> FlowGraph:
    names = sorted(base)
    return FlowGraph([Weight(f"s{i}", f"s{i + 1}", name) for i, name in enumerate(names)], ["s0"], [f"s{len(names)}"])


def kept(merged, module: str) -> dict[str, list[int]]:
    return {name: share.kept for name, share in merged.report.record.layers[module].adapters.items()}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A chain of three layers and adapters of ranks 20, 12 and 7, as (folder, adapters, base, experts)."""
    folder = tmp_path_factory.mktemp("saliency")
    base = chain([24, 22, 26, 20])
    adapters, experts = {}, []
    for n, (rank, alpha) in enumerate([(20, 40), (12, 12), (7, 3)]):
        factors = chain_factors(base, rank, seed=n)
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", factors, alpha=alpha)
        experts.append({f"{m}.weight": (A, B, alpha / rank) for m, (A, B) in factors.items()})
    return write_base(folder / "base", base), adapters, base, experts


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, -0.7, 2.0]])
def test_the_papers_recipe_is_the_papers_algorithm(case, weights):
    folder, adapters, base, experts = case
    merged = samerge.merge(folder, adapters, weights=weights, recipe="paper", connectivity=chain_graph(base))
    expected, chosen = oracles.paper_merge(oracles.chain_network(sorted(base)), base, experts, weights)
    for module in ("layers.0", "layers.1", "layers.2"):
        assert kept(merged, module) == {f"e{n}": chosen[n][f"{module}.weight"] for n in range(3)}
        torch.testing.assert_close(merged.delta(module).double(), expected[f"{module}.weight"], rtol=1e-4, atol=1e-5)
    assert [len(one["layers.0.weight"]) for one in chosen] == [2, 1, 1]


def test_the_papers_recipe_on_a_transformer(bert: Beast):
    """Through the family's graph, without residual edges; the pooler lies outside R, unpruned and summed."""
    merged = samerge.merge(bert.base, bert.adapters, recipe="paper")
    source = bert.model()
    base = {name: parameter.detach() for name, parameter in source.named_parameters()}
    experts = []
    for model in (bert.peft_model(),):
        for name in bert.adapters:
            experts.append(
                {
                    f"{module}.weight": (
                        layer.lora_A[name].weight.detach(),
                        layer.lora_B[name].weight.detach(),
                        layer.scaling[name],
                    )
                    for module, layer in model.get_base_model().named_modules()
                    if name in getattr(layer, "lora_A", {})
                }
            )
    network = oracles.bert_network(2, residual=False)
    expected, chosen = oracles.paper_merge(network, base, experts, [1.0] * 3)
    for tensor, delta in expected.items():
        module = tensor.removesuffix(".weight")
        mine = {name: picked[tensor] for name, picked in zip(bert.adapters, chosen, strict=True) if tensor in picked}
        assert kept(merged, module) == mine, module
        torch.testing.assert_close(merged.delta(module).double(), delta, rtol=1e-4, atol=1e-6)
    assert merged.report.record.layers["bert.pooler.dense"].outside
    assert len(kept(merged, "bert.pooler.dense")["talk"]) == 6


@pytest.mark.parametrize("residual", [True, False])
def test_log_connectivity_is_reported(bert: Beast, residual):
    """Of every adapter as it is at the start of the last iteration."""
    merged = samerge.merge(bert.base, bert.adapters, method="saliency", density=0.5, iterations=1, residual=residual)
    for name in bert.adapters:
        model = bert.peft_model()
        model.set_adapter(name)
        model.merge_adapter()
        weights = {
            key.replace(".base_layer", ""): p.detach().double()
            for key, p in model.get_base_model().named_parameters()
            if "lora_" not in key
        }
        R = oracles.bert_network(2, residual)(weights)
        assert merged.report.record.log_connectivity[name] == pytest.approx(math.log(R), rel=1e-6)


@pytest.mark.parametrize("iterations", [1, 3])
def test_other_densities_and_iterations_too(case, iterations):
    folder, adapters, base, experts = case
    options = {"density": 0.4, "iterations": iterations, "connectivity": chain_graph(base)}
    merged = samerge.merge(folder, adapters, recipe="paper", **options)
    network = oracles.chain_network(sorted(base))
    _, chosen = oracles.paper_merge(network, base, experts, [1.0] * 3, density=0.4, iterations=iterations)
    for module in ("layers.0", "layers.1", "layers.2"):
        assert kept(merged, module) == {f"e{n}": chosen[n][f"{module}.weight"] for n in range(3)}


def components(merged, module: str) -> int:
    factors = merged.factors[module]
    return int(((factors.A != 0).any(1) & (factors.B != 0).any(0)).sum())


@pytest.mark.parametrize(
    ("count", "rank", "own"), [(2, 4, 4), (3, 4, 4), (5, 8, 3), (20, 16, 4), (50, 16, 3), (50, 3, 2)]
)
@pytest.mark.parametrize("iterations", [1, 4])
def test_every_layer_has_exactly_rank_components(tmp_path, count, rank, own, iterations):
    base = chain([12, 10, 11])
    adapters = {f"e{n:02}": write_adapter(tmp_path / f"e{n}", chain_factors(base, own, n)) for n in range(count)}
    folder = write_base(tmp_path / "base", base)
    merged = samerge.merge(
        folder,
        adapters,
        method="saliency",
        rank=rank,
        iterations=iterations,
        connectivity=chain_graph(base),
        progress=False,
    )
    assert merged.settings["r"] == rank
    for module in ("layers.0", "layers.1"):
        assert components(merged, module) == rank
        counts = [len(picked) for picked in kept(merged, module).values()]
        assert sum(counts) == rank
        if count <= rank:
            assert max(counts) - min(counts) <= 1
    if count > rank:
        assert any(not picked for picked in kept(merged, "layers.0").values())


def test_the_rank_by_default_is_the_largest_of_any_source(case):
    folder, adapters, base, _ = case
    merged = samerge.merge(folder, adapters, method="saliency", connectivity=chain_graph(base))
    assert merged.settings["r"] == 20
    assert [len(k) for k in kept(merged, "layers.0").values()] == [10, 6, 4]  # of 39: 10.3, 6.2, 3.6


def test_pooled_components_are_the_best_of_all(tmp_path):
    """A strong expert takes the places of weak ones once there are more experts than places."""
    base = chain([6, 6])
    adapters = {}
    for n in range(4):
        ((module, (A, B)),) = chain_factors(base, 3, n).items()
        adapters[f"e{n}"] = write_adapter(tmp_path / f"e{n}", {module: (A, B * (100.0 if n == 2 else 0.01))})
    folder = write_base(tmp_path / "base", base)
    merged = samerge.merge(folder, adapters, method="saliency", rank=2, iterations=1, connectivity=chain_graph(base))
    assert {name: len(k) for name, k in kept(merged, "layers.0").items()} == {"e0": 0, "e1": 0, "e2": 2, "e3": 0}


def test_global_scope_spends_one_budget_over_all_layers(case):
    folder, adapters, base, _ = case
    graph = chain_graph(base)
    options = {"method": "saliency", "density": 0.25, "scaling": 1.0, "connectivity": graph}
    by_layer = samerge.merge(folder, adapters, scope="layer", **options)
    overall = samerge.merge(folder, adapters, scope="global", **options)
    counts = {
        name: [len(kept(overall, f"layers.{i}")[name]) for i in range(3)] for name in adapters
    }  # e0: 60 components over three layers, e1: 36, e2: 21
    assert {name: sum(c) for name, c in counts.items()} == {"e0": 15, "e1": 9, "e2": 5}
    assert any(len(set(c)) > 1 for c in counts.values())
    assert [len(kept(by_layer, f"layers.{i}")["e0"]) for i in range(3)] == [5, 5, 5]


@pytest.mark.parametrize("scales", [(1.0, 1.0), (30.0, 1.0), (1.0, 30.0)])
def test_global_scope_puts_the_scales_back(tmp_path, scales):
    """gamma of each layer comes with the scales of the flows on both sides of it."""
    base = {name: w * scale for (name, w), scale in zip(chain([9, 8, 7]).items(), scales, strict=True)}
    factors = [chain_factors(base, 8, seed) for seed in range(2)]
    adapters = {f"e{n}": write_adapter(tmp_path / f"e{n}", table) for n, table in enumerate(factors)}
    options = {"method": "saliency", "basis": "native", "scope": "global", "density": 0.5, "iterations": 1}
    merged = samerge.merge(write_base(tmp_path / "base", base), adapters, connectivity=chain_graph(base), **options)
    experts = [{f"{m}.weight": (A, B, 1.0) for m, (A, B) in table.items()} for table in factors]
    for n, table in enumerate(relative_saliency(base, experts)):
        scores = [(float(value), name, k) for name, values in table.items() for k, value in enumerate(values)]
        best = sorted(scores, reverse=True)[:8]
        for module in ("layers.0", "layers.1"):
            assert kept(merged, module)[f"e{n}"] == sorted(k for _, name, k in best if name == f"{module}.weight")


def relative_saliency(base, experts) -> list[dict[str, torch.Tensor]]:
    """|gamma eta| / R of every component of every expert, densely."""
    found = []
    for expert in experts:
        gamma, R = oracles.dense_gamma(oracles.chain_network(sorted(base)), base, expert)
        total = {name: sum(e[name][1].double() @ e[name][0].double() for e in experts) for name in expert}
        eta = {name: oracles.dense_eta(own, total[name]) for name, own in expert.items()}
        found.append({name: (gamma[name] * eta[name] / R).abs() for name in expert})
    return found


def test_experts_are_pooled_in_the_last_step_alone(tmp_path):
    """More experts than places: each shrinks by itself until the last step ranks all of them together."""
    base = chain([12, 11, 10])
    tables = [chain_factors(base, 8, seed) for seed in range(5)]
    tables = [{m: (A, B * (1 + n)) for m, (A, B) in table.items()} for n, table in enumerate(tables)]
    adapters = {f"e{n}": write_adapter(tmp_path / f"e{n}", table) for n, table in enumerate(tables)}
    folder = write_base(tmp_path / "base", base)
    options = {"method": "saliency", "rank": 4, "basis": "native", "iterations": 3, "connectivity": chain_graph(base)}
    merged = samerge.merge(folder, adapters, **options)
    left = [{f"{m}.weight": list(range(8)) for m in table} for table in tables]
    for step in (1, 2, 3):
        experts = [
            {f"{m}.weight": (A[keep], B[:, keep], 1.0) for m, (A, B) in table.items() for keep in [own[f"{m}.weight"]]}
            for table, own in zip(tables, left, strict=True)
        ]
        scores = relative_saliency(base, experts)
        for name in base:
            if step < 3:
                best = [sorted(range(len(s[name])), key=lambda k, s=s: -s[name][k]) for s in scores]
                chosen = [(n, k) for n, ks in enumerate(best) for k in ks[: max(1, round(8 * 0.1 ** (step / 3)))]]
            else:
                pool = [(-float(v), n, k) for n, s in enumerate(scores) for k, v in enumerate(s[name])]
                chosen = [(n, k) for _, n, k in sorted(pool)[:4]]
            for n in range(5):
                left[n][name] = sorted(left[n][name][k] for m, k in chosen if m == n)
    for module in ("layers.0", "layers.1"):
        assert kept(merged, module) == {f"e{n}": left[n][f"{module}.weight"] for n in range(5)}


def test_signed_agreement_keeps_what_agrees(tmp_path):
    """Two experts agree on the first direction and oppose each other on a stronger second one."""
    base = {"w.weight": torch.ones(4, 4)}
    eye = torch.eye(4)
    A = eye[:2]
    one = write_adapter(tmp_path / "one", {"w": (A, torch.stack([eye[0], 2.0 * eye[1]], dim=1))})
    two = write_adapter(tmp_path / "two", {"w": (A, torch.stack([eye[0], -5.0 * eye[1]], dim=1))})
    folder = write_base(tmp_path / "base", base)
    options = {"density": 0.5, "iterations": 1, "basis": "native", "connectivity": "local", "scaling": 1.0}
    options |= {"method": "saliency"}
    absolute = samerge.merge(folder, {"one": one, "two": two}, **options)
    signed = samerge.merge(folder, {"one": one, "two": two}, agreement="signed", **options)
    # one: eta = (2, -6); two: eta = (2, 15)
    assert kept(absolute, "w") == {"one": [1], "two": [1]}
    assert kept(signed, "w") == {"one": [0], "two": [1]}


def test_negative_weights_take_part_in_the_agreement(tmp_path):
    """Taken away, an expert keeps what agrees with its being taken away."""
    base = {"w.weight": torch.ones(4, 4)}
    eye = torch.eye(4)
    A = eye[:2]
    one = write_adapter(tmp_path / "one", {"w": (A, torch.stack([eye[0], 2.0 * eye[1]], dim=1))})
    two = write_adapter(tmp_path / "two", {"w": (A, torch.stack([eye[0], -5.0 * eye[1]], dim=1))})
    folder = write_base(tmp_path / "base", base)
    merged = samerge.merge(
        folder,
        {"one": one, "two": two},
        method="saliency",
        weights={"one": 1.0, "two": -1.0},
        density=0.5,
        iterations=1,
        basis="native",
        connectivity="local",
        agreement="signed",
        scaling=1.0,
    )
    assert kept(merged, "w") == {"one": [1], "two": [1]}
    torch.testing.assert_close(merged.delta("w"), torch.diag(torch.tensor([0.0, 7.0, 0.0, 0.0])))
