"""The criteria of a selection against dense oracles, and that those without gamma need no base."""

from __future__ import annotations

import oracles
import pytest
import torch
from tiny import chain, chain_factors, write_adapter, write_base

import samerge
from samerge.graph import FlowGraph, Weight
from samerge.methods.criteria import drawn

WEIGHTS = [1.0, -0.5, 2.0]
RANKS = (8, 5, 6)
MODULES = ("layers.0", "layers.1")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(base folder, adapters, dense base, experts, graph)."""
    folder = tmp_path_factory.mktemp("criteria")
    base = chain([12, 11, 10])
    adapters, experts = {}, []
    for n, rank in enumerate(RANKS):
        table = {m: (A, B * torch.linspace(0.2, 2, rank)) for m, (A, B) in chain_factors(base, rank, seed=n).items()}
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", table)
        experts.append({f"{m}.weight": (A, B, 1.0) for m, (A, B) in table.items()})
    names = sorted(base)
    graph = FlowGraph([Weight(f"s{i}", f"s{i + 1}", name) for i, name in enumerate(names)], ["s0"], ["s2"])
    return write_base(folder / "base", base), adapters, base, experts, graph


def kept(merged, module: str, n: int) -> list[int]:
    return merged.report.record["layers"][module]["experts"][f"e{n}"]["kept"]


def dense_scores(selection: str, base, experts) -> list[dict[str, torch.Tensor]]:
    """Every expert's scores by tensor name, from dense matrices."""
    total = {
        name: sum(w * (e[name][1].double() @ e[name][0].double()) for w, e in zip(WEIGHTS, experts, strict=True))
        for name in base
    }
    found = []
    for n, (expert, weight) in enumerate(zip(experts, WEIGHTS, strict=True)):
        gamma, R = oracles.dense_gamma(oracles.chain_network(sorted(base)), base, expert)
        own = {}
        for name, (A, B, _) in expert.items():
            eta = oracles.dense_eta(expert[name], total[name])
            size = torch.stack([torch.outer(B[:, k], A[k]).double().norm() for k in range(len(A))])
            own[name] = {
                "saliency": (gamma[name] / R * eta).abs(),
                "sensitivity": (gamma[name] / R).abs(),
                "agreement": eta.abs(),
                "norm": size,
                "random": drawn("random", f"e{n}", name.removesuffix(".weight"), len(A)) / abs(weight),
            }[selection] * abs(weight)
        found.append(own)
    return found


def options_of(selection: str, graph) -> dict:
    reads = selection in ("saliency", "sensitivity")
    return {"weights": WEIGHTS, "selection": selection, "basis": "native"} | ({"connectivity": graph} if reads else {})


CRITERIA = ["saliency", "sensitivity", "agreement", "norm", "random"]


@pytest.mark.parametrize("selection", CRITERIA)
@pytest.mark.parametrize("density", [0.3, 0.6])
def test_what_is_kept_is_what_scores_highest(case, selection, density):
    folder, adapters, base, experts, graph = case
    merged = samerge.merge(
        folder if selection in ("saliency", "sensitivity") else None,
        adapters,
        density=density,
        iterations=1,
        **options_of(selection, graph),
    )
    for n, own in enumerate(dense_scores(selection, base, experts)):
        for module in MODULES:
            scores = own[f"{module}.weight"]
            best = scores.sort(descending=True, stable=True).indices[: max(1, round(density * RANKS[n]))]
            assert kept(merged, module, n) == sorted(best.tolist()), (selection, n, module)


@pytest.mark.parametrize("selection", CRITERIA)
def test_a_pool_of_all_experts_in_the_last_step(case, selection):
    """Fewer places than experts: ranked together, with their weights."""
    folder, adapters, base, experts, graph = case
    merged = samerge.merge(folder, adapters, rank=2, iterations=1, **options_of(selection, graph))
    scores = dense_scores(selection, base, experts)
    for module in MODULES:
        pool = [(-float(v), n, k) for n, own in enumerate(scores) for k, v in enumerate(own[f"{module}.weight"])]
        expected = sorted((n, k) for _, n, k in sorted(pool)[:2])
        assert [(n, k) for n in range(3) for k in kept(merged, module, n)] == expected


@pytest.mark.parametrize("selection", CRITERIA)
def test_one_budget_over_all_layers(case, selection):
    """Without a graph every layer is ranked with the others."""
    folder, adapters, base, experts, graph = case
    options = options_of(selection, graph)
    merged = samerge.merge(folder, adapters, density=0.4, scope="global", iterations=1, **options)
    for n, own in enumerate(dense_scores(selection, base, experts)):
        pool = sorted(((-float(v), name, k) for name, values in own.items() for k, v in enumerate(values)))
        best = pool[: round(0.4 * 2 * RANKS[n])]
        for module in MODULES:
            assert kept(merged, module, n) == sorted(k for _, name, k in best if name == f"{module}.weight")


def test_the_agreement_is_taken_anew_in_every_iteration(case):
    _, adapters, base, experts, _ = case
    merged = samerge.merge(
        None, adapters, weights=WEIGHTS, selection="agreement", basis="native", density=0.3, iterations=3
    )
    left = [{name: list(range(rank)) for name in base} for rank in RANKS]
    for step in (1, 2, 3):
        now = [
            {name: (A[own[name]], B[:, own[name]], s) for name, (A, B, s) in expert.items()}
            for expert, own in zip(experts, left, strict=True)
        ]
        scores = dense_scores("agreement", base, now)
        for n, rank in enumerate(RANKS):
            for name in base:
                count = max(1, round(rank * 0.3 ** (step / 3)))
                best = sorted(scores[n][name].sort(descending=True, stable=True).indices[:count].tolist())
                left[n][name] = [left[n][name][k] for k in best]
    for n in range(3):
        assert [kept(merged, module, n) for module in MODULES] == [left[n][f"{module}.weight"] for module in MODULES]


def test_signed_agreement_alone(case):
    _, adapters, _base, experts, _ = case
    options = {"weights": WEIGHTS, "selection": "agreement", "basis": "native", "density": 0.3, "iterations": 1}
    merged = samerge.merge(None, adapters, agreement="signed", **options)
    for n, (expert, weight) in enumerate(zip(experts, WEIGHTS, strict=True)):
        for module in MODULES:
            name = f"{module}.weight"
            total = sum(w * (e[name][1].double() @ e[name][0].double()) for w, e in zip(WEIGHTS, experts, strict=True))
            scores = weight * oracles.dense_eta(expert[name], total)
            best = scores.sort(descending=True).indices[: round(0.3 * RANKS[n])]
            assert kept(merged, module, n) == sorted(best.tolist())


def test_in_the_svd_basis_the_norm_is_the_spectrum(case):
    _, adapters, _, _, _ = case
    merged = samerge.merge(None, adapters, selection="norm", density=0.5)
    assert [kept(merged, "layers.0", n) for n in range(3)] == [[0, 1, 2, 3], [0, 1], [0, 1, 2]]


def test_chance_depends_on_the_seed_and_the_names_alone(case):
    _, adapters, _, _, _ = case
    before = torch.get_rng_state()

    def picked(selection: str, order=("e0", "e1", "e2")) -> list:
        merged = samerge.merge(None, {name: adapters[name] for name in order}, selection=selection, density=0.5)
        return [kept(merged, module, n) for module in MODULES for n in range(3)]

    assert picked("random") == picked("random:0") == picked("random", ("e2", "e0", "e1"))
    steps = [samerge.merge(None, adapters, selection="random", density=0.5, iterations=t) for t in (1, 7)]
    assert [[kept(m, module, n) for module in MODULES for n in range(3)] for m in steps] == [picked("random")] * 2
    assert picked("random:1") != picked("random:0")
    assert picked("random")[0] != picked("random")[3]  # another layer, other components
    assert torch.equal(before, torch.get_rng_state())


def test_outside_the_graph_the_sensitivity_is_the_norm(bert):
    """The pooler lies outside R."""
    merged = samerge.merge(bert.base, {"talk": bert.adapters["talk"]}, selection="sensitivity", density=0.5)
    layer = merged.report.record["layers"]["bert.pooler.dense"]
    assert layer["outside"]
    assert layer["experts"]["talk"]["kept"] == [0, 1, 2]


def test_a_base_is_asked_for_where_it_is_read(case):
    _, adapters, _, _, _ = case
    for selection in ("saliency", "sensitivity"):
        with pytest.raises(samerge.OptionError, match="this method reads the base model; give base="):
            samerge.merge(None, adapters, selection=selection, aggregation="tsv")
