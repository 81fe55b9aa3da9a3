"""The diagnostics against dense matrices in float64, and the laws that they obey."""

from __future__ import annotations

import itertools
import json

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from methods.dense import SHAPES, regauged, updates
from torch import Tensor

import samerge
from samerge.linalg.factors import LoraFactors
from samerge.linalg.sign_conflicts import sample_rows, sign_counts
from samerge.merging.between_adapters import conflicts
from samerge.merging.inputs import open_adapters
from samerge.merging.reading_conflicts import reading
from samerge.report.card import model_card
from samerge.report.diagnostics.overlap import Overlap, effective_rank, overlaps
from samerge.report.diagnostics.whole_merge import expected_retention
from samerge.report.report import Report

FIGURES = ("retention", "cosine", "interference", "spill", "weighted_interference")


def dense_figures(M: Tensor, tau: Tensor, rounding: float = 1e-9) -> dict[str, float]:
    """By their definitions, on whole matrices."""
    _, s, vh = torch.linalg.svd(tau, full_matrices=False)
    V = vh[s > rounding * s[0]].T  # (d_in, r)
    P, rank, width = V @ V.T, V.shape[1], tau.shape[1]
    beside = (M @ (torch.eye(width, dtype=M.dtype) - P)).norm() / tau.norm()
    return {
        "retention": float((M * tau).sum() / tau.norm() ** 2),
        "cosine": float((M * tau).sum() / (M.norm() * tau.norm())),
        "interference": float(((M - tau) @ P).norm() / tau.norm()),
        "spill": float(beside * (rank / (width - rank)) ** 0.5) if rank < width else 0.0,
        "weighted_interference": float(((M - tau) @ tau.T).norm() / (tau @ tau.T).norm()),
    }


@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
def test_figures_are_those_of_dense_matrices(d_out, d_in, ranks):
    parts = updates(d_out, d_in, ranks)
    merged = updates(d_out, d_in, (3,), seed=5)[0]
    for part, found in zip(parts, overlaps(merged, parts), strict=True):
        for name, value in dense_figures(merged.delta(), part.delta()).items():
            # ||M||^2 - ||M V||^2 cancels where V is nearly everything
            assert found.figures()[name] == pytest.approx(value, rel=1e-10, abs=1e-7 if name == "spill" else 1e-10)


@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
def test_figures_do_not_depend_on_how_an_update_is_factored(d_out, d_in, ranks):
    parts = updates(d_out, d_in, ranks)
    merged, again = updates(d_out, d_in, (3,), seed=5)[0], regauged(updates(d_out, d_in, (3,), seed=5))[0]
    for one, other in zip(overlaps(merged, parts), overlaps(again, regauged(parts)), strict=True):
        for name in FIGURES:
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9, abs=1e-7)


@given(st.floats(0.1, 3.0), st.integers(0, 5))
def test_an_adapter_alone_is_wholly_left(scale, seed):
    [tau] = updates(7, 12, (3,), seed)
    [found] = overlaps(tau, [tau])
    assert found.retention == pytest.approx(1)
    assert found.cosine == pytest.approx(1)
    assert found.interference == pytest.approx(0, abs=1e-12)
    assert found.spill == pytest.approx(0, abs=1e-6)
    assert expected_retention(found.figures()) == pytest.approx(1)
    [half] = overlaps(LoraFactors(tau.A, tau.B * scale, tau.scale), [tau])
    assert half.interference == pytest.approx(abs(1 - scale))
    assert half.retention == pytest.approx(scale)
    assert expected_retention(half.figures()) == pytest.approx(max(0, 1 - (1 - scale) ** 2))


def test_components_that_say_the_same_twice_count_once():
    [tau] = updates(7, 12, (3,))
    [merged] = updates(7, 12, (2,), seed=5)
    twice = LoraFactors(torch.cat([tau.A, tau.A]), torch.cat([tau.B * 3, tau.B * -2], dim=1), tau.scale)
    [one], [other] = overlaps(merged, [tau]), overlaps(merged, [twice])
    for name in FIGURES:
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-6)


def test_what_is_zero():
    [tau], nothing = updates(7, 12, (3,)), LoraFactors(torch.zeros(1, 12), torch.zeros(7, 1))
    [found] = overlaps(nothing, [tau])
    assert (found.retention, found.cosine, found.interference, found.spill) == (0, 0, 1, 0)
    assert expected_retention(found.figures()) == 0
    [found] = overlaps(tau, [nothing.to(dtype=torch.float64)])
    assert set(found.figures().values()) == {None}
    assert expected_retention(found.figures()) is None
    assert effective_rank(nothing) == 0


def test_an_update_that_reacts_to_every_input_has_no_spill():
    parts = updates(9, 4, (4, 4))
    assert [found.spill for found in overlaps(parts[0], parts)] == [0, 0]
    assert Overlap(1.0, 4.0, 0.0, 1.0, 4.0, 0.25, 1.0, 1.0).spill == 1.0


@pytest.mark.parametrize(("d_out", "d_in", "ranks"), SHAPES)
def test_effective_rank(d_out, d_in, ranks):
    for part in updates(d_out, d_in, ranks):
        shares = torch.linalg.svdvals(part.delta()).square()
        shares = shares / shares.sum()
        assert effective_rank(part) == pytest.approx(float(1 / shares.square().sum()), rel=1e-10)
        assert 1 - 1e-9 <= effective_rank(part) <= part.rank + 1e-9


@pytest.mark.parametrize(("a", "b"), [(1e36, 1.0), (1.0, 1e36), (1e18, 1e18), (1e-36, 1.0), (1e-18, 1e-18)])
def test_very_large_and_small_updates_have_the_figures_of_others(tmp_path, a, b):
    """In the record, where nothing is NaN, infinite or zero by overflow."""
    tables = [tiny.chain_factors(tiny.chain([9, 8, 7]), 3, seed) for seed in range(2)]

    def record(name, a, b):
        scaled = [{m: (A * a, B * b) for m, (A, B) in table.items()} for table in tables]
        folders = [tiny.write_adapter(tmp_path / name / f"e{n}", table) for n, table in enumerate(scaled)]
        return samerge.merge(None, folders, method="linear").report.record

    plain, extreme = record("plain", 1.0, 1.0), record("extreme", a, b)
    for name, figures in plain["diagnostics"]["experts"].items():
        for key, value in {**figures, "norm": figures["norm"] * a * b}.items():
            found = extreme["diagnostics"]["experts"][name][key]
            assert found == (None if value is None else pytest.approx(value, rel=1e-4, abs=0)), key
    for module, layer in plain["layers"].items():
        assert extreme["layers"][module]["effective_rank"] == pytest.approx(layer["effective_rank"], rel=1e-4)


def test_sign_counts_are_those_of_every_element():
    parts = updates(12, 9, (2, 3, 1, 4))
    parts[0].B[3] = 0  # a row without signs
    rows = sample_rows((12, 9), sample=63)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 7
    found = sign_counts(parts, rows)
    tiles = [part.delta()[rows].sign() for part in parts]
    pairs = list(itertools.combinations(range(4), 2))
    for i, j in pairs:
        assert int(found.opposed[i, j]) == int((tiles[i] * tiles[j] < 0).sum())
        assert int(found.compared[i, j]) == int((tiles[i] * tiles[j] != 0).sum())
    opposed = sum(int(found.opposed[pair]) for pair in pairs)
    assert found.among(4).share == opposed / sum(int(found.compared[pair]) for pair in pairs)
    assert found.among(1).share is None
    assert sample_rows((3, 100), sample=10).tolist() == [1]
    assert sample_rows((3, 2)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("method", ["linear", "tsv", "ties", "saliency", "elementwise"])
def test_the_record_holds_them(llama, method):
    merged = samerge.merge(llama.base, llama.adapters, method=method, progress=False)
    record = json.loads(json.dumps(merged.report.record))  # plain JSON
    found = merged.report.diagnostics
    experts = open_adapters(None, llama.adapters)
    for module, layer in record["layers"].items():
        M = merged.factors[module].delta().double()
        for expert in experts:
            if module in expert.modules:
                dense = dense_figures(M, expert.modules[module].load().delta().double(), 1e-5)
                for name, value in dense.items():
                    assert layer["experts"][expert.name][name] == pytest.approx(value, rel=1e-3, abs=2e-3)
    for row in merged.report.experts():
        assert 0 <= row["expected_retention"] <= 1
        assert 0 <= row["sign_conflict"] <= 1
        assert row["expected_retention"] == max(0, 1 - row["interference"] ** 2 - row["spill"] ** 2)
    assert found["least"] == min(found["experts"], key=lambda n: found["experts"][n]["expected_retention"])
    assert found["norm"] == pytest.approx(sum(float(f.delta().norm()) ** 2 for f in merged.factors.values()) ** 0.5)
    assert all(1 - 1e-5 <= layer["effective_rank"] <= layer["rank"] + 1e-5 for layer in record["layers"].values())


def test_figures_go_with_their_adapter(llama):
    names = list(llama.adapters)
    one = samerge.merge(None, llama.adapters, method="linear", progress=False).report
    turned = {name: llama.adapters[name] for name in reversed(names)}
    other = samerge.merge(None, turned, method="linear", progress=False).report
    for name in names:
        for key, value in one.diagnostics["experts"][name].items():
            again = other.diagnostics["experts"][name][key]
            assert again == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-4))
    assert other.expected_retention == pytest.approx(one.expected_retention, abs=1e-4)
    assert other.diagnostics["sign_conflict"] == pytest.approx(one.diagnostics["sign_conflict"], abs=1e-3)


def test_one_adapter_merged_alone(llama):
    report = samerge.merge(None, {"math": llama.adapters["math"]}, method="linear", progress=False).report
    assert report.expected_retention == pytest.approx(1, abs=1e-4)
    assert report.diagnostics["experts"]["math"]["cosine"] == pytest.approx(1, abs=1e-4)
    assert report.diagnostics["sign_conflict"] is None


def test_a_weight_of_zero_has_no_figures(llama):
    report = samerge.merge(None, llama.adapters, method="linear", weights=[1.0, 0.0, 1.0], progress=False).report
    assert list(report.diagnostics["experts"]) == ["math", "talk"]
    assert "expected_retention" not in report.experts()[1]
    report.table()


def test_the_budget_is_the_share_of_components(llama):
    report = samerge.merge(llama.base, llama.adapters, method="saliency", progress=False).report
    rows = report.experts()
    assert all(0 < row["budget"] < 1 for row in rows)
    assert samerge.merge(None, llama.adapters, method="linear").report.experts()[0]["budget"] is None


def test_records_without_diagnostics_still_read(llama):
    record = dict(samerge.merge(None, llama.adapters, method="linear", progress=False).report.record)
    assert "Compared with the adapters" in model_card(record)
    for change in ({}, {"absent": "a reason"}, None):
        old = {**record, "diagnostics": change}
        if change is None:
            old.pop("diagnostics")
        report = Report(old)
        assert report.diagnostics is None
        assert report.expected_retention is None
        assert "expected_retention" not in report.experts()[0]
        report.table()
        assert "Compared with the adapters" not in model_card(old)


def write(folder, name: str, factors: dict[str, LoraFactors]):
    return tiny.write_adapter(folder / name, {m: (f.A.float(), f.B.float()) for m, f in factors.items()})


def test_conflicts_are_those_of_dense_matrices(tmp_path):
    drawn = {module: updates(10, 16, (2, 3, 4), seed) for seed, module in enumerate(("h.0.q", "h.1.q"))}
    folders = {n: write(tmp_path, n, {m: parts[i] for m, parts in drawn.items()}) for i, n in enumerate("abc")}
    adapters = open_adapters(None, folders)
    found = conflicts(adapters)
    dense = [{m: a.modules[m].load().delta().double() for m in drawn} for a in adapters]
    whole = [torch.cat([one[m].flatten() for m in drawn]) for one in dense]
    for i, j in itertools.product(range(3), repeat=2):
        assert found.cosine[i][j] == pytest.approx(
            float(torch.dot(whole[i], whole[j]) / whole[i].norm() / whole[j].norm()), abs=1e-6
        )
        rows, columns = [], []
        for m in drawn:
            (u, s, v), (x, t, y) = (torch.linalg.svd(one[m], full_matrices=False) for one in (dense[i], dense[j]))
            k, n = int((s > 1e-6 * s[0]).sum()), int((t > 1e-6 * t[0]).sum())
            rows.append(float((v[:k] @ y[:n].T).norm() ** 2) / min(k, n))
            columns.append(float((u[:, :k].T @ x[:, :n]).norm() ** 2) / min(k, n))
        assert found.rows[i][j] == pytest.approx(sum(rows) / 2, abs=1e-5)
        assert found.columns[i][j] == pytest.approx(sum(columns) / 2, abs=1e-5)
        assert found.sign_conflict[i][j] == pytest.approx(
            float((whole[i].sign() * whole[j].sign() < 0).double().mean()), abs=1e-9
        )
    assert found.norms == pytest.approx([float(one.norm()) for one in whole], rel=1e-6)
    worst = found.worst(1)[0]
    i, j = ("abc".index(name) for name in worst["adapters"])
    one, other = dense[i][worst["module"]], dense[j][worst["module"]]
    assert worst["cosine"] == pytest.approx(float((one * other).sum() / one.norm() / other.norm()), abs=1e-6)
    assert worst["cosine"] == min(value for own in found.layers.values() for value in own.values())


@pytest.mark.parametrize("size", [1e-14, 1e14])
def test_conflicts_of_very_small_and_large_updates(tmp_path, size):
    """Their squares are beyond float32."""
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator)
    one = tiny.write_adapter(tmp_path / "a", {"layer": (A, B)})
    other = tiny.write_adapter(tmp_path / "b", {"layer": (A * size, -B * size)})
    found = conflicts(open_adapters(None, [one, other]))
    assert found.norms[1] / found.norms[0] == pytest.approx(size**2)
    assert found.cosine[0][1] == pytest.approx(-1.0)
    assert found.columns[0][1] == pytest.approx(1.0)
    assert "nearly cancel" in reading(found)


def test_the_reading_says_what_is_wrong(tmp_path):
    part, other, third = updates(10, 16, (2, 2, 2))
    folders = {
        "one": write(tmp_path, "one", {"q": part}),
        "anti": write(tmp_path, "anti", {"q": LoraFactors(part.A, -part.B)}),
        "twin": write(tmp_path, "twin", {"q": LoraFactors(part.A, part.B * 1.1)}),
        "huge": write(tmp_path, "huge", {"q": LoraFactors(other.A, other.B * 50)}),
        "same-inputs": write(tmp_path, "same-inputs", {"q": LoraFactors(part.A, third.B)}),
    }
    text = reading(conflicts(open_adapters(None, folders)))
    assert "one and anti nearly cancel (cosine -1.00)" in text
    assert "one and twin are nearly the same (cosine 1.00)" in text
    assert "x larger than the others" in text
    assert "weights='nan'" in text
    assert "one and same-inputs react to the same inputs" in text


def test_adapters_without_a_common_layer(tmp_path):
    part, other = updates(10, 16, (2, 2))
    found = conflicts(
        open_adapters(None, {"a": write(tmp_path, "a", {"q": part}), "b": write(tmp_path, "b", {"k": other})})
    )
    assert found.cosine[0][1] == 0
    assert found.rows[0][1] is None
    assert found.sign_conflict[0][1] is None
    assert reading(found) == (
        "a and b adapt no layer in common: there is nothing to compare; are they adapters of one base?"
    )
