"""`saliency` and `even` in the metric of the inputs, against the dense definition; the metric by hand."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from oracles import chain_network
from tiny import write_adapter
from torch import Tensor, nn

import samerge
from methods.dense_chain import dense_chain
from methods.test_chain import METHODS, OPTIONS, WEIGHTS, chain_graph, hold, unequal


class Chain(nn.Module):
    """The layers of a chain, one after the other, as `layers.0` and so on; with a tanh between."""

    def __init__(self, base) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for name in sorted(base):
            layer = nn.Linear(base[name].shape[1], base[name].shape[0], bias=False)
            layer.weight.data = base[name].clone()
            self.layers.append(layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Case:
    """A live chain with adapters on disk, and inputs whose channels differ a lot and are mixed."""

    def __init__(self, folder, base, tables) -> None:
        self.base, self.model = base, Chain(base)
        self.names = [f"e{n}" for n in range(len(tables))]
        self.adapters = {name: write_adapter(folder / name, t) for name, t in zip(self.names, tables, strict=True)}
        self.experts = [{f"{m}.weight": (A, B, 1.0) for m, (A, B) in t.items()} for t in tables]
        width = base[min(base)].shape[1]
        self.x = torch.randn(2, 25, width) * torch.logspace(-1.5, 1.5, width) @ torch.randn(width, width)

    def merged(self, method, weights=(1.0, 1.0, 1.0), **options):
        given = {"connectivity": chain_graph(self.base)} if method == "saliency" else {}
        given["calibration"] = lambda model: model(self.x)
        return samerge.merge(
            self.model, self.adapters, method=method, weights=list(weights), progress=False, **{**given, **options}
        )

    def metrics(self) -> dict[str, Tensor]:
        """S of every layer, by hand: the inputs' second moment, a tenth of its mean diagonal added, its fourth root."""
        found, x = {}, self.x.double()
        for name in sorted(self.base):
            C = x.flatten(0, 1).T @ x.flatten(0, 1) / (x.shape[0] * x.shape[1])
            values, E = torch.linalg.eigh(C / C.diagonal().mean() + 0.1 * torch.eye(len(C), dtype=C.dtype))
            found[name] = (E * values**0.25) @ E.T
            x = torch.tanh(x @ self.base[name].double().T)
        return found


ROUNDS = [("saliency", {"rank": 6, "iterations": 3})]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("method", "options"), [*product(METHODS, OPTIONS), *ROUNDS], ids=str)
def test_a_chain(tmp_path, method, options, weights):
    case = Case(tmp_path, *unequal(seed=1))
    network = chain_network(sorted(case.base)) if method == "saliency" else None
    expected = dense_chain(network, case.base, case.experts, weights, metrics=case.metrics(), **options)
    hold(case.merged(method, weights, **options), expected, case.names)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_another_merge_than_without(tmp_path, method):
    case = Case(tmp_path, *unequal())
    one, other = case.merged(method, rank=5), case.merged(method, rank=5, calibration=None)
    assert float((one.delta("layers.0") - other.delta("layers.0")).norm()) > 0.1 * float(one.delta("layers.0").norm())


@pytest.mark.parametrize("method", METHODS)
def test_inputs_of_all_directions_alike_change_nothing_but_the_strength(tmp_path, method):
    case = Case(tmp_path, *unequal(widths=(24, 26, 22)))
    case.x = torch.eye(24) * 3
    one, other = (case.merged(method, rank=5, **more).delta("layers.0") for more in ({}, {"calibration": None}))
    more = 5 * 3 / (8 + 5 + 3)  # k / r
    louder = 1.8 * more ** (1 / 6) / (1.7 * more**0.25)
    torch.testing.assert_close(one, louder * other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_the_inputs_as_a_whole_changes_nothing(tmp_path, method):
    case = Case(tmp_path, *unequal(widths=(24, 26, 22)))
    one = case.merged(method, rank=5)
    case.x = case.x * 100
    torch.testing.assert_close(
        case.merged(method, rank=5).delta("layers.0"), one.delta("layers.0"), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_fewer_inputs_than_channels(tmp_path, method):
    case = Case(tmp_path, *unequal())
    case.x = case.x[:1, :9]
    network = chain_network(sorted(case.base)) if method == "saliency" else None
    expected = dense_chain(network, case.base, case.experts, (1.0, 1.0, 1.0), rank=5, metrics=case.metrics())
    hold(case.merged(method, rank=5), expected, case.names)


@pytest.mark.parametrize("method", METHODS)
def test_orthogonal_adapters_keep_their_directions(tmp_path, method):
    """Adapters that meet in no row and no column are each as they were, but for their spectrum."""
    generator = torch.Generator().manual_seed(3)
    base = {"layers.0.weight": torch.randn(8, 8, generator=generator)}
    tables = []
    for start in (0, 4):
        A, B = torch.zeros(2, 8), torch.zeros(8, 2)
        A[:, start : start + 4] = torch.linalg.qr(torch.randn(4, 2, generator=generator))[0].T
        B[start : start + 4] = torch.linalg.qr(torch.randn(4, 2, generator=generator))[0]
        tables.append({"layers.0": (A, B)})
    case = Case(tmp_path, base, tables)
    case.x = torch.diag(torch.logspace(-1.5, 1.5, 8))
    M = case.merged(method, (1.0, 1.0), rank=4).delta("layers.0")
    assert float(M[:4, 4:].abs().max()) < 1e-5
    assert float(M[4:, :4].abs().max()) < 1e-5
    for table, part in zip(tables, (M[:4, :4], M[4:, 4:]), strict=True):
        A, B = table["layers.0"]
        own = (B @ A)[:4, :4] if bool(A[:, :4].any()) else (B @ A)[4:, 4:]
        rows = torch.linalg.svd(own)[2][:2]
        assert float((part - part @ rows.T @ rows).norm()) < 1e-4 * float(part.norm())


@pytest.mark.parametrize("method", METHODS)
def test_the_figures_are_those_of_the_updates_as_they_are(tmp_path, method):
    """Norms, cosines and signs of the record are of what was trained and written, not of what was seen."""
    base, tables = unequal()
    case = Case(tmp_path, base, tables)
    merged = case.merged(method, rank=5)
    layer = merged.report.record.layers["layers.0"]
    M = merged.delta("layers.0").double()
    assert layer.norm == pytest.approx(float(M.norm()), rel=1e-4)
    for n, name in enumerate(case.names):
        A, B, _ = case.experts[n]["layers.0.weight"]
        tau = B.double() @ A.double()
        assert layer.adapters[name].norm == pytest.approx(float(tau.norm()), rel=1e-4)
        cosine = float((tau * M).sum() / tau.norm() / M.norm())
        assert layer.adapters[name].cosine == pytest.approx(cosine, abs=1e-4)
    squares = torch.linalg.svdvals(M).square()
    assert layer.effective_rank == pytest.approx(float(squares.sum() ** 2 / squares.square().sum()), rel=1e-3)
