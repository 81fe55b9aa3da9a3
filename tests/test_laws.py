"""Laws that hold for any shapes, ranks and values, each with the methods that it binds.

A law that does not bind a method is shown to fail for it, where that says something about the method.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import oracles
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from methods.dense_chain import dense_chain
from tiny import chain, chain_factors, write_adapter, write_base
from torch import Tensor

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

    def merge(self, method: str, tables=None, order=None, **options) -> samerge.MergedAdapter:
        tables = self.tables if tables is None else tables
        own = METHODS[method]
        if method in READS_BASE:
            options.setdefault("connectivity", chain_graph(self.base))
        with tempfile.TemporaryDirectory() as folder:
            adapters = {
                f"e{n}": write_adapter(
                    Path(folder) / f"e{n}", tables[n], alpha=2 * max(A.shape[0] for A, _ in tables[n].values())
                )
                for n in (order or range(len(tables)))
            }
            base = write_base(Path(folder) / "base", self.base)
            return samerge.merge(base, adapters, method=method, progress=False, **(own | options))

    def own(self, n: int, module: str) -> Tensor:
        """The dense update of an adapter at a layer."""
        A, B = self.tables[n][module]
        return 2 * B.double() @ A.double()


#: Methods and the options under which the laws bind them.
METHODS: dict[str, dict] = {
    "saliency": {},
    "even": {},
    "linear": {},
    "svd": {},
    "tsv": {},
    "paper": {"density": 1.0},
    "elementwise": {"density": 1.0, "scaling": 1.0, "rank": 24},
    "iso-c": {},
    "iso-cts": {},
    "dc-merge": {"density": 1.0},
    "star": {},
    "wudi": {},
    "svc": {},
    "ace": {},
    "pico": {},
    "consensus": {},
    "localize-and-stitch": {},
    "doge": {"steps": 5},
    "knots-ties": {},
    "core-ties": {},
    "ties": {},
    "magnitude-prune": {},
    "pcb": {},
    "lora-lego": {},
    "robustmerge": {},
}
READS_BASE = {"saliency", "paper", "elementwise"}
BOUND = ["saliency", "even", "linear", "svd", "tsv", "paper"]
#: Lives on singular values or on elements, and so on no gauge.
BLIND_TO_GAUGE = [
    *BOUND,
    "elementwise",
    "iso-c",
    "iso-cts",
    "dc-merge",
    "star",
    "wudi",
    "svc",
    "ace",
    "knots-ties",
    "core-ties",
    "magnitude-prune",
]
BLIND_TO_ORDER = [
    *BLIND_TO_GAUGE,
    "ties",
    "pcb",
    "consensus",
    "localize-and-stitch",
    "pico",
    "lora-lego",
    "robustmerge",
]
IDENTITY = [*BOUND, "elementwise", "wudi", "svc", "pico", "consensus"]
SCALES = [
    *BOUND,
    "elementwise",
    "iso-c",
    "iso-cts",
    "dc-merge",
    "star",
    "wudi",
    "svc",
    "ace",
    "pico",
    "consensus",
    "localize-and-stitch",
    "magnitude-prune",
]

#: Layers as wide as their adapters need: full column rank of the stacks, no component on the edge of existence.
WIDE = st.lists(st.integers(12, 24), min_size=2, max_size=4)
SEVERAL = st.lists(st.integers(1, 4), min_size=2, max_size=3)


def kept(merged) -> dict:
    return {
        module: {name: list(share.kept) for name, share in layer.adapters.items()}
        for module, layer in merged.report.record.layers.items()
    }


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-3) -> None:
    size = max(float(expected.norm()), 1e-6)
    assert float((found.double() - expected.double()).norm()) <= tolerance * size


def same_update(one, other, tolerance: float = 1e-3, factor: float = 1.0) -> None:
    assert list(one.factors) == list(other.factors)
    for module in one.factors:
        close(other.delta(module), factor * one.delta(module), tolerance)


def clear_choice(case: Case, method: str, weights, **options) -> bool:
    """Whether what a layer keeps is no matter of rounding, by the dense definition."""
    if method not in ("saliency", "even"):
        return True
    network = oracles.chain_network(list(case.base)) if method == "saliency" else None
    experts = [{f"{m}.weight": (A, B, 2.0) for m, (A, B) in table.items()} for table in case.tables]
    return all(layer.gap > 1e-3 for layer in dense_chain(network, case.base, experts, weights, **options).values())


def turned(tables, seed: int) -> list[dict]:
    """The same updates by other factors."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for table in tables:
        other = {}
        for module, (A, B) in table.items():
            Q = torch.linalg.qr(torch.randn(len(A), len(A), generator=generator, dtype=torch.float64))[0]
            Q = Q * torch.linspace(0.5, 2, len(A), dtype=torch.float64)
            other[module] = (torch.linalg.solve(Q, A.double()).float(), (B.double() @ Q).float())
        found.append(other)
    return found


@pytest.mark.parametrize("method", BLIND_TO_GAUGE)
@settings(max_examples=8)
@given(WIDE, SEVERAL, SEEDS)
def test_blind_to_the_gauge(method, widths, ranks, seed):
    """(A, B) and (Q^-1 A, B Q) are one adapter."""
    case = Case(widths, ranks, seed)
    assume(clear_choice(case, method, [1.0] * len(ranks)))
    same_update(case.merge(method), case.merge(method, turned(case.tables, seed)))


@given(WIDE, SEVERAL, SEEDS, st.floats(0.1, 0.9))
def test_the_papers_svd_basis_is_blind_to_the_gauge(widths, ranks, seed, density):
    case = Case(widths, ranks, seed)
    options = {"density": density, "basis": "svd"}
    one, other = case.merge("paper", **options), case.merge("paper", turned(case.tables, seed), **options)
    assert kept(one) == kept(other)
    same_update(one, other)


def test_the_papers_native_basis_is_not():
    """The law can fail: the columns of B and rows of A as trained do depend on the gauge."""
    case = Case([10, 9, 8], [6, 5], 0)
    one, other = case.merge("paper", density=0.3), case.merge("paper", turned(case.tables, 0), density=0.3)
    assert float((one.delta("layers.0") - other.delta("layers.0")).norm()) > 0.1


@pytest.mark.parametrize("method", BLIND_TO_ORDER)
@settings(max_examples=8)
@given(WIDE, SEVERAL, SEEDS, st.randoms())
def test_blind_to_the_order_of_the_adapters(method, widths, ranks, seed, random):
    case = Case(widths, ranks, seed)
    assume(clear_choice(case, method, [1.0] * len(ranks)))
    order = list(range(len(ranks)))
    random.shuffle(order)
    weights = {f"e{n}": 1.0 for n in order}
    one, other = case.merge(method), case.merge(method, order=order, weights=weights)
    same_update(one, other)


@pytest.mark.parametrize("method", IDENTITY)
@settings(max_examples=8)
@given(WIDTHS, st.integers(1, 6), SEEDS)
def test_one_adapter_is_the_identity(method, widths, rank, seed):
    case = Case(widths, [rank], seed)
    for scaling in (1.0, "auto"):
        merged = case.merge(method, scaling=scaling)
        for module in merged.factors:
            close(merged.delta(module), case.own(0, module))


@pytest.mark.parametrize("method", IDENTITY)
@settings(max_examples=8)
@given(WIDE, st.integers(2, 4), SEEDS, st.floats(0.2, 3), st.booleans())
def test_a_layer_that_one_adapter_alone_has_is_its_own_update_times_its_weight(
    method, widths, rank, seed, weight, negative
):
    weight = -weight if negative else weight
    case = Case(widths, [rank, 4], seed)
    del case.tables[1]["layers.0"]
    case.tables[1] |= {} if case.tables[1] else chain_factors(case.base, 4, seed)
    assume("layers.0" not in case.tables[1])
    options = [{}]
    if method in ("saliency", "even"):
        options.append({"density": 0.2})
    for own in options:
        merged = case.merge(method, weights=[weight, 0.7], **own)
        close(merged.delta("layers.0"), weight * case.own(0, "layers.0"))


@pytest.mark.parametrize("method", SCALES)
@settings(max_examples=8)
@given(WIDE, SEVERAL, SEEDS, st.sampled_from([-2.0, -0.25, 0.1, 3.0]))
def test_c_times_the_weights_is_c_times_the_merge(method, widths, ranks, seed, factor):
    case = Case(widths, ranks, seed)
    weights = [1.0, 0.5, -0.3][: len(ranks)]
    assume(clear_choice(case, method, weights))
    scaled = [factor * weight for weight in weights]
    one, other = case.merge(method, weights=weights), case.merge(method, weights=scaled)
    same_update(one, other, factor=factor)


@pytest.mark.parametrize("method", ["linear", "svd", "saliency", "even"])
@settings(max_examples=8)
@given(WIDE, SEVERAL, SEEDS, st.sampled_from([0.1, 3.0]))
def test_so_it_is_with_the_norm_rule(method, widths, ranks, seed, factor):
    case = Case(widths, ranks, seed)
    weights = [1.0, 0.5, -0.3][: len(ranks)]
    assume(clear_choice(case, method, weights))
    scaled = [factor * weight for weight in weights]
    one = case.merge(method, weights=weights, scaling="auto")
    same_update(one, case.merge(method, weights=scaled, scaling="auto"), factor=factor)


@pytest.mark.parametrize("method", sorted(METHODS))
@settings(max_examples=8)
@given(WIDE, SEVERAL, SEEDS)
def test_weight_zero_is_as_if_the_adapter_were_not_there(method, widths, ranks, seed):
    """Also for the rank of the result, and in a layer that it alone has."""
    case = Case(widths, [*ranks, 6], seed)
    for table in case.tables[:-1]:
        table.pop(f"layers.{len(widths) - 1}", None)
    case.tables[-1]["layers.0"] = tuple(100 * tensor for tensor in case.tables[-1]["layers.0"])
    weights = [1.0, 0.5, -0.3][: len(ranks)]
    one, other = (
        case.merge(method, weights=[*weights, 0.0]),
        case.merge(method, case.tables[:-1], weights=weights),
    )
    same_update(one, other, 1e-6)
    assert one.settings["r"] == other.settings["r"]
    assert one.settings["target_modules"] == other.settings["target_modules"]


@pytest.mark.parametrize(
    ("method", "options"),
    [("linear", {}), ("paper", {}), ("paper", {"basis": "svd"}), ("elementwise", {}), ("svd", {"rank": 24})],
)
@given(WIDTHS, RANKS, SEEDS)
def test_the_exact_sum(method, options, widths, ranks, seed):
    case = Case(widths, ranks, seed)
    weights = [1.0, 0.5, -0.3, 2.0][: len(ranks)]
    merged = case.merge(method, weights=weights, **options)
    for module in merged.factors:
        expected = sum(w * case.own(n, module) for n, w in enumerate(weights))
        sizes = sum(abs(w) * float(case.own(n, module).norm()) for n, w in enumerate(weights))
        assert float((merged.delta(module) - expected).norm()) <= 1e-5 * sizes


@pytest.mark.parametrize("method", ["saliency", "even"])
@settings(max_examples=8)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), SEEDS)
def test_orthogonal_adapters_whole(method, ranks, seed):
    """Row and column spaces orthogonal, room for all: level * sum_n w_n U_n V_n^T, with its level."""
    total = sum(ranks)
    case = Case([total + 3, total + 1], ranks, seed)
    generator = torch.Generator().manual_seed(seed)
    lefts, rights = (
        torch.linalg.qr(torch.randn(width, total, generator=generator, dtype=torch.float64))[0].split(ranks, dim=1)
        for width in (total + 1, total + 3)
    )
    weights = [1.0, 0.5, -0.3, 2.0][: len(ranks)]
    case.tables, spectra = [], []
    for left, right in zip(lefts, rights, strict=True):
        values = 0.5 + torch.arange(left.shape[1], 0, -1, dtype=torch.float64) * (1 + len(case.tables))
        case.tables.append({"layers.0": (right.T.float().contiguous(), (left * values / 2).float())})
        spectra.append(values)
    mean = sum(float(values.norm()) for values in spectra) / len(spectra)
    factors = [min(10.0, mean / float(values.norm())) for values in spectra]
    squares = [float((f * values).square().sum()) for f, values in zip(factors, spectra, strict=True)]
    loud = [w * w * square for w, square in zip(weights, squares, strict=True)]
    share = min(1.0, sum(loud) ** 2 / sum(x * x for x in loud) - 1)
    several = 1.7**2 * sum(squares) / len(ranks) / (total * total / len(ranks)) ** 0.5
    level = ((1 - share) * sum(squares) / total + share * several) ** 0.5
    for own in ({"rank": total}, {"rank": total + 5}, {"density": 1.0}):
        merged = case.merge(method, weights=weights, **own)
        expected = level * sum(w * U @ V.T for w, U, V in zip(weights, lefts, rights, strict=True))
        close(merged.delta("layers.0"), expected)


@pytest.mark.parametrize("method", BOUND)
@settings(max_examples=8)
@given(WIDTHS, SEVERAL, SEEDS)
def test_cosines_are_cosines(method, widths, ranks, seed):
    case = Case(widths, ranks, seed)
    merged = case.merge(method, weights=[1.0, -0.5, 2.0][: len(ranks)])
    layers = merged.report.record.layers.values()
    found = [one.cosine for layer in layers for one in layer.adapters.values()]
    assert found
    assert all(cosine is None or abs(cosine) <= 1 for cosine in found)


@pytest.mark.parametrize("method", ["saliency", "even"])
@settings(max_examples=8)
@given(st.integers(18, 24), SEEDS, st.sampled_from([3, 6, 9]))
def test_merging_merges(method, width, seed, rank):
    """An adapter whose singular values are all equal, as a merged one's are: what is kept is no chance of the SVD."""
    case = Case([width, width + 2, width], [5, 4, 4], seed)
    first = case.merge(method, rank=5)
    tables = [{m: (f.A.float() / 2, f.B.float()) for m, f in first.factors.items()}]
    tables += [chain_factors(case.base, 4, seed + 77), chain_factors(case.base, 3, seed + 78)]
    case.tables = tables
    for module in first.factors:
        values = torch.linalg.svdvals(case.own(0, module))[:5]
        assert float(values[4] / values[0]) == pytest.approx(1.0, rel=1e-4)
    assume(clear_choice(case, method, [1.0, 0.7, 0.4], rank=rank))
    options = {"rank": rank, "weights": [1.0, 0.7, 0.4]}
    same_update(case.merge(method, **options), case.merge(method, turned(tables, seed), **options), 5e-3)


@given(WIDTHS, RANKS, SEEDS, st.floats(0.1, 1.0))
def test_one_iteration_of_the_paper_is_one_shot(widths, ranks, seed, density):
    """T = 1: the top components by the scores of the untouched state."""
    case = Case(widths, ranks, seed)
    merged = case.merge("paper", density=density, iterations=1)
    experts = [{f"{m}.weight": (A, B, 2.0) for m, (A, B) in table.items()} for table in case.tables]
    network = oracles.chain_network(list(case.base))
    for n, expert in enumerate(experts):
        gamma, _ = oracles.dense_gamma(network, case.base, expert)
        for module, layer in merged.report.record.layers.items():
            total = sum(case.own(i, module) for i in range(len(experts)))
            eta = oracles.dense_eta(expert[f"{module}.weight"], total)
            saliency = (gamma[f"{module}.weight"] * eta).abs()
            count = max(1, round(len(saliency) * density))
            picked = list(layer.adapters[f"e{n}"].kept)
            assert len(picked) == count
            assert float(saliency[picked].min()) >= float(saliency.sort(descending=True).values[count - 1]) * (1 - 1e-3)


@pytest.mark.parametrize("method", sorted(METHODS))
@settings(max_examples=8)
@given(WIDTHS, RANKS, SEEDS)
def test_two_runs_are_the_same(method, widths, ranks, seed):
    case = Case(widths, ranks, seed)
    assume(clear_choice(case, method, [1.0] * len(ranks)))
    same_update(*(case.merge(method) for _ in range(2)))


@given(WIDTHS, RANKS, SEEDS)
def test_what_the_paper_keeps_and_its_energy_are_reported_truly(widths, ranks, seed):
    case = Case(widths, ranks, seed)
    merged = case.merge("paper", density=0.5)
    for module, layer in merged.report.record.layers.items():
        total = 0
        for n, table in enumerate(case.tables):
            share = layer.adapters[f"e{n}"]
            A, B = (tensor.double() for tensor in table[module])
            own = 2 * B[:, list(share.kept)] @ A[list(share.kept)]
            assert share.norm == pytest.approx(float((2 * B @ A).norm()), rel=1e-4)
            energy = float(own.norm() / (2 * B @ A).norm()) ** 2  # above 1 where what went opposed what stays
            assert share.energy_kept == pytest.approx(energy, rel=1e-3)
            total = total + own
        torch.testing.assert_close(merged.delta(module).double(), total, rtol=1e-4, atol=1e-5)
