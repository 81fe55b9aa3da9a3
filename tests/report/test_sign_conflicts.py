"""Sign conflicts before and after pruning, against dense pruned updates whose signs are counted one by one."""

from __future__ import annotations

import itertools

import pytest
import tiny
import torch
from torch import Tensor

import samerge
from samerge.linalg.sign_conflicts import Conflict, conflict_among, sample_rows
from samerge.merging.inputs import open_adapters
from samerge.report.by_layer import by_block
from samerge.report.card import model_card
from samerge.report.record import signs
from samerge.report.report import Report
from samerge.report.stored import LayerRecord
from samerge.saliency.element_masks import Masks

LOOKED = 150


@pytest.fixture
def few(monkeypatch) -> None:
    """A sample that is smaller than the layers of the tiny models."""
    monkeypatch.setattr(sample_rows, "__defaults__", (LOOKED,))


def naive(parts: list[Tensor], rows: list[int]) -> tuple[int, int]:
    """Opposite signs and pairs of signs, element by element and pair by pair."""
    opposed = compared = 0
    for one, other in itertools.combinations([part[rows].flatten().tolist() for part in parts], 2):
        for x, y in zip(one, other, strict=True):
            if x != 0 and y != 0:
                compared += 1
                opposed += (x > 0) != (y > 0)
    return opposed, compared


def updates(beast, dtype=torch.float64) -> dict[str, dict[str, Tensor]]:
    """The adapters' updates by module and name."""
    found: dict[str, dict[str, Tensor]] = {}
    for adapter in open_adapters(None, beast.adapters):
        for module, own in adapter.modules.items():
            found.setdefault(module, {})[adapter.name] = own.load().to(dtype=dtype).delta()
    return found


def check(report: Report, whole: dict[str, dict[str, Tensor]], pruned: dict[str, dict[str, Tensor]]) -> None:
    """The record's figures are those of dense updates before and after pruning."""
    totals = []
    for module, layer in report.record.layers.items():
        before, after = list(whole[module].values()), list(pruned[module].values())
        height, width = before[0].shape
        rows = sample_rows((height, width)).tolist()
        assert layer.sampled == (len(rows) * width, height * width)
        (opposed, compared), (against, left) = naive(before, rows), naive(after, rows)
        expected = (
            opposed / compared if compared else None,
            against / left if left else None,
            left / compared if compared else None,
        )
        assert (layer.sign_conflict, layer.sign_conflict_after, layer.signs_left) == expected, module
        if compared:
            totals.append((len(rows) * width, *expected))
    found = report.whole
    for place, key in enumerate(("sign_conflict", "sign_conflict_after", "signs_left"), start=1):
        known = [(row[0], row[place]) for row in totals if row[place] is not None]
        if not known:
            assert getattr(found, key) is None
            continue
        mean = sum(size * value for size, value in known) / sum(size for size, _ in known)
        assert getattr(found, key) == pytest.approx(mean)


COMPONENTS = {
    "saliency": {"method": "saliency", "rank": 5, "iterations": 2},
    "even": {"method": "even", "rank": 5},
    "paper": {"method": "paper", "density": 0.4, "iterations": 3, "basis": "svd"},
    "paper, native": {"method": "paper", "density": 0.4, "iterations": 3, "basis": "native"},
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_components_against_dense_updates(zoo, few, name):
    beast = zoo("llama")
    options = {**COMPONENTS[name], "weights": [1.0, -0.5, 2.0]}
    report = samerge.merge(beast.base, beast.adapters, progress=False, **options).report
    pruned: dict[str, dict[str, Tensor]] = {}
    for adapter in open_adapters(None, beast.adapters):
        for module, own in adapter.modules.items():
            factors = own.load().to(dtype=torch.float64)
            one = report.record.layers[module].adapters[adapter.name]
            kept = list(range(one.components) if one.kept is None else one.kept)
            if options.get("basis") == "native":
                part = factors.scale * factors.B[:, kept] @ factors.A[kept]
            else:
                u, s, vh = torch.linalg.svd(factors.delta(), full_matrices=False)
                part = (u[:, kept] * s[kept]) @ vh[kept]
            pruned.setdefault(module, {})[adapter.name] = part
    check(report, updates(beast), pruned)


def test_trimming_against_dense_updates(zoo, few):
    beast = zoo("llama")
    whole = updates(beast, torch.float32)
    options = {"method": "magnitude-prune", "density": 0.3, "weights": [1.0, -0.5, 2.0]}
    report = samerge.merge(None, beast.adapters, progress=False, **options).report
    pruned = {
        module: {
            name: tau * (tau.abs() >= tau.abs().flatten().sort(descending=True).values[round(0.3 * tau.numel()) - 1])
            for name, tau in own.items()
        }
        for module, own in whole.items()
    }
    check(report, whole, pruned)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_elementwise_against_its_masks(zoo, few, family, monkeypatch):
    import samerge.methods.elementwise as method

    made: list[Masks] = []
    monkeypatch.setattr(method, "Masks", lambda: made.append(Masks()) or made[0])
    beast = zoo(family)
    merged = samerge.merge(beast.base, beast.adapters, method="elementwise", density=0.3, progress=False)
    whole, names = updates(beast), list(beast.adapters)
    [masks] = made
    pruned: dict[str, dict[str, Tensor]] = {}
    for module, own in whole.items():
        transposed = merged.layouts[module].transposed
        for name, tau in own.items():
            stored = tau.T if transposed else tau
            keys = [key for key in masks._shapes if key[0] == names.index(name) and module in key[1]]
            assert len(keys) == 1
            mask = masks.rows(*keys[0], 0, stored.shape[0], torch.device("cpu"))
            pruned.setdefault(module, {})[name] = (stored * mask).T if transposed else stored * mask
    check(merged.report, whole, pruned)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "saliency", "density": 1.0},
        {"method": "paper", "density": 1.0},
        {"method": "elementwise", "density": 1.0},
        {"method": "ties", "density": 1.0},
        {"method": "dare", "density": 1.0},
    ],
    ids=str,
)
def test_without_pruning_after_is_before(llama, options):
    report = samerge.merge(llama.base, llama.adapters, progress=False, **options).report
    for layer in [*report.record.layers.values(), report.whole]:
        assert layer.sign_conflict_after == layer.sign_conflict
        assert layer.signs_left == (None if layer.sign_conflict is None else 1.0)


def test_rows_and_columns_of_zeros_have_no_signs(tmp_path):
    """They are zero in the adapters, whatever rounding the decomposition into components leaves there."""
    base = tiny.chain([40, 24])
    adapters = {}
    for name, seed in (("a", 1), ("b", 2)):
        [(A, B)] = tiny.chain_factors(base, 6, seed).values()
        A[:, [0, 3, 20]], B[[0, 1, 5, 9]] = 0, 0
        adapters[name] = tiny.write_adapter(tmp_path / name, {"layers.0": (A, B)})
    report = samerge.merge(None, adapters, method="even", density=1.0, progress=False).report
    assert report.whole.signs_left == 1.0
    assert report.whole.sign_conflict_after == report.whole.sign_conflict


@pytest.mark.parametrize("method", ["linear", "svd", "tsv", "knots-ties", "lora-lego"])
def test_what_prunes_no_components_and_no_elements_has_none(llama, method):
    merged = samerge.merge(None, llama.adapters, method=method, progress=False)
    found = merged.report.whole
    assert found.sign_conflict is not None
    assert found.sign_conflict_after is None
    assert found.signs_left is None
    assert "Opposite signs" not in model_card(merged.report.record)


def test_one_adapter_has_none(llama):
    report = samerge.merge(
        llama.base, {"math": llama.adapters["math"]}, method="saliency", density=0.5, progress=False
    ).report
    assert report.whole.sign_conflict is None
    assert report.whole.sign_conflict_after is None


def test_adapters_that_are_pruned_away(llama):
    """With one component for all adapters together no two are left to compare."""
    report = samerge.merge(None, llama.adapters, method="even", rank=1, progress=False).report
    shared = [layer for layer in report.record.layers.values() if layer.sign_conflict is not None]
    assert shared
    for layer in [*shared, report.whole]:
        assert layer.sign_conflict_after is None
        assert layer.signs_left == 0.0
    report.table()
    model_card(report.record)


def test_conflicts_are_counted_by_pairs():
    parts = [
        torch.tensor([1.0, -2.0, 0.0, 3.0]),
        torch.tensor([2.0, 2.0, 2.0, -2.0]),
        torch.tensor([0.0, 1.0, 1.0, 1.0]),
    ]
    assert conflict_among(parts) == Conflict(4, 8)
    assert conflict_among(parts[:1]) == conflict_among([]) == Conflict(0, 0)
    assert Conflict(0, 0).share is None
    assert Conflict(1, 4).share == 0.25


def test_blocks_come_in_the_order_of_the_model():
    layer = LayerRecord({}, 1.0, sign_conflict=0.5, sign_conflict_after=0.25, sampled=(10, 40))
    wide = LayerRecord({}, 1.0, sign_conflict=0.2, sampled=(30, 40))
    found = by_block({"h.10.q": layer, "h.9.q": layer, "h.9.v": wide, "head": layer})
    assert list(found) == ["9", "10", "head"]
    told = signs(found["9"])
    assert (told["sign_conflict"], told["sign_conflict_after"]) == (pytest.approx(0.275), 0.25)
    assert signs([LayerRecord({}, 1.0)])["sign_conflict"] is None
    assert list(by_block({"encoder.1.q": layer, "decoder.0.q": layer})) == ["decoder.0", "encoder.1"]


def test_report_and_card_tell_them(llama):
    report = samerge.merge(llama.base, llama.adapters, method="paper", density=0.4, progress=False).report
    before, after = (f"{one:.1%}" for one in (report.whole.sign_conflict, report.whole.sign_conflict_after))
    told = f"Opposite signs, where two adapters change one element: {before}, by chance 50%; after pruning {after}"
    assert told in report.table().note
    assert told in model_card(report.record)
