"""The merge of which nothing is named: the recipe `even`, in every way to ask for it, and no guess at another."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from alike import same_merge, same_record
from tiny import NAMES, Beast, chain, chain_factors, write_adapter, write_base
from typer.testing import CliRunner

import samerge
from samerge.cli import app
from samerge.merging.tuning.space import space_of
from samerge.report.report import read_report
from samerge.weights import FolderSource

#: What belongs to a selection, and so has no place where nothing is named; `density` would be TSV's own, too.
OF_A_SELECTION = {
    "density": 0.5,
    "iterations": 3,
    "basis": "native",
    "scope": "layer",
    "connectivity": "local",
    "residual": False,
    "agreement": "signed",
    "refresh": 0,
    "precision": "float64",
}
CHANGES = frozenset({"created", "timings"})


def told(report: samerge.Report) -> dict:
    """A record as plain JSON, without what differs from run to run."""
    return {key: value for key, value in json.loads(json.dumps(report.record)).items() if key not in CHANGES}


def same(one: samerge.MergedAdapter, other: samerge.MergedAdapter) -> None:
    """The same update, and the same record."""
    same_record(told(one.report), told(other.report))
    same_merge(one, other)


@pytest.fixture
def even(llama: Beast) -> samerge.MergedAdapter:
    return samerge.merge(llama.base, llama.adapters, recipe="even", progress=False)


def test_merge(beast: Beast) -> None:
    merged = samerge.merge(beast.base, beast.adapters, progress=False)
    same(merged, samerge.merge(beast.base, beast.adapters, recipe="even", progress=False))
    record = merged.report.record
    assert (record["recipe"], record.method) == ("even", "tsv")
    assert record.output.rank == max(item.rank for item in record.inputs)
    links = ("balance", "selection", "aggregation", "spectrum", "scaling")
    assert [record.options[link] for link in links] == ["norm", "none", "tsv", "flat", "unit"]
    for factors in merged.factors.values():
        s = torch.linalg.svdvals((factors.B @ factors.A).double())
        s = s[s > 1e-3 * s.max()] if s.any() else s
        torch.testing.assert_close(s, s.mean().expand_as(s), rtol=1e-3, atol=0)


def test_the_other_ways_to_ask(llama: Beast, even: samerge.MergedAdapter, tmp_path: Path) -> None:
    same(samerge.compare(llama.base, llama.adapters, {"mine": {}}, progress=False).merged["mine"], even)
    out = tmp_path / "shell"
    words = [word for name in NAMES for word in ("--adapter", f"{name}={llama.adapters[name]}")]
    done = CliRunner().invoke(app, ["merge", "--base", str(llama.base), *words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "even, tsv: rank 20" in done.output
    same_record(told(read_report(out)), told(even.report))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"base": str(llama.base), "adapters": llama.adapters, "out": str(tmp_path / "file")}))
    assert CliRunner().invoke(app, ["run", str(recipe)]).exit_code == 0
    same_record(told(read_report(tmp_path / "file")), told(even.report))


def test_on_a_live_model(llama: Beast) -> None:
    model = llama.peft_model()
    merged = samerge.add_weighted_adapter(model, list(NAMES), progress=False)
    again = samerge.add_weighted_adapter(model, list(NAMES), adapter_name="again", recipe="even", progress=False)
    same(merged, again)
    assert merged.report.record["recipe"] == "even"


def test_the_untuned_merge_of_a_search(llama: Beast, even: samerge.MergedAdapter) -> None:
    pytest.importorskip("optuna")
    seen = []
    samerge.tune(llama.base, llama.adapters, lambda m: seen.append(m) or 1.0, trials=2, progress=False)
    same(seen[0], even)
    assert [d.name for d in space_of(None, {}, ["a"]).dimensions] == ["scaling", "weights.a"]  # no density to search


def test_explicit_options_win(llama: Beast) -> None:
    for options in ({"rank": 5}, {"balance": "none", "spectrum": "kept"}, {"scaling": "auto:1.1"}, {"svd_rank": 4}):
        merged = samerge.merge(None, llama.adapters, progress=False, **options)
        same(merged, samerge.merge(None, llama.adapters, recipe="even", progress=False, **options))
    measured = {"basis": "native", "scaling": "interference"}  # there the basis is that of the measuring
    assert samerge.merge(None, llama.adapters, progress=False, **measured).report.record.options["basis"] == "native"


def test_no_weight_of_the_base_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base says which layers there are; a family that no graph is known of will do, and so will none."""
    weights = chain([6, 5, 4])
    base = write_base(tmp_path / "base", weights, model_type="nobody-knows")
    adapters = {name: write_adapter(tmp_path / name, chain_factors(weights, 2, n)) for n, name in enumerate("ab")}
    monkeypatch.setattr(FolderSource, "read", lambda *given: pytest.fail(f"read {given[1:]}"))
    with_base = samerge.merge(base, adapters, progress=False)
    without = samerge.merge(None, adapters, progress=False)
    same_merge(without, with_base)
    assert not any(layer.outside for layer in with_base.report.record.layers.values())
    wrong = write_adapter(tmp_path / "wrong", chain_factors(chain([7, 5, 4]), 2, 3))
    with pytest.raises(samerge.BaseModelError, match=r"layers\.0"):
        samerge.merge(base, {"wrong": wrong}, progress=False)


def test_layers_of_the_base_that_no_adapter_has_are_filled_in(llama: Beast) -> None:
    only = {"math": llama.adapters["math"]}
    assert set(samerge.merge(llama.base, only, progress=False).factors) >= set(samerge.merge(None, only).factors)


def test_its_own_truncation_is_told_but_is_no_warning(llama: Beast) -> None:
    adapters = {name: llama.adapters[name] for name in ("math", "code")}
    merged = samerge.merge(None, adapters, progress=False)
    assert max(layer.lost for layer in merged.report.record.layers.values()) > 0.2
    assert merged.report.warnings == []
    assert "the truncation lost" in str(merged.report.table().caption)
    asked = samerge.merge(None, adapters, rank=4, progress=False)
    assert any("truncation to svd_rank lost" in warning for warning in asked.report.warnings)


@pytest.mark.parametrize("name", OF_A_SELECTION)
def test_an_option_of_a_selection_says_the_way_out(llama: Beast, name: str) -> None:
    value = OF_A_SELECTION[name]
    words = rf"^{name}={value!r} is for merges .* recipe='even', selects none: .* method='saliency' .--method saliency"
    recipes = (None,) if name == "density" else (None, "even")  # where the recipe is named, it is TSV's own density
    for base, recipe in itertools.product((llama.base, None), recipes):
        with pytest.raises(samerge.OptionError, match=words):
            samerge.merge(base, llama.adapters, recipe=recipe, **{name: value})
    model = llama.peft_model()
    with pytest.raises(samerge.OptionError, match="combination_type='saliency'"):
        samerge.add_weighted_adapter(model, list(NAMES), **{name: value})
    assert "merged" not in model.peft_config
    assert name in samerge.compare(None, llama.adapters, {"mine": {name: value}}).failed["mine"]
    with pytest.raises(samerge.OptionError, match=words):
        space_of(None, {name: value}, NAMES)
    for recipe in recipes:
        with pytest.raises(samerge.OptionError, match=f"search '{name}': {name} is for merges that select"):
            space_of({name: [value]}, {"recipe": recipe}, NAMES)


def test_in_a_search_a_basis_may_belong_to_weights_or_scaling() -> None:
    for search, fixed in (
        (None, {"weights": "auto", "scaling": 0.5}),
        ({"scaling": [1.0, "interference:layer"]}, {}),
        ({"selection": [None, "norm"], "scaling": (0.1, 2.0)}, {}),
    ):
        chosen = {"scaling": (0.1, 2.0), "svd_rank": (2, 4)} if search is None else search
        assert space_of(chosen, {"basis": "native", **fixed}, NAMES).fixed["basis"] == "native"
    for fixed, message in (
        ({}, "recipe='even', selects none"),
        ({"method": "linear"}, "method='linear' has no option"),
    ):
        with pytest.raises(samerge.OptionError, match=message):
            space_of({"scaling": (0.1, 2.0), "weights": [None, "nan"]}, {"basis": "native", **fixed}, NAMES)


def test_a_study_of_another_default_is_refused(llama: Beast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was begun when the default was no recipe; the default by its name is the same search."""
    pytest.importorskip("optuna")

    def tuned(**options: object) -> samerge.TuneResult:
        same = {"search": {"scaling": (0.1, 2.0)}, "trials": 1, "score_name": "one", "progress": False}
        return samerge.tune(llama.base, llama.adapters, lambda merged: 1.0, **same, **options)

    file = tmp_path / "study.jsonl"
    tuned(storage=file)
    tuned(storage=file, recipe="even")
    monkeypatch.setattr("samerge.methods.chain.DEFAULT_RECIPE", "paper")
    with pytest.raises(samerge.OptionError, match=r"another search: options\.recipe was even and is paper"):
        tuned(storage=file)
    monkeypatch.undo()
    tuned(storage=tmp_path / "saliency.jsonl", method="saliency")
    with pytest.raises(samerge.OptionError, match=r"options\.recipe was not given and is even"):
        tuned(storage=tmp_path / "saliency.jsonl")


def test_a_link_that_was_named_has_no_such_option(llama: Beast) -> None:
    with pytest.raises(samerge.OptionError, match=r"^method='tsv' has no option 'iterations' .given iterations=3."):
        samerge.merge(None, llama.adapters, recipe="even", aggregation="tsv", iterations=3)


def test_the_way_out_is_one(llama: Beast) -> None:
    for name, value in OF_A_SELECTION.items():
        more = {} if name in ("density", "connectivity", "residual") else {"density": 0.5}
        merged = samerge.merge(llama.base, llama.adapters, method="saliency", progress=False, **{name: value}, **more)
        assert merged.report.record.method == "saliency"
    both = samerge.merge(llama.base, llama.adapters, recipe="even", method="saliency", iterations=3, progress=False)
    assert both.report.record.method == "saliency+tsv"


def test_what_else_names_none_of_it(llama: Beast) -> None:
    """A recipe without links is one for saliency, which reads the base; a selection alone is followed by the sum."""
    with pytest.raises(samerge.OptionError, match="reads the base model"):
        samerge.merge(None, llama.adapters, recipe="paper")
    with pytest.raises(samerge.OptionError, match="reads the base model"):
        samerge.merge(None, llama.adapters, method="saliency")
    assert samerge.merge(None, llama.adapters, selection="norm").report.record.options["aggregation"] == "sum"


def test_the_card_says_what_was_done(llama: Beast, tmp_path: Path) -> None:
    card = (samerge.merge(None, llama.adapters, progress=False).save(tmp_path / "out") / "README.md").read_text()
    for words in ("mean norm, layer by layer", "Gargiulo et al., 2024", "Marczak et al., 2025", "the recipe `even`"):
        assert words in card
    assert "Outside the flow graph" not in card
    both = samerge.merge(llama.base, llama.adapters, recipe="even", method="saliency", density=0.5, iterations=1)
    card = (both.save(tmp_path / "both") / "README.md").read_text()
    assert "selected by `saliency`, combined by `tsv`" in card
    assert "arxiv.org/abs/2606.00511" in card
