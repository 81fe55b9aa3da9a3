"""`knots-ties`, `core-ties` and `ctm` against dense SVDs of stacked updates and an election in plain Python."""

from __future__ import annotations

import pytest
import torch
from tiny import chain, chain_factors, write_adapter

import samerge
from methods.dense import close, regauged, svd, triplets, updates
from methods.streams import election
from samerge.linalg.core_space import core_space
from samerge.linalg.factors import LoraFactors
from samerge.methods import ctm
from samerge.methods.core_ties import by_cores
from samerge.methods.ctm import balanced, by_tucker, tucker
from samerge.methods.knots_ties import by_knots
from samerge.methods.registry import find
from samerge.methods.rows import Layer, merged_with_shares
from samerge.methods.ties import trimmed

WEIGHTS = [1.0, -0.5, 2.0]
CASES = [[updates(11, 9, (2, 3, 2), seed=s), updates(7, 12, (3, 2, 4), seed=s + 9)] for s in (0, 1)]


#: What is trimmed together.
OVER = {"knots-ties": "adapter", "core-ties": "layer", "ctm": "layer"}


def run(method, align, case, density, rank=3, over=None):
    """The dense merges of all layers, in float64."""
    options = find(method).options(density=density)
    found = [align(triplets(parts), rank, options) for parts in case]
    layers = []
    for i, one in enumerate(found):
        values = {n: type(v)(v.A, v.B * WEIGHTS[n]) for n, v in one.values.items()}
        shape = next(iter(values.values())).shape
        layers.append(Layer(str(i), shape, {n: str(n) for n in values}, values))
    combine = trimmed(layers, options, over or OVER[method])
    merged = []
    for one, layer in zip(found, layers, strict=True):
        merged.append(one.lift(merged_with_shares(layer, combine, WEIGHTS)[0]).delta().double())
    return merged


def near(a, b):
    """As near as values in float32 allow."""
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.norm()))


def trimmed_and_elected(representations, density, over="adapter"):
    """TIES on lists (layers) of lists (experts)."""
    merged = []
    for values in representations:
        kept = []
        for n, value in enumerate(values):
            whole = torch.cat([r[n].flatten() for r in representations]) if over == "adapter" else value.flatten()
            limit = whole.abs().sort(descending=True).values[max(1, round(density * len(whole))) - 1]
            kept.append(WEIGHTS[n] * value * (value.abs() >= limit * (1 - 1e-9)))
        merged.append(election(kept))
    return merged


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("density", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("over", ["adapter", "layer"])
def test_knots(case, density, over):
    bases, representations = [], []
    for parts in case:
        u, s, v = svd(torch.cat([p.delta() for p in parts], dim=1))
        bases.append(u)
        representations.append(list((s[:, None] * v.T).split(parts[0].shape[1], dim=1)))
    expected = [u @ m for u, m in zip(bases, trimmed_and_elected(representations, density, over), strict=True)]
    for ours, theirs in zip(run("knots-ties", by_knots, case, density, over=over), expected, strict=True):
        near(ours, theirs)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("density", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("over", ["adapter", "layer"])
def test_core_ties(case, density, over):
    bases, representations = [], []
    for parts in case:
        u = svd(torch.cat([p.delta() for p in parts], dim=1))[0]
        v = svd(torch.cat([p.delta() for p in parts]))[2]
        bases.append((u, v))
        representations.append([u.T @ p.delta() @ v for p in parts])
    merged = trimmed_and_elected(representations, density, over)
    for ours, (u, v), core in zip(run("core-ties", by_cores, case, density, over=over), bases, merged, strict=True):
        near(ours, u @ core @ v.T)


def naive_tucker(deltas, rank, turns=3000):
    """Dense HOOI from another start, for very long."""
    generator = torch.Generator().manual_seed(1)
    best, found = -1.0, None
    for _ in range(4):
        v = torch.linalg.qr(torch.randn(deltas[0].shape[1], rank, generator=generator, dtype=torch.float64))[0]
        for _ in range(turns // 4):
            u = torch.linalg.svd(torch.cat([d @ v for d in deltas], 1), full_matrices=False)[0][:, :rank]
            v = torch.linalg.svd(torch.cat([d.T @ u for d in deltas], 1), full_matrices=False)[0][:, :rank]
        fit = sum(float((u.T @ d @ v).square().sum()) for d in deltas)
        if fit > best:
            best, found = fit, (u, v)
    return best, found


@pytest.mark.parametrize("small", [512, 0])  # found anew in each turn, or improved
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_tucker_is_the_best_common_space(case, rank, small, monkeypatch):
    monkeypatch.setattr(ctm, "_SMALL", small)
    for parts in case:
        deltas = [p.delta() for p in parts]
        best, _ = naive_tucker(deltas, rank)
        space = core_space(list(triplets(parts).values()))
        u, v = tucker(space.cores, rank)
        close(u.T @ u, torch.eye(rank, dtype=torch.float64))
        close(v.T @ v, torch.eye(rank, dtype=torch.float64))
        fit = sum(float((u.T @ core.delta() @ v).square().sum()) for core in space.cores)
        assert fit == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("density", [0.25, 1.0])
def test_ctm(case, density):
    """Given the common spaces, by the formulas on dense updates: their own, not those of balanced norms."""
    representations, bases = [], []
    for parts in case:
        space = core_space(list(triplets(parts).values()))
        u, v = tucker(balanced(space.cores), 3)
        u, v = space.left @ u, space.right @ v
        bases.append((u, v))
        representations.append([u.T @ p.delta() @ v for p in parts])
    merged = trimmed_and_elected(representations, density, "layer")
    for ours, (u, v), core in zip(run("ctm", by_tucker, case, density), bases, merged, strict=True):
        near(ours, u @ core @ v.T)


def test_balanced_norms():
    """A quarter of its own norm and three quarters of the mean."""
    parts = triplets(CASES[0][0]).values()
    mean = sum(part.delta().norm() for part in parts) / len(parts)
    for part, found in zip(parts, balanced(list(parts)), strict=True):
        close(found.delta(), part.delta() * (0.25 + 0.75 * mean / part.delta().norm()))


@pytest.mark.parametrize(("method", "align"), [("knots-ties", by_knots), ("core-ties", by_cores), ("ctm", by_tucker)])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_updates_that_cancel_give_zero(method, align, density):
    """However they are written: rounding elects nobody."""
    case = []
    for parts in CASES[0]:
        (again,) = regauged([parts[0]])
        case.append([parts[0], LoraFactors(again.A, again.B * 2, again.scale)])  # with weights of 1 and -1/2
    for merged, parts in zip(run(method, align, case, density), case, strict=True):
        assert merged.norm() < 1e-5 * parts[0].delta().norm()


@pytest.mark.parametrize(("method", "align"), [("knots-ties", by_knots), ("core-ties", by_cores), ("ctm", by_tucker)])
def test_a_zero_adapter_beside_others_changes_nothing(method, align):
    others = [parts[:2] for parts in CASES[0]]
    zero = [[*parts[:2], LoraFactors(parts[2].A, parts[2].B * 0)] for parts in CASES[0]]
    for a, b in zip(run(method, align, others, 0.3), run(method, align, zero, 0.3), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "align"), [("knots-ties", by_knots), ("core-ties", by_cores), ("ctm", by_tucker)])
def test_the_gauge_does_not_matter(method, align):
    one = run(method, align, CASES[0], 0.3)
    other = run(method, align, [regauged(parts) for parts in CASES[0]], 0.3)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "align"), [("knots-ties", by_knots), ("core-ties", by_cores), ("ctm", by_tucker)])
def test_one_adapter_untrimmed_is_itself(method, align):
    case = [[parts[0]] for parts in CASES[0]]
    for merged, (part,) in zip(run(method, align, case, 1.0), case, strict=True):
        near(merged, part.delta())


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    base = chain([24, 30, 26])
    adapters = {}
    for n, rank in enumerate([2, 3, 2]):
        factors = chain_factors(base, rank, seed=n)
        if n == 1:
            del factors["layers.1"]
        if n == 2:
            factors["layers.0"][1].zero_()
        adapters[f"e{n}"] = write_adapter(folder / f"e{n}", factors)
    return adapters


@pytest.mark.parametrize(("method", "rank"), [("knots-ties", 5), ("core-ties", 5), ("ctm", 3)])
def test_through_merge(case, method, rank, tmp_path):
    merged = samerge.merge(None, case, method=method)
    assert merged.settings["r"] == rank
    merged.save(tmp_path / "out")
    layer = merged.report.record.layers["layers.0"]
    assert layer.lost == 0
    assert [share.components for share in layer.adapters.values()] == [2, 3, 2]
    turned = samerge.merge(None, dict(reversed(case.items())), method=method)
    for module in ("layers.0", "layers.1"):
        torch.testing.assert_close(merged.delta(module), turned.delta(module), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", OVER)
def test_what_is_trimmed_together(method, tmp_path):
    """Over the whole adapter a layer of small updates has nothing among the largest tenth; by itself it has."""
    adapters = {}
    for n in range(2):
        factors = chain_factors(chain([24, 30, 26]), 2, seed=n)
        factors["layers.0"][1].mul_(1e-3)
        adapters[f"e{n}"] = write_adapter(tmp_path / f"e{n}", factors)
    merged = samerge.merge(None, adapters, method=method, density=0.1)
    assert merged.delta("layers.1").any()
    assert bool(merged.delta("layers.0").any()) == (OVER[method] == "layer")


def test_a_zero_adapter_alone(tmp_path):
    factors = {m: (A, B * 0) for m, (A, B) in chain_factors(chain([6, 5]), 2, seed=0).items()}
    adapter = write_adapter(tmp_path / "zero", factors)
    for method in ("knots-ties", "core-ties", "ctm", "ties", "pcb", "dare", "robustmerge", "lora-lego", "wudi", "tsv"):
        with pytest.warns(UserWarning, match="every update that went in is zero already"):
            merged = samerge.merge(None, {"a": adapter, "b": adapter}, method=method)
        assert not merged.delta("layers.0").any(), method
