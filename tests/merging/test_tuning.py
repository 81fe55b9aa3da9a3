"""`samerge.tune`: known optima are found, a search goes on, a model stays as it was."""

from __future__ import annotations

import math
import time

import pytest
import torch
from peft import PeftModel
from test_live import assert_same, state
from tiny import NAMES, Beast

import samerge
from samerge.errors import AdapterError, OptionError, OutputExistsError, TuningError
from samerge.merging.tuning.on_model import CANDIDATE, lent
from samerge.merging.tuning.space import space_of
from samerge.report.report import read_report

pytest.importorskip("optuna")
LINEAR = {"method": "linear", "progress": False}


def size(merged: samerge.MergedAdapter) -> float:
    """||M||_F over all modules, from the dense updates."""
    return math.sqrt(sum(float(merged.delta(module).square().sum()) for module in merged.factors))


def tune(beast: Beast, score, **options):
    return samerge.tune(beast.base, beast.adapters, score, **(LINEAR | options))


def points(result: samerge.TuneResult) -> list[tuple]:
    return [(trial.options, trial.score, trial.state) for trial in result.trials]


# --- optima that are known ---


def test_lambda_whose_norm_is_wanted(llama: Beast) -> None:
    unit = size(samerge.merge(llama.base, llama.adapters, method="linear", scaling=1.0))
    result = tune(llama, lambda m: -((size(m) / unit - 0.37) ** 2), search={"scaling": (0.1, 2.0)}, trials=40)
    assert result.best["scaling"] == pytest.approx(0.37, abs=0.03)
    assert result.default_score == pytest.approx(-(0.63**2), rel=1e-4)
    assert result.score > -1e-3


def test_weights_of_a_quadratic(llama: Beast) -> None:
    wanted = {"math": 1.5, "code": 0.4, "talk": 1.0}

    def loss(merged: samerge.MergedAdapter) -> float:
        weights = {item.name: item.weight for item in merged.report.record.inputs}
        return sum((weights[name] - wanted[name]) ** 2 for name in NAMES)

    result = tune(llama, loss, search={"weights": (0.0, 2.0)}, trials=45, direction="minimize")
    assert result.score < 0.1 < 0.6 < result.default_score
    assert set(result.best["weights"]) == set(NAMES)
    assert min(t.score for t in result.trials) == result.score


def test_untuned_merge_comes_first_and_wins_ties(llama: Beast) -> None:
    first = []
    result = tune(llama, lambda m: first.append(m) or 1.0, trials=4, method="saliency", iterations=2)
    plain = samerge.merge(llama.base, llama.adapters, method="saliency", iterations=2)
    assert first[0].report.record.options == plain.report.record.options
    for module in plain.factors:
        for other in (first[0], result.merged):
            torch.testing.assert_close(plain.delta(module), other.delta(module), rtol=1e-5, atol=1e-6)
    assert result.best == {"method": "saliency", "iterations": 2}
    assert result.trials[0].options == {}
    assert set(result.trials[1].options) == {"scaling", "density", *(f"weights.{name}" for name in NAMES)}


def test_best_options_give_the_best_merge(llama: Beast) -> None:
    result = tune(llama, size, trials=6, search={"density": (0.1, 1.0), "scaling": (0.1, 2.0)}, method="ties")
    again = samerge.merge(llama.base, llama.adapters, **result.best)
    for module in again.factors:
        torch.testing.assert_close(again.delta(module), result.merged.delta(module), rtol=1e-5, atol=1e-6)
    assert size(again) == pytest.approx(result.score, rel=1e-5)


# --- what is searched ---


def test_methods_with_options_of_their_own(llama: Beast) -> None:
    search = {"method": ["tsv", "wudi", "ties"], "mu": (0.01, 1.0), "density": (0.2, 1.0), "svd_rank": (2, 9)}
    result = tune(llama, size, search=search, trials=14, dtype="float32", method="saliency", iterations=3)
    for trial in result.trials[1:]:
        assert trial.state == "complete", trial.error
        own = {"tsv": {"density"}, "wudi": {"mu"}, "ties": {"density"}}[trial.options["method"]]
        assert set(trial.options) == {"method", "svd_rank"} | own
        assert isinstance(trial.options["svd_rank"], int)
    assert len({trial.options["method"] for trial in result.trials[1:]}) > 1


def test_default_search_leaves_out_what_the_method_lacks() -> None:
    def names(**fixed) -> list[str]:
        return list(space_of(None, fixed, ["a", "b"]).search)

    assert names(method="linear") == ["scaling", "weights.a", "weights.b"]
    assert names(method="saliency") == names() == ["scaling", "density", "weights.a", "weights.b"]
    assert names(method="saliency", rank=8) == ["scaling", "weights.a", "weights.b"]
    space = space_of({"weights.a": (0, 1)}, {"method": "linear", "weights": [2, 3]}, ["a", "b"])
    assert space.options({"weights.a": 0.5})["weights"] == {"a": 0.5, "b": 3.0}
    assert space.options({})["weights"] == [2, 3]
    words = space_of({"weights": (0, 1)}, {"method": "linear", "weights": "nan"}, ["a", "b"])
    assert words.options({}) == {"method": "linear", "weights": "nan"}
    assert words.options({"weights.a": 0.5, "weights.b": 1.0})["weights"] == {"a": 0.5, "b": 1.0}


def test_text_means_what_it_means_elsewhere() -> None:
    search = {"scaling": ("0.1", "2"), "svd_rank": ["none", "8", 16.0], "residual": ["true", False]}
    found = space_of(search, {}, ["a"]).search
    assert found["scaling"] == {"low": 0.1, "high": 2.0, "whole": False, "log": True}
    assert found["svd_rank"] == [None, 8, 16]
    assert found["residual"] == [True, False]
    assert space_of({"rank": (2, 9)}, {}, ["a"]).search["rank"] == {"low": 2, "high": 9, "whole": True, "log": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 2}, "no option 'iterations'"),
        ({"search": {"iterations": (1, 3)}}, "no option 'iterations'"),
        ({"search": {"skaling": (0, 1)}}, "did you mean 'scaling'"),
        ({"search": {"scaling": (2.0, 1.0)}}, "the lower bound, 2, must be below"),
        ({"search": {"scaling": 3}}, "a pair of bounds"),
        ({"search": {"scaling": (0.1, 1.0, "odd")}}, "a pair of bounds"),
        ({"search": {"scaling": ("auto", 2)}}, "finite number"),
        ({"search": {"svd_rank": (1.5, 4)}}, "whole number"),
        ({"search": {"rank": [0]}}, "whole number"),
        ({"search": {"weights.maths": (0, 1)}}, "no adapter is called so"),
        ({"search": {"weights.math": (0, 1)}, "weights": "nan"}, r"search those of \['code', 'talk'\]"),
        ({"search": {"scaling": []}}, "a pair of bounds"),
        ({"search": {}}, "search is empty"),
        ({"search": {"method": ["tsv", "no"]}}, "'no' is not known"),
        ({"search": {"method": "tsv"}}, "is no list of names"),
        ({"densty": 0.5, "method": "ties"}, "did you mean 'density'"),
        ({"rank": 0}, "whole number"),
        ({"mu": 1}, "no option 'mu'"),
        ({"dtype": "float31"}, "dtype='float31'"),
        ({"trials": 0}, "at least 1"),
        ({"search_seed": -1}, "search_seed=-1 must be a whole number of at least 0"),
        ({"timeout": 0}, "above 0"),
        ({"direction": "up"}, "maximize, minimize"),
    ],
)
def test_bad_input_is_told_before_any_merge(llama: Beast, change, message) -> None:
    with pytest.raises(OptionError, match=message):
        tune(llama, lambda m: pytest.fail("scored"), **change)


# --- going on ---


@pytest.mark.parametrize("storage", ["study.jsonl", "sqlite:///{}/study.db"])
def test_interrupted_search_keeps_its_trials_and_goes_on(llama: Beast, tmp_path, storage: str) -> None:
    calls = []

    def stopped(merged):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return size(merged)

    kept = storage.format(tmp_path) if "://" in storage else tmp_path / storage
    same = {"search": {"scaling": (0.1, 2.0), "weights": (0.0, 2.0)}, "storage": kept}
    with pytest.raises(KeyboardInterrupt):
        tune(llama, stopped, trials=6, **same)
    scored = []
    gone_on = tune(llama, lambda m: scored.append(1) or size(m), trials=6, **same)
    assert len(scored) == 3
    assert len(gone_on.trials) == 6
    assert [trial.options == {} for trial in gone_on.trials] == [True] + [False] * 5
    values = [trial.options["scaling"] for trial in gone_on.trials[1:]]
    assert len(set(values)) == 5  # it did not begin with the same draws again
    done = tune(llama, lambda m: pytest.fail("scored"), trials=6, **same)
    assert points(done) == points(gone_on)


def test_seed_decides(llama: Beast) -> None:
    search = {"scaling": (0.1, 2.0)}
    one, two, other = (tune(llama, size, search=search, trials=4, search_seed=seed) for seed in (1, 1, 2))
    assert [trial.options for trial in one.trials] == [trial.options for trial in two.trials]
    assert [trial.options for trial in one.trials] != [trial.options for trial in other.trials]


def test_study_of_another_search_is_refused(llama: Beast, tmp_path) -> None:
    file = tmp_path / "study.jsonl"
    same = {"search": {"scaling": (0.1, 2.0)}, "storage": file, "trials": 2}
    tune(llama, size, **same)
    for change, message in (
        ({"search": {"scaling": (0.1, 3.0)}}, "another search,? with another search"),
        ({"method": "svd"}, "another options"),
        ({"dtype": "bfloat16"}, "another options"),
        ({"direction": "minimize"}, "another direction"),
    ):
        with pytest.raises(OptionError, match=message):
            tune(llama, size, **(same | change))
    two = {name: llama.adapters[name] for name in NAMES[:2]}
    with pytest.raises(OptionError, match="another adapters"):
        samerge.tune(llama.base, two, size, **(LINEAR | same))


def test_files_that_are_no_study_stay_as_they_are(llama: Beast, tmp_path) -> None:
    for name, content in (("notes.md", "# my notes\n"), ("half.md", "no line end"), ("data.jsonl", '{"a": 1}\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(OptionError, match="cannot be opened"):
            tune(llama, size, storage=tmp_path / name)
        assert (tmp_path / name).read_text() == content
    for place in (tmp_path / "none" / "study", tmp_path):
        with pytest.raises(OptionError, match="cannot be opened"):
            tune(llama, size, storage=place)


def test_timeout_begins_no_further_trial(llama: Beast) -> None:
    result = tune(llama, lambda m: time.sleep(0.2) or 1.0, trials=50, timeout=0.5)
    assert 1 <= len(result.trials) <= 5


def test_timeout_counts_from_the_untuned_trial_on(llama: Beast) -> None:
    assert len(tune(llama, lambda m: time.sleep(0.3) or 1.0, trials=9, timeout=0.2).trials) == 1


def test_a_rank_by_its_other_name_leaves_the_density_alone(llama: Beast) -> None:
    result = tune(llama, size, trials=3, method="even", svd_rank=4)
    assert [trial.state for trial in result.trials] == ["complete"] * 3
    assert not any("density" in trial.options for trial in result.trials)
    assert result.merged.report.record.output.rank == 4


# --- failures ---


def test_failing_trials_are_told_and_the_search_goes_on(llama: Beast) -> None:
    answers = iter([1.0, float("nan"), ValueError("no\nluck"), None, float("inf"), torch.tensor(3.0), 2.0])

    def score(merged):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    seen = []
    result = tune(llama, score, trials=7, on_trial=seen.append)
    assert [trial.state for trial in result.trials] == ["complete", *["failed"] * 4, "complete", "complete"]
    assert seen == list(result.trials)
    errors = [trial.error for trial in result.trials]
    assert errors[1] == "the score is nan, which is not finite"
    assert errors[2].startswith("the score function raised ValueError: no luck (test_tuning.py, line ")
    assert errors[3] == "the score returned None, which is no number"
    assert (result.score, result.default_score) == (3.0, 1.0)


def test_untuned_merge_may_fail(llama: Beast) -> None:
    answers = iter([ValueError("no luck"), 1.0, 2.0])

    def score(merged):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    result = tune(llama, score, trials=3)
    assert "no luck" in result.trials[0].error
    assert result.default_score is None
    assert result.score == 2.0


def test_all_trials_failed_and_are_tried_anew(llama: Beast, tmp_path) -> None:
    def broken(merged):
        raise RuntimeError("broken")

    same = {"search": {"scaling": (0.1, 2.0)}, "storage": tmp_path / "study.jsonl", "trials": 3}
    with pytest.raises(
        TuningError, match=r"all 3 trials failed, 3 times: the score function raised RuntimeError: broken \(test_tuning"
    ):
        tune(llama, broken, **same)
    mended = tune(llama, size, **same)
    assert sum(trial.state == "complete" for trial in mended.trials) == 3
    assert mended.default_score == pytest.approx(size(samerge.merge(llama.base, llama.adapters, method="linear")))


def test_a_missing_base_is_told_before_any_trial(llama: Beast) -> None:
    told = []
    with pytest.raises(OptionError, match="reads the base model; give base"):
        samerge.tune(None, llama.adapters, size, method="saliency", on_trial=told.append, trials=2, progress=False)
    assert not told
    some = {"search": {"method": ["paper", "linear"]}, "method": None, "progress": False, "search_seed": 1}
    assert samerge.tune(None, llama.adapters, size, **some, trials=4).score > 0


# --- on a live model ---


def test_live_model_is_as_it_was(llama: Beast) -> None:
    model = llama.peft_model()
    model.base_model.set_adapter(["math", "code"])
    model.train().requires_grad_(False)  # PEFT trains what is made active
    next(model.parameters()).requires_grad_(True)
    before, names = state(model), list(model.state_dict())
    outputs = []

    def score(live):
        assert live is model
        assert live.active_adapters == [CANDIDATE]
        outputs.append(llama.logits(live))
        if len(outputs) == 3:
            live.eval()
            raise RuntimeError("in the middle")
        return float(outputs[-1].square().mean())

    result = tune(llama, score, model=model, trials=5)
    assert [trial.state for trial in result.trials] == ["complete"] * 2 + ["failed"] + ["complete"] * 2
    assert_same(before, state(model))
    assert list(model.state_dict()) == names
    assert list(model.peft_config) == list(NAMES)
    assert not torch.allclose(outputs[0], outputs[1])
    model.eval()
    result.merged.apply_to(model, "best")
    model.set_adapter("best")
    assert float(llama.logits(model).square().mean()) == pytest.approx(result.score, rel=1e-5)


def test_live_model_after_an_interrupt_and_with_new_modules(llama: Beast) -> None:
    model = PeftModel.from_pretrained(llama.model(), llama.adapters["math"], adapter_name="math").eval()
    before, names = state(model), list(model.state_dict())
    kinds = {name: type(module) for name, module in model.named_modules()}

    def interrupted(live):
        assert CANDIDATE in live.peft_config
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(llama, interrupted, model=model)  # the others adapt modules that math does not
    assert_same(before, state(model))
    assert list(model.state_dict()) == names
    assert {name: type(module) for name, module in model.named_modules()} == kinds


def test_base_and_adapters_from_the_live_model(llama: Beast) -> None:
    model = llama.peft_model()
    before = state(model)
    options = LINEAR | {"model": model, "trials": 3, "search": {"scaling": (0.1, 2.0)}}
    live = samerge.tune(model, list(NAMES), lambda m: float(llama.logits(m).mean()), **options)
    files = samerge.tune(llama.base, llama.adapters, lambda m: float(llama.logits(m).mean()), **options)
    assert [t.score for t in live.trials] == pytest.approx([t.score for t in files.trials], rel=1e-5)
    assert_same(before, state(model))


def test_models_that_would_not_hear_a_candidate(llama: Beast) -> None:
    def refuse(model, message, kind=AdapterError):
        with pytest.raises(kind, match=message):
            tune(llama, lambda m: 1.0, model=model, trials=1)

    refuse(llama.model(), "not a PeftModel")
    model = llama.peft_model()
    model.merge_adapter()
    refuse(model, r"merged into .* model.unmerge_adapter\(\)")
    model = llama.peft_model()
    model.base_model.disable_adapter_layers()
    refuse(model, r"disabled in .* model.enable_adapter_layers\(\)")
    model = llama.peft_model()
    with lent(model, samerge.merge(llama.base, llama.adapters, method="linear")):
        refuse(model, "already has an adapter", OutputExistsError)


# --- what comes out ---


def test_record_card_and_picture(llama: Beast, tmp_path) -> None:
    search = {"scaling": (0.1, 2.0), "svd_rank": (2, 8), "dtype": ["float32", "bfloat16"]}
    result = tune(llama, lambda m: 1 / 0 if size(m) > 20 else size(m), search=search, trials=8)
    saved = result.save(tmp_path / "tuned")
    record = read_report(saved).record
    assert record.tuning["score"] == result.score
    assert record.tuning["default_score"] == result.default_score
    assert len(record.tuning["trials"]) == 8
    assert set(record.tuning["search"]) == set(search)
    assert any("check the adapter on data that took no part" in warning for warning in record.warnings)
    card = (saved / "README.md").read_text()
    assert "tuned on labelled data" in card
    assert "No data" not in card
    for name in ("scores.png", "scores.svg"):
        assert result.picture(tmp_path / name).stat().st_size > 1000
    with pytest.raises(OptionError, match="ending says what to draw"):
        result.picture(tmp_path / "scores.doc")


def test_without_optuna(llama: Beast, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(OptionError, match=r"pip install 'samerge\[tune\]'"):
        tune(llama, size)
