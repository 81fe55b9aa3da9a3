"""Laws that hold for any shapes, ranks and values, at scaling 1.0."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import oracles
import pytest
import torch
from alike import same_merge
from hypothesis import given
from hypothesis import strategies as st
from tiny import chain, chain_factors, write_adapter, write_base

import samerge
from samerge.graph import FlowGraph, Weight
from samerge.linalg.factors import LoraFactors
from samerge.saliency.connectivity import connectivity
from samerge.weights import ModelSource

WIDTHS = st.lists(st.integers(2, 12), min_size=2, max_size=5)
RANKS = st.lists(st.integers(1, 6), min_size=1, max_size=4)
SEEDS = st.integers(0, 10**6)


def chain_graph(base) -> FlowGraph:
    names = list(base)
    return FlowGraph([Weight(f"s{i}", f"s{i + 1}", name) for i, name in enumerate(names)], ["s0"], [f"s{len(names)}"])


def module_of(base) -> torch.nn.Module:
    """The chain as a live module, whose parameters are `layers.<i>.weight`."""
    root = torch.nn.Module()
    root.layers = torch.nn.ModuleList()
    for weight in base.values():
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        linear.weight.data = weight.clone()
        root.layers.append(linear)
    return root


def expert_of(base, rank: int, seed: int):
    table = chain_factors(base, rank, seed, torch.float64)
    return {f"{module}.weight": (A, B, 0.7) for module, (A, B) in table.items()}


def gammas(base, expert) -> tuple[dict[str, torch.Tensor], float]:
    factors = {name: LoraFactors(A, B, s) for name, (A, B, s) in expert.items()}
    found = connectivity(chain_graph(base), ModelSource(module_of(base)), [factors], dtype=torch.float64)
    return {name: one.values * math.exp(one.log) for name, one in found.gamma[0].items()}, found.log_connectivity[0]


@given(WIDTHS, st.integers(1, 5), SEEDS)
def test_connectivity_is_conserved(widths, rank, seed):
    """sum(W * dR/dW) = R at every layer: with the whole of W as the update of a zero base, sum_k gamma_k = R."""
    weights = {name: w.double() for name, w in chain(widths, seed).items()}
    zero = {name: torch.zeros_like(w) for name, w in weights.items()}
    whole = {name: (torch.eye(w.shape[1], dtype=torch.float64), w, 1.0) for name, w in weights.items()}
    gamma, log = gammas(zero, whole)
    for values in gamma.values():
        assert float(values.sum()) == pytest.approx(math.exp(log), rel=1e-9)


@given(WIDTHS, st.integers(1, 5), SEEDS)
def test_gamma_is_b_times_its_gradient(widths, rank, seed):
    """s gamma_k = sum_i (B * dR/dB)_ik, by autograd on B itself."""
    base = {name: w.double() for name, w in chain(widths, seed).items()}
    expert = expert_of(base, rank, seed + 1)
    leaves = {name: B.clone().requires_grad_() for name, (_, B, _) in expert.items()}
    weights = {name: base[name] + s * leaves[name] @ A for name, (A, _, s) in expert.items()}
    gradients = torch.autograd.grad(oracles.chain_network(list(base))(weights), list(leaves.values()))
    gamma, _ = gammas(base, expert)
    for (name, B), gradient in zip(leaves.items(), gradients, strict=True):
        torch.testing.assert_close(gamma[name], (B.detach() * gradient).sum(0), rtol=1e-9, atol=1e-9)


@given(WIDTHS, st.integers(1, 5), SEEDS, st.floats(0.01, 100))
def test_scaling_b_against_a_changes_nothing(widths, rank, seed, d):
    base = {name: w.double() for name, w in chain(widths, seed).items()}
    expert = expert_of(base, rank, seed + 1)
    scaled = {name: (A / d, B * d, s) for name, (A, B, s) in expert.items()}
    (mine, log), (other, other_log) = gammas(base, expert), gammas(base, scaled)
    assert log == pytest.approx(other_log, rel=1e-9)
    for name, values in mine.items():
        torch.testing.assert_close(values, other[name], rtol=1e-7, atol=1e-7 * float(values.abs().max()))


class Case:
    """A chain and adapters on disk, merged with the options given."""

    def __init__(self, widths, ranks, seed: int) -> None:
        self.base = chain(widths, seed)
        self.tables = [chain_factors(self.base, rank, seed + 1 + n) for n, rank in enumerate(ranks)]

    def merge(self, tables=None, order=None, **options):
        tables = self.tables if tables is None else tables
        with tempfile.TemporaryDirectory() as folder:
            adapters = {
                f"e{n}": write_adapter(
                    Path(folder) / f"e{n}", tables[n], alpha=2 * max(A.shape[0] for A, _ in tables[n].values())
                )
                for n in (order or range(len(tables)))
            }
            base = write_base(Path(folder) / "base", self.base)
            options.setdefault("connectivity", chain_graph(self.base))
            return samerge.merge(base, adapters, **({"method": "saliency", "scaling": 1.0} | options))

    def exact(self, module: str) -> torch.Tensor:
        return sum(2 * table[module][1].double() @ table[module][0].double() for table in self.tables)


def kept(merged) -> dict:
    return {
        module: {name: share.kept for name, share in layer.adapters.items()}
        for module, layer in merged.report.record.layers.items()
    }


def same_update(one, other, tolerance: float = 1e-4) -> None:
    assert list(one.factors) == list(other.factors)
    for module in one.factors:
        a, b = one.delta(module), other.delta(module)
        assert float((a - b).norm()) <= tolerance * max(float(a.norm()), 1e-6), module


@given(WIDTHS, RANKS, SEEDS)
def test_density_one_is_the_exact_sum(widths, ranks, seed):
    case = Case(widths, ranks, seed)
    for merged in (
        case.merge(density=1.0),
        case.merge(density=1.0, basis="native"),
        case.merge(method="cat", connectivity=None),
    ):
        for module in merged.factors:
            expected = case.exact(module)
            assert float((merged.delta(module) - expected).norm()) <= 1e-5 * float(expected.norm())


@given(WIDTHS, st.integers(1, 6), SEEDS, st.sampled_from([1.0, "auto"]))
def test_one_adapter_at_density_one_is_itself(widths, rank, seed, scaling):
    case = Case(widths, [rank], seed)
    merged = case.merge(density=1.0, scaling=scaling)
    for module in merged.factors:
        expected = case.exact(module)
        assert float((merged.delta(module) - expected).norm()) <= 1e-5 * float(expected.norm())


@given(WIDTHS, st.integers(2, 6), SEEDS, st.floats(0.1, 0.9))
def test_the_svd_basis_is_blind_to_the_gauge(widths, rank, seed, density):
    case = Case(widths, [rank, 3], seed)
    generator = torch.Generator().manual_seed(seed)
    turned = []
    for table in case.tables:
        other = {}
        for module, (A, B) in table.items():
            Q = torch.linalg.qr(torch.randn(len(A), len(A), generator=generator))[0] * torch.linspace(0.5, 2, len(A))
            other[module] = (torch.linalg.solve(Q, A), B @ Q)
        turned.append(other)
    one, other = case.merge(density=density), case.merge(turned, density=density)
    assert kept(one) == kept(other)
    same_update(one, other)


def test_the_native_basis_is_not_blind_to_the_gauge():
    """The law above can fail: the columns of B and rows of A as trained do depend on the gauge."""
    case = Case([10, 9, 8], [6], 0)
    Q = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    turned = [{module: (Q.T @ A, B @ Q) for module, (A, B) in case.tables[0].items()}]
    options = {"density": 0.3, "basis": "native"}
    one, other = case.merge(**options), case.merge(turned, **options)
    assert float((one.delta("layers.0") - other.delta("layers.0")).norm()) > 0.1


@given(WIDTHS, st.lists(st.integers(1, 6), min_size=2, max_size=4), SEEDS, st.floats(0.1, 1.0), st.randoms())
def test_the_order_of_the_adapters_does_not_matter(widths, ranks, seed, density, random):
    case = Case(widths, ranks, seed)
    order = list(range(len(ranks)))
    random.shuffle(order)
    one, other = case.merge(density=density), case.merge(order=order, density=density)
    assert kept(one) == kept(other)
    same_update(one, other)


@given(WIDTHS, RANKS, SEEDS, st.floats(0.1, 1.0))
def test_one_iteration_is_one_shot(widths, ranks, seed, density):
    """T = 1: the top components by the scores of the untouched state."""
    case = Case(widths, ranks, seed)
    merged = case.merge(density=density, iterations=1, basis="native")
    experts = [{f"{m}.weight": (A, B, 2.0) for m, (A, B) in table.items()} for table in case.tables]
    network = oracles.chain_network(list(case.base))
    for n, expert in enumerate(experts):
        gamma, _ = oracles.dense_gamma(network, case.base, expert)
        for module, layer in merged.report.record.layers.items():
            eta = oracles.dense_eta(expert[f"{module}.weight"], case.exact(module))
            saliency = (gamma[f"{module}.weight"] * eta).abs()
            count = max(1, round(len(saliency) * density))
            picked = layer.adapters[f"e{n}"].kept
            assert len(picked) == count
            assert float(saliency[picked].min()) >= float(saliency.sort(descending=True).values[count - 1]) * (1 - 1e-3)


@given(
    WIDTHS, RANKS, SEEDS, st.floats(0.1, 1.0), st.sampled_from(["svd", "native"]), st.sampled_from(["layer", "global"])
)
def test_two_runs_are_equal(widths, ranks, seed, density, basis, scope):
    case = Case(widths, ranks, seed)
    one, other = (case.merge(density=density, basis=basis, scope=scope, scaling="auto") for _ in range(2))
    same_merge(one, other)


@given(WIDTHS, RANKS, SEEDS)
def test_what_is_kept_and_its_energy_are_reported_truly(widths, ranks, seed):
    case = Case(widths, ranks, seed)
    merged = case.merge(density=0.5, basis="native")
    for module, layer in merged.report.record.layers.items():
        total = 0
        for n, table in enumerate(case.tables):
            share = layer.adapters[f"e{n}"]
            A, B = (tensor.double() for tensor in table[module])
            own = 2 * B[:, share.kept] @ A[share.kept]
            assert share.norm == pytest.approx(float((2 * B @ A).norm()), rel=1e-4)
            assert share.energy_kept == pytest.approx(float(own.norm() / (2 * B @ A).norm()) ** 2, rel=1e-3)
            total = total + own
        torch.testing.assert_close(merged.delta(module).double(), total, rtol=1e-4, atol=1e-5)
