"""Sign conflicts before and after pruning, against dense pruned updates whose signs are counted one by one."""

from __future__ import annotations

import itertools

import pytest
import tiny
import torch
from torch import Tensor

import samerge
from samerge.errors import OptionError
from samerge.linalg.sign_conflicts import Conflict, conflict_among, sample_rows
from samerge.merging.inputs import open_adapters
from samerge.report.by_layer import conflicts_by_block
from samerge.report.card import model_card
from samerge.report.report import Report
from samerge.saliency.element_masks import Masks

SELECTIONS = ["saliency", "sensitivity", "agreement", "norm", "random:3"]
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
    for module, layer in report.record["layers"].items():
        before, after = list(whole[module].values()), list(pruned[module].values())
        height, width = before[0].shape
        rows = sample_rows((height, width)).tolist()
        assert layer["sampled"] == [len(rows) * width, height * width]
        (opposed, compared), (against, left) = naive(before, rows), naive(after, rows)
        expected = (
            opposed / compared if compared else None,
            against / left if left else None,
            left / compared if compared else None,
        )
        assert (layer["sign_conflict"], layer["sign_conflict_after"], layer["signs_left"]) == expected, module
        if compared:
            totals.append((len(rows) * width, *expected))
    looked = sum(size for size, *_ in totals)
    found = report.diagnostics
    for place, key in enumerate(("sign_conflict", "sign_conflict_after", "signs_left"), start=1):
        assert found[key] == pytest.approx(sum(row[0] * row[place] for row in totals) / looked)


@pytest.mark.parametrize("basis", ["svd", "native"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_selections_against_dense_updates(zoo, few, selection, basis):
    beast = zoo("llama")
    options = {"selection": selection, "density": 0.4, "iterations": 3, "basis": basis, "weights": [1.0, -0.5, 2.0]}
    report = samerge.merge(beast.base, beast.adapters, progress=False, **options).report
    pruned: dict[str, dict[str, Tensor]] = {}
    for adapter in open_adapters(None, beast.adapters):
        for module, own in adapter.modules.items():
            factors = own.load().to(dtype=torch.float64)
            kept = report.record["layers"][module]["experts"][adapter.name]["kept"]
            if basis == "svd":
                u, s, vh = torch.linalg.svd(factors.delta(), full_matrices=False)
                part = (u[:, kept] * s[kept]) @ vh[kept]
            else:
                part = factors.scale * factors.B[:, kept] @ factors.A[kept]
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
        *({"selection": name, "density": 1.0} for name in SELECTIONS),
        {"selection": "norm", "density": 1.0, "balance": "norm", "aggregation": "tsv"},
        {"method": "elementwise", "density": 1.0},
        {"method": "ties", "density": 1.0},
        {"method": "dare", "density": 1.0},
    ],
    ids=str,
)
def test_without_pruning_after_is_before(llama, options):
    report = samerge.merge(llama.base, llama.adapters, progress=False, **options).report
    for layer in [*report.record["layers"].values(), report.diagnostics]:
        assert layer["sign_conflict_after"] == layer["sign_conflict"]
        assert layer["signs_left"] == (None if layer["sign_conflict"] is None else 1.0)


def test_rows_and_columns_of_zeros_have_no_signs(tmp_path):
    """They are zero in the adapters, whatever rounding the decomposition into components leaves there."""
    base = tiny.chain([40, 24])
    adapters = {}
    for name, seed in (("a", 1), ("b", 2)):
        [(A, B)] = tiny.chain_factors(base, 6, seed).values()
        A[:, [0, 3, 20]], B[[0, 1, 5, 9]] = 0, 0
        adapters[name] = tiny.write_adapter(tmp_path / name, {"layers.0": (A, B)})
    report = samerge.merge(None, adapters, selection="norm", density=1.0, progress=False).report
    assert report.diagnostics["signs_left"] == 1.0
    assert report.diagnostics["sign_conflict_after"] == report.diagnostics["sign_conflict"]


@pytest.mark.parametrize("method", ["linear", "svd", "tsv", "knots-ties", "lora-lego"])
def test_what_prunes_no_components_and_no_elements_has_none(llama, method):
    merged = samerge.merge(None, llama.adapters, method=method, progress=False)
    found = merged.report.diagnostics
    assert found["sign_conflict"] is not None
    assert found["sign_conflict_after"] is None
    assert found["signs_left"] is None
    assert merged.report.pruned_conflict is None
    assert "what pruning left" not in model_card(merged.report.record)


def test_one_adapter_has_none(llama):
    report = samerge.merge(
        llama.base, {"math": llama.adapters["math"]}, method="saliency", density=0.5, progress=False
    ).report
    assert report.diagnostics["sign_conflict"] is None
    assert report.diagnostics["sign_conflict_after"] is None
    with pytest.raises(OptionError, match="no sign conflicts"):
        report.picture("conflicts.png")


def test_adapters_that_are_pruned_away(llama):
    """With one component for all adapters together no two are left to compare."""
    report = samerge.merge(None, llama.adapters, selection="norm", rank=1, progress=False).report
    shared = [layer for layer in report.record["layers"].values() if layer["sign_conflict"] is not None]
    assert shared
    for layer in [*shared, report.diagnostics]:
        assert layer["sign_conflict_after"] is None
        assert layer["signs_left"] == 0.0
    report.table()
    model_card(report.record)


def test_the_last_to_prune_counts(llama):
    def found(**options):
        report = samerge.merge(llama.base, llama.adapters, density=0.4, iterations=2, progress=False, **options).report
        return [layer["sign_conflict_after"] for layer in report.record["layers"].values()], report.diagnostics

    alone, _ = found(selection="norm")
    assert found(selection="norm", aggregation="tsv")[0] == alone
    trimmed, whole = found(selection="norm", aggregation="ties", method_options={"density": 0.3})
    assert trimmed != alone
    assert whole["signs_left"] < 0.5


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
    layer = {"sign_conflict": 0.5, "sign_conflict_after": 0.25, "sampled": [10, 40]}
    wide = {"sign_conflict": 0.2, "sign_conflict_after": None, "sampled": [30, 40]}
    found = conflicts_by_block({"h.10.q": layer, "h.9.q": layer, "h.9.v": wide, "head": layer, "old": {}})
    assert list(found) == ["9", "10", "head", "old"]
    assert found["9"] == {"sign_conflict": pytest.approx(0.275), "sign_conflict_after": 0.25}
    assert found["old"] == {"sign_conflict": None, "sign_conflict_after": None}
    assert list(conflicts_by_block({"encoder.1.q": layer, "decoder.0.q": layer})) == ["decoder.0", "encoder.1"]


def test_report_and_card_tell_them(llama, tmp_path):
    report = samerge.merge(llama.base, llama.adapters, method="saliency", density=0.4, progress=False).report
    found = report.diagnostics
    before, after = (f"{found[key]:.1%}" for key in ("sign_conflict", "sign_conflict_after"))
    assert f"{before} before pruning, {after} after it" in report.table().caption
    assert f"{before} of the signs of two are opposite, and {after} among what pruning left" in model_card(
        report.record
    )
    assert report.picture(tmp_path / "signs.png").read_bytes().startswith(b"\x89PNG")
