"""Strength and weights of least interference against dense least squares, in float64."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge
from samerge.linalg.factors import LoraFactors, concatenate
from samerge.linalg.truncation import svd_basis
from samerge.report.interference import RIDGE, least_squares, strength, strength_terms, weight_terms

#: For each layer (d_out, d_in) and the rank of every expert that adapts it.
LAYERS = [((9, 7), {0: 2, 1: 3, 2: 4}), ((5, 12), {0: 2, 2: 3}), ((6, 6), {1: 2, 2: 5})]


def layers(basis: str = "native", seed: int = 0) -> list[dict[int, LoraFactors]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = [
        {n: LoraFactors(draw(r, d_in), draw(d_out, r) * (1 + n), scale=0.5 + n) for n, r in ranks.items()}
        for (d_out, d_in), ranks in LAYERS
    ]
    return found if basis == "native" else [{n: svd_basis(f) for n, f in layer.items()} for layer in found]


def merges(found) -> list[LoraFactors]:
    return [concatenate(list(layer.values()), [1.0, -0.5, 2.0][: len(layer)]) for layer in found]


def error(merged: list[torch.Tensor], found) -> float:
    """The summed normalised interference, densely."""
    total = 0.0
    for M, layer in zip(merged, found, strict=True):
        for f in layer.values():
            total += float(((M - f.delta()) @ f.A.T).square().sum() / (f.delta() @ f.A.T).square().sum())
    return total


@pytest.mark.parametrize("basis", ["native", "svd"])
def test_the_strength_is_the_dense_least_squares_solution(basis):
    found = layers(basis)
    merged = merges(found)
    columns, targets = [], []
    for M, layer in zip(merged, found, strict=True):
        for f in layer.values():
            size = (f.delta() @ f.A.T).norm()
            columns.append((M.delta() @ f.A.T).flatten() / size)
            targets.append((f.delta() @ f.A.T).flatten() / size)
    terms = [strength_terms(M, list(layer.values())) for M, layer in zip(merged, found, strict=True)]
    expected = torch.linalg.lstsq(torch.cat(columns)[:, None], torch.cat(targets)[:, None]).solution
    assert strength(terms) == pytest.approx(float(expected), rel=1e-10)
    best = error([strength(terms) * M.delta() for M in merged], found)
    for factor in (0.99, 1.01):
        assert error([factor * strength(terms) * M.delta() for M in merged], found) > best
    own = [strength([one]) for one in terms]
    assert error([own[i] * M.delta() for i, M in enumerate(merged)], found) < best


@pytest.mark.parametrize("basis", ["native", "svd"])
def test_the_weights_are_the_dense_least_squares_solution(basis):
    """The ridge as rows of their own."""
    found = layers(basis)
    rows, targets = [], []
    total, right = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for layer in found:
        gram, own = weight_terms(layer, 3)
        total, right = total + gram, right + own
        for f in layer.values():
            size = (f.delta() @ f.A.T).norm()
            columns = [
                (layer[j].delta() @ f.A.T).flatten() / size if j in layer else torch.zeros(f.shape[0] * f.rank)
                for j in range(3)
            ]
            rows.append(torch.stack([c.double() for c in columns], dim=1))
            targets.append((f.delta() @ f.A.T).flatten() / size)
    ridge = (RIDGE * float(total.diagonal().mean())) ** 0.5 * torch.eye(3, dtype=torch.float64)
    stacked = torch.cat([*rows, ridge]), torch.cat([*targets, torch.zeros(3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(stacked[0], stacked[1][:, None]).solution.flatten()
    weights = torch.tensor(least_squares(total, right), dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-10)

    def at(w) -> float:
        return error([sum(w[n] * f.delta() for n, f in layer.items()) for layer in found], found)

    for n in range(3):
        for step in (-0.01, 0.01):
            assert at(weights + step * torch.eye(3, dtype=torch.float64)[n]) > at(weights)


def test_in_the_svd_basis_nothing_depends_on_the_gauge():
    found = layers()
    generator = torch.Generator().manual_seed(3)
    turned = []
    for layer in found:
        other = {}
        for n, f in layer.items():
            Q = torch.randn(f.rank, f.rank, generator=generator, dtype=torch.float64) + 3 * torch.eye(f.rank)
            other[n] = LoraFactors(torch.linalg.solve(Q, f.A), f.B @ Q, f.scale)
        turned.append(other)
    for one, other, M in zip(found, turned, merges(found), strict=True):
        a, b = ([svd_basis(f) for f in layer.values()] for layer in (one, other))
        assert strength_terms(M, a) == pytest.approx(strength_terms(M, b), rel=1e-10)
        native = strength_terms(M, list(one.values()))
        assert native != pytest.approx(strength_terms(M, list(other.values())), rel=1e-3)  # it can fail


def test_orthogonal_experts_get_one():
    """Nothing interferes: the sum itself."""
    eye = torch.eye(6, dtype=torch.float64)
    experts = {n: LoraFactors(eye[2 * n : 2 * n + 2], 3 * eye[:, 2 * n : 2 * n + 2]) for n in range(3)}
    total, right = weight_terms(experts, 3)
    assert least_squares(total, right) == pytest.approx((1.0, 1.0, 1.0), abs=1e-7)
    merged = concatenate(list(experts.values()))
    assert strength([strength_terms(merged, list(experts.values()))]) == pytest.approx(1.0)


def test_twins_share_their_weight_and_zeros_take_no_part():
    f = layers()[0][1]
    none = LoraFactors(torch.zeros(2, 7, dtype=torch.float64), torch.zeros(9, 2, dtype=torch.float64))
    total, right = weight_terms({0: f, 1: f, 3: none}, 4)
    weights = least_squares(total, right)
    assert weights[:2] == pytest.approx((0.5, 0.5), abs=1e-6)
    assert weights[2:] == (1.0, 1.0)
    assert strength([strength_terms(none, [f])]) == 1.0
    assert strength([strength_terms(f, [none])]) == 1.0
    assert strength([strength_terms(f, [])]) == 1.0


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interference")
    base = chain([9, 8, 10])
    tables = [chain_factors(base, rank, seed=n) for n, rank in enumerate([3, 2, 4])]
    del tables[2]["layers.1"]
    adapters = {f"e{n}": write_adapter(folder / f"e{n}", table) for n, table in enumerate(tables)}
    found = [
        {n: LoraFactors(*(x.double() for x in t[module])) for n, t in enumerate(tables) if module in t}
        for module in ("layers.0", "layers.1")
    ]
    return adapters, found


@pytest.mark.parametrize("options", [{"method": "linear"}, {"recipe": "even"}, {"selection": "norm", "rank": 3}])
@pytest.mark.parametrize("basis", [None, "native"])
def test_a_merge_with_the_strength_of_least_interference(case, options, basis):
    """No other lambda interferes less, whatever came before."""
    adapters, found = case
    measured = found if basis else [{n: svd_basis(f) for n, f in layer.items()} for layer in found]
    for scaling in ("interference", "interference:layer"):
        merged = samerge.merge(None, adapters, scaling=scaling, basis=basis, **options)
        updates = [merged.delta(module).double() for module in ("layers.0", "layers.1")]
        best = error(updates, measured)
        for factor in (0.99, 1.01):
            if scaling == "interference":
                assert error([factor * M for M in updates], measured) > best
            else:
                assert error([factor * updates[0], updates[1]], measured) > best
                assert error([updates[0], factor * updates[1]], measured) > best
        scales = [layer["scale"] for layer in merged.report.record["layers"].values()]
        assert (len(set(scales)) == 1) == (scaling == "interference")


@pytest.mark.parametrize("basis", [None, "native"])
def test_a_merge_with_the_weights_of_least_interference(case, basis):
    adapters, found = case
    measured = found if basis else [{n: svd_basis(f) for n, f in layer.items()} for layer in found]
    merged = samerge.merge(None, adapters, weights="auto", method="linear", basis=basis)
    weights = [item["weight"] for item in merged.report.record["inputs"]]
    sums = [weight_terms(layer, 3) for layer in measured]
    expected = least_squares(sum(g for g, _ in sums), sum(h for _, h in sums))
    assert weights == pytest.approx(expected, rel=1e-4)
    total = sum(weights[n] * f.delta() for n, f in found[0].items())
    torch.testing.assert_close(merged.delta("layers.0").double(), total, rtol=1e-4, atol=1e-4)


def test_the_basis_is_refused_where_nothing_is_measured(case):
    adapters, _ = case
    with pytest.raises(samerge.OptionError, match="method='linear' has no option 'basis'"):
        samerge.merge(None, adapters, method="linear", basis="native")
    with pytest.raises(samerge.OptionError, match="weights='even' is not known"):
        samerge.merge(None, adapters, method="linear", weights="even")
    with pytest.raises(samerge.OptionError, match="scaling='interference:all' is not known; choose one of auto"):
        samerge.merge(None, adapters, method="linear", scaling="interference:all")
