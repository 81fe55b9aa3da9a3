"""The merge of which nothing is named is one merge, whichever way it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alike import same_merge, same_updates
from safetensors.torch import load_file
from tiny import NAMES, Beast, chain, chain_factors, write_adapter, write_base
from typer.testing import CliRunner

import samerge
from samerge.cli import app
from samerge.merging.tuning.space import space_of
from samerge.report.report import read_report

OPTIONS = {"method": "saliency", "balance": "norm", "scaling": 1.0, "iterations": 1, "connectivity": "flow"}


def same(one: samerge.MergedAdapter, other: samerge.MergedAdapter) -> None:
    """The same update, by the same options."""
    assert one.report.record.method == other.report.record.method
    assert one.report.record.options == other.report.record.options
    same_merge(one, other)


def same_files(folder: Path, merged: samerge.MergedAdapter) -> None:
    record = read_report(folder).record
    assert (record.method, record.options) == (merged.report.record.method, merged.report.record.options)
    same_updates(load_file(folder / "adapter_model.safetensors"), merged.tensors())


@pytest.fixture
def default(llama: Beast) -> samerge.MergedAdapter:
    return samerge.merge(llama.base, llama.adapters, progress=False)


def test_it_is_saliency_at_the_largest_rank(beast: Beast) -> None:
    record = samerge.merge(beast.base, beast.adapters, progress=False).report.record
    assert {"method": record.method, **record.options}.items() >= OPTIONS.items()
    assert record.output.rank == max(item.rank for item in record.inputs)


def test_compare_shell_and_recipe_file(llama: Beast, default: samerge.MergedAdapter, tmp_path: Path) -> None:
    found = samerge.compare(llama.base, llama.adapters, {"mine": {}, "named": {"method": "saliency"}}, progress=False)
    same(found.merged["mine"], default)
    same(found.merged["named"], default)
    words = [word for name in NAMES for word in ("--adapter", f"{name}={llama.adapters[name]}")]
    done = CliRunner().invoke(app, ["merge", "--base", str(llama.base), *words, "--out", str(tmp_path / "shell")])
    assert done.exit_code == 0, done.output
    same_files(tmp_path / "shell", default)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"base": str(llama.base), "adapters": llama.adapters, "out": str(tmp_path / "file")}))
    assert CliRunner().invoke(app, ["run", str(recipe)]).exit_code == 0
    same_files(tmp_path / "file", default)


def test_on_a_live_model(llama: Beast, default: samerge.MergedAdapter) -> None:
    model = llama.peft_model()
    same(samerge.add_weighted_adapter(model, list(NAMES), progress=False), default)
    again = samerge.add_weighted_adapter(model, list(NAMES), adapter_name="again", combination_type="saliency")
    same(again, default)


def test_the_untuned_merge_of_a_search(llama: Beast, default: samerge.MergedAdapter) -> None:
    pytest.importorskip("optuna")
    seen: list[samerge.MergedAdapter] = []
    samerge.tune(llama.base, llama.adapters, lambda m: seen.append(m) or 1.0, trials=2, progress=False)
    same(seen[0], default)
    assert list(space_of(None, {}, ["a"]).search) == ["scaling", "density", "weights.a"]


def test_every_face_takes_the_same_text(llama: Beast, tmp_path: Path) -> None:
    """rank=16.0, "16", svd_rank="none" and the like mean the same in all of them."""
    adapters = {name: llama.adapters[name] for name in ("math", "code")}
    expected = samerge.merge(None, adapters, method="ties", density=0.5, rank=3, progress=False)
    same(samerge.merge(None, adapters, method="ties", density="0.5", rank=3.0, svd_rank="none"), expected)
    found = samerge.compare(None, adapters, ["ties:density=0.5,rank=3.0,svd-rank=none"], progress=False)
    same(next(iter(found.merged.values())), expected)
    words = [word for name in adapters for word in ("-a", f"{name}={adapters[name]}")]
    more = ["-m", "ties", "--density", "0.5", "--rank", "3.0", "--svd-rank", "none", "-o", str(tmp_path / "shell")]
    done = CliRunner().invoke(app, ["merge", *words, *more])
    assert done.exit_code == 0, done.output
    same_files(tmp_path / "shell", expected)
    options = {"method": "ties", "density": "0.5", "rank": 3.0, "svd_rank": "none"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"adapters": adapters, "out": str(tmp_path / "file"), **options}))
    assert CliRunner().invoke(app, ["run", str(recipe)]).exit_code == 0
    same_files(tmp_path / "file", expected)
    live = samerge.add_weighted_adapter(
        llama.peft_model(), list(adapters), combination_type="ties", density="0.5", svd_rank="3.0", progress=False
    )
    same_updates(live.tensors(), expected.tensors())


def test_layers_of_the_base_that_no_adapter_has_are_filled_in(llama: Beast) -> None:
    only = {"math": llama.adapters["math"]}
    assert set(samerge.merge(llama.base, only, progress=False).factors) >= set(samerge.merge(None, only).factors)


def test_adapters_that_do_not_fit_the_base_are_refused(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", chain([6, 5, 4]))
    wrong = write_adapter(tmp_path / "wrong", chain_factors(chain([7, 5, 4]), 2, 3))
    with pytest.raises(samerge.BaseModelError, match=r"layers\.0"):
        samerge.merge(base, {"wrong": wrong}, progress=False)
