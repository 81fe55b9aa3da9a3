"""`samerge.tune`: known optima are found, trials are cheap and exact, a search goes on, a model stays as it was."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch
from peft import PeftModel
from test_live import assert_same, state
from tiny import NAMES, Beast

import samerge
from samerge.errors import AdapterError, OptionError, OutputExistsError, TuningError
from samerge.merging.tuning.candidates import Candidates
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
    assert result.improvement == pytest.approx(result.score - result.default_score)


def test_weights_of_a_quadratic(llama: Beast) -> None:
    wanted = {"math": 1.5, "code": 0.4, "talk": 1.0}

    def loss(merged: samerge.MergedAdapter) -> float:
        weights = {item["name"]: item["weight"] for item in merged.report.record["inputs"]}
        return sum((weights[name] - wanted[name]) ** 2 for name in NAMES)

    result = tune(llama, loss, search={"weights": (0.0, 2.0)}, trials=45, direction="minimize")
    assert result.score < 0.1 < 0.6 < result.default_score
    assert set(result.best["weights"]) == set(NAMES)
    assert min(t.score for t in result.trials) == result.score


def test_untuned_merge_comes_first_and_wins_ties(llama: Beast) -> None:
    first = []
    result = tune(llama, lambda m: first.append(m) or 1.0, trials=4, method="saliency", iterations=2)
    plain = samerge.merge(llama.base, llama.adapters, method="saliency", iterations=2)
    assert first[0].report.record["options"] == plain.report.record["options"]
    for module, factors in plain.factors.items():
        assert torch.equal(factors.B, first[0].factors[module].B)
        assert torch.equal(factors.B, result.merged.factors[module].B)
    assert result.best == {"method": "saliency", "iterations": 2}
    assert result.improvement == 0
    assert result.trials[0].options == {}
    assert set(result.trials[1].options) == {"scaling", "density", *(f"weights.{name}" for name in NAMES)}


def test_best_options_give_the_best_merge(llama: Beast) -> None:
    result = tune(llama, size, trials=6, search={"density": (0.1, 1.0), "scaling": (0.1, 2.0)}, method="ties")
    again = samerge.merge(llama.base, llama.adapters, **result.best)
    for module, factors in again.factors.items():
        assert torch.equal(factors.A, result.merged.factors[module].A)
        assert torch.equal(factors.B, result.merged.factors[module].B)
    assert size(again) == pytest.approx(result.score, rel=1e-5)


# --- what is searched ---


def test_methods_with_options_of_their_own(llama: Beast) -> None:
    search = {"method": ["tsv", "wudi"], "mu": (0.01, 1.0), "density": (0.2, 1.0), "svd_rank": (2, 9)}
    result = tune(llama, size, search=search, trials=12, dtype="float32", iterations=3, method="saliency")
    for trial in result.trials[1:]:
        assert trial.state == "complete", trial.error
        own = {"tsv": {"density"}, "wudi": {"mu"}}[trial.options["method"]]
        assert set(trial.options) == {"method", "svd_rank"} | own
        assert isinstance(trial.options["svd_rank"], int)
    assert {trial.options["method"] for trial in result.trials[1:]} == {"tsv", "wudi"}


def test_default_search_leaves_out_what_the_method_lacks() -> None:
    def names(**fixed) -> list[str]:
        return [d.name for d in space_of(None, fixed, ["a", "b"]).dimensions]

    assert names(method="linear") == ["scaling", "weights.a", "weights.b"]
    assert names(method="saliency") == ["scaling", "density", "weights.a", "weights.b"]
    assert names(method="saliency", rank=8) == ["scaling", "weights.a", "weights.b"]
    space = space_of({"weights.a": (0, 1)}, {"method": "linear", "weights": [2, 3]}, ["a", "b"])
    assert space.options({"weights.a": 0.5})["weights"] == {"a": 0.5, "b": 3.0}
    assert space.options({})["weights"] == {"a": 2.0, "b": 3.0}
    words = space_of({"weights": [None, "nan"]}, {"method": "linear"}, ["a", "b"])
    assert words.options({"weights": "nan"}) == {"method": "linear", "weights": "nan"}


def test_basis_goes_to_the_trials_that_have_one(llama: Beast) -> None:
    """A selection has one, and so have weights and a scaling that are found from the experts' inputs; others do not."""
    names = ["a", "b"]
    fixed = {"method": "linear", "basis": "native"}
    with_selection = space_of({"method": ["saliency", "linear"]}, fixed, names)
    assert with_selection.options({}) == {"method": "linear"}
    assert with_selection.options({"method": "saliency"}) == {"method": "saliency", "basis": "native"}
    by_scaling = space_of({"scaling": ["auto", "interference", "interference:layer"]}, fixed, names)
    assert "basis" not in by_scaling.options({"scaling": "auto"})
    assert by_scaling.options({"scaling": "interference"})["basis"] == "native"
    assert by_scaling.options({"scaling": "interference:layer"})["basis"] == "native"
    by_weights = space_of({"weights": (0.0, 2.0)}, {**fixed, "weights": "auto"}, names)
    assert by_weights.options({}) == {**fixed, "weights": "auto"}
    assert "basis" not in by_weights.options({"weights.a": 0.5, "weights.b": 1.5})

    search = {"basis": ["svd", "native"], "method": ["saliency", "linear", "tsv"], "scaling": ["auto", "interference"]}
    fixed = {"method": None, "aggregation": None, "basis": "native"}
    result = tune(llama, size, search=search, trials=14, iterations=1, **fixed)
    seen = set()
    for trial in result.trials:
        assert trial.state == "complete", trial.error
        if trial.options:
            has = trial.options["method"] == "saliency" or trial.options["scaling"] == "interference"
            assert ("basis" in trial.options) == has
            seen.add(has)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis": "svd"}, r"method='linear' has no option 'basis' \(given basis='svd'\)"),
        ({"basis": "svd", "search": {"scaling": ["auto", 0.5], "method": ["tsv", "linear"]}}, "no option 'basis'"),
        ({"search": {"basis": ["svd", "native"]}}, "search 'basis': method='linear' has no option 'basis'"),
        ({"search": {"skaling": (0, 1)}}, "did you mean 'scaling'"),
        ({"search": {"density": (0.1, 1.0)}}, "no such option"),
        ({"search": {"scaling": (2.0, 1.0)}}, "low < high"),
        ({"search": {"scaling": 3}}, "low < high"),
        ({"search": {"scaling": (0.0, 1.0, "log")}}, "above 0"),
        ({"search": {"scaling": (0.1, 1.0, "odd")}}, "'log' or 'linear'"),
        ({"search": {"svd_rank": (1.5, 4)}}, "whole numbers"),
        ({"search": {"weights.maths": (0, 1)}}, "no adapter is called so"),
        ({"search": {"weights.math": (0, 1)}, "weights": "nan"}, r"search those of \['code', 'talk'\]"),
        ({"search": {"scaling": []}}, "a list must hold"),
        ({"search": {}}, "search is empty"),
        ({"search": {"method": ["tsv", "no"]}}, "'no' is not known"),
        ({"search": {"method": "tsv"}}, "give a list"),
        ({"search": {"density": (0.1, 1.0)}, "method": "saliency", "rank": 4}, "rank and density together"),
        ({"densty": 0.5}, "did you mean 'density'"),
        ({"rank": 4}, "no option 'rank'"),
        ({"method_options": {"mu": 1}}, "of its own"),
        ({"trials": 0}, "at least 1"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        ({"timeout": 0}, "above 0"),
        ({"direction": "up"}, "maximize, minimize"),
    ],
)
def test_bad_input_is_told_before_any_merge(llama: Beast, change, message) -> None:
    with pytest.raises(OptionError, match=message):
        tune(llama, lambda m: pytest.fail("scored"), **change)


# --- cheap and exact ---


@pytest.mark.parametrize("method", sorted(samerge.available_methods()))
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_another_scaling_is_the_same_merge_times_a_number(llama: Beast, method: str, dtype) -> None:
    candidates = Candidates(llama.base, llama.adapters)
    options = {"method": method} | ({"iterations": 2} if method in ("saliency", "elementwise") else {})
    for scaling in (1.7, 0.31, -0.5):
        fast = candidates.merged({**options, "scaling": scaling, "dtype": dtype})
        slow = samerge.merge(llama.base, llama.adapters, scaling=scaling, dtype=dtype, **options)
        assert fast.settings == slow.settings
        tensors = slow.tensors()
        for name, tensor in fast.tensors().items():
            assert tensor.dtype == tensors[name].dtype
            assert torch.equal(tensor, tensors[name]), name
        for part in ("options", "output"):
            assert fast.report.record[part] == slow.report.record[part]
        for module, layer in slow.report.record["layers"].items():
            assert fast.report.record["layers"][module]["scale"] == pytest.approx(layer["scale"])
            assert fast.report.record["layers"][module]["norm"] == pytest.approx(layer["norm"], rel=1e-5)
        if dtype is None:
            same_diagnostics(fast.report.record, slow.report.record, method in ("linear", "saliency", "tsv"))


def same_diagnostics(fast, slow, signs: bool = True) -> None:
    """All figures but the weighted interference; those of signs only where no elements are zero but for rounding."""

    def same(ours, theirs):
        for key, value in theirs.items():
            counted = isinstance(value, float | None) and key != "weighted_interference"
            if counted and (signs or key != "sign_conflict"):
                assert ours[key] == (value if value is None else pytest.approx(value, rel=1e-3, abs=1e-3)), key

    layers = [(fast["layers"][module], layer) for module, layer in slow["layers"].items()]
    for ours, theirs in [(fast["diagnostics"], slow["diagnostics"]), *layers]:
        same(ours, theirs)
        for name, figures in theirs["experts"].items():
            same(ours["experts"][name], figures)
            assert ours["experts"][name]["weighted_interference"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spectrum": "foo"}, "spectrum='foo' is not known; choose one of kept, flat"),
        ({"method": "tsv", "svd_rank": 0}, "svd_rank=0 must be a whole number"),
        ({"method": "tsv", "dtype": "float31"}, "dtype='float31' is not known"),
        ({"method": "tsv", "rank": 0}, "rank=0 must be a whole number"),
        ({"method": "wudi", "method_options": {"mu": "much"}}, "mu='much' must be a number"),
        (
            {"method": "linear", "balance": "even", "search": {"method": ["linear", "tsv"]}},
            "balance='even' is not known",
        ),
    ],
)
def test_a_fixed_option_that_no_trial_could_have_is_refused_before_the_first(llama, options, words) -> None:
    def never(merged):
        raise AssertionError("a trial was scored")

    with pytest.raises(OptionError, match=words):
        samerge.tune(None, llama.adapters, never, **{"search": {"scaling": (0.5, 1.0)}, "progress": False, **options})


@pytest.mark.parametrize(
    ("search", "fixed"),
    [
        ({"spectrum": ["kept", "flat"]}, {"method": "linear", "spectrum": "foo"}),  # the untuned merge alone fails
        ({"density": (0.2, 0.5)}, {"selection": "norm", "scope": "global"}),
        ({"density": [None, 2.0, 0.5, 0.7]}, {"selection": "norm", "scope": "global"}),
    ],
)
def test_a_fixed_option_that_some_trials_can_have_is_none_to_refuse(search, fixed) -> None:
    assert space_of(search, fixed, ["math"]).dimensions


def test_a_scaling_of_zero_leaves_nothing(llama: Beast) -> None:
    nothing = Candidates(llama.base, llama.adapters).merged({"method": "linear", "scaling": 0.0}).report
    with pytest.warns(UserWarning, match="the scaling is 0"):
        plain = samerge.merge(None, llama.adapters, method="linear", scaling=0.0)
    same_diagnostics(nothing.record, plain.report.record)
    assert nothing.expected_retention == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"method": "saliency"},
        {"recipe": "even"},
        {"selection": "norm", "aggregation": "tsv", "weights": {"math": 1.0, "code": -0.5, "talk": 0.3}},
        {"balance": "global", "method": "ties"},
    ],
)
def test_another_rule_that_comes_after_likewise(llama: Beast, options) -> None:
    candidates = Candidates(llama.base, llama.adapters)
    for scaling in ("auto:0.4", "auto:2.5", "unit", 0.8):
        fast = candidates.merged({**options, "scaling": scaling})
        slow = samerge.merge(llama.base, llama.adapters, scaling=scaling, **options)
        tensors = slow.tensors()
        for name, tensor in fast.tensors().items():
            torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-7)
        for module, layer in slow.report.record["layers"].items():
            assert fast.report.record["layers"][module]["scale"] == pytest.approx(layer["scale"], rel=1e-5)
    assert len(candidates._kept) == 1


def test_chain_is_searched_link_by_link(llama: Beast) -> None:
    search = {
        "aggregation": ["sum", "tsv"],
        "selection": ["none", "norm"],
        "spectrum": ["kept", "flat"],
        "scaling": ("auto:0.5", "auto:3"),
        "density": (0.3, 1.0),
        "iterations": (1, 3),
    }
    result = tune(llama, size, search=search, trials=10, method=None, recipe="even")
    assert result.trials[0].options == {}
    for trial in result.trials:
        assert trial.state == "complete", trial.error
        assert ("iterations" in trial.options) == (trial.options.get("selection") == "norm")
    assert result.best["scaling"].startswith("auto:")
    assert size(samerge.merge(llama.base, llama.adapters, **result.best)) == pytest.approx(result.score, rel=1e-5)


def test_trials_that_differ_in_scaling_only_merge_once(llama: Beast, monkeypatch) -> None:
    import samerge.merging.tuning.candidates as module

    merges, real = [], module.merge
    monkeypatch.setattr(module, "merge", lambda *a, **k: merges.append(k) or real(*a, **k))
    result = tune(llama, size, method="saliency", iterations=2, search={"scaling": (0.1, 2.0)}, trials=15)
    assert len(result.trials) == 15
    assert len(merges) == 3  # the untuned one ("auto"), the one at scaling 1, and the one that is handed over
    merges.clear()
    tune(llama, size, search={"scaling": ["auto", "lines:0.2:0.8"]}, trials=8)
    assert len(merges) == 4


def test_repeated_points_are_not_scored_again(llama: Beast) -> None:
    scored = []
    result = tune(llama, lambda m: scored.append(m) or len(scored), search={"scaling": [0.5, 1.5]}, trials=12)
    assert len(result.trials) == 12
    assert len(scored) == 3


# --- going on ---


@pytest.mark.parametrize("file", ["study.jsonl", "study.db"])
def test_interrupted_search_goes_on_as_if_it_had_not_been(llama: Beast, tmp_path, file: str) -> None:
    search = {"scaling": (0.1, 2.0), "weights": (0.0, 2.0)}
    whole = tune(llama, size, search=search, trials=13, seed=4)
    calls = []

    def stopped(merged):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return size(merged)

    same = {"search": search, "seed": 4, "storage": tmp_path / file, "score_name": "size"}
    with pytest.raises(KeyboardInterrupt):
        tune(llama, stopped, trials=13, **same)
    gone_on = tune(llama, size, trials=13, **same)
    assert points(gone_on) == points(whole)
    numbers = [trial.number for trial in gone_on.trials]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == 13  # one number went to the interrupted trial
    done = tune(llama, lambda m: pytest.fail("scored"), trials=13, **same)
    assert points(done) == points(whole)
    longer = tune(llama, size, trials=14, **same)
    assert points(longer)[:13] == points(whole)


def test_seed_decides(llama: Beast) -> None:
    search = {"scaling": (0.1, 2.0)}
    one, two, other = (tune(llama, size, search=search, trials=4, seed=seed) for seed in (1, 1, 2))
    assert points(one) == points(two) != points(other)


def test_process_that_died_in_a_trial_and_in_a_line(llama: Beast, tmp_path) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    file = tmp_path / "study.jsonl"
    same = {"search": {"scaling": (0.1, 2.0)}, "storage": file}
    before = tune(llama, size, trials=4, **same)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(file)))
    optuna.load_study(study_name="samerge", storage=storage).ask()  # never told
    with file.open("a") as out:
        out.write('{"op_code":8,"stu')
    after = tune(llama, size, trials=6, **same)
    assert points(after)[:4] == points(before)
    assert [json.loads(line) for line in file.read_text().splitlines()]
    assert points(after) == points(tune(llama, size, search=same["search"], trials=6))


def test_study_of_another_search_is_refused(llama: Beast, bert: Beast, tmp_path) -> None:
    file = tmp_path / "study.jsonl"
    same = {"search": {"scaling": (0.1, 2.0)}, "storage": file, "trials": 2, "score_name": "size"}
    tune(llama, size, **same)
    text = file.read_bytes()
    two = {name: llama.adapters[name] for name in NAMES[:2]}
    swapped = {**llama.adapters, "math": llama.adapters["code"]}
    for change, message in (
        ({"search": {"scaling": (0.1, 3.0)}}, r"search\.scaling\.high was 2\.0 and is 3\.0"),
        ({"search": {"scaling": (0.1, 2.0), "svd_rank": (2, 4)}}, r"search\.svd_rank was not given"),
        ({"method": "svd"}, r"options\.method was linear and is svd"),
        ({"dtype": "bfloat16"}, r"options\.dtype was not given and is bfloat16"),
        ({"direction": "minimize"}, "direction was maximize and is minimize"),
        ({"score_name": "other"}, "score was size and is other"),
    ):
        with pytest.raises(OptionError, match=message):
            tune(llama, size, **(same | change))
    for adapters, message in ((two, r"adapters\.talk was"), (swapped, r"adapters\.math was")):
        with pytest.raises(OptionError, match=message):
            samerge.tune(llama.base, adapters, size, **(LINEAR | same))
    with pytest.raises(OptionError, match="base was weights"):
        samerge.tune(None, llama.adapters, size, **(LINEAR | same))
    assert file.read_bytes() == text


def test_files_that_are_no_study(llama: Beast, tmp_path) -> None:
    for name, content, message in (
        ("notes.md", "# my notes\n", "no study of samerge"),
        ("half.md", "no line end", "no study of samerge"),
        ("data.jsonl", '{"a": 1}\n', "no study of samerge"),
        ("text.db", "hello", "no SQLite file"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(OptionError, match=message):
            tune(llama, size, storage=tmp_path / name)
        assert (tmp_path / name).read_text() == content
    with pytest.raises(OptionError, match="make it first"):
        tune(llama, size, storage=tmp_path / "none" / "study")
    with pytest.raises(OptionError, match="is a folder"):
        tune(llama, size, storage=tmp_path)


def test_timeout_begins_no_further_trial(llama: Beast) -> None:
    result = tune(llama, lambda m: time.sleep(0.2) or 1.0, trials=50, timeout=0.5)
    assert 1 <= len(result.trials) <= 4


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
    assert errors[2].startswith("ValueError: no luck (test_tuning.py, line ")
    assert errors[3] == "the score returned None, which is no number"
    assert (result.score, result.default_score) == (3.0, 1.0)


def test_untuned_merge_may_fail(llama: Beast) -> None:
    result = tune(llama, size, method="saliency", scope="global", iterations=1, trials=4)
    assert "scope='global'" in result.trials[0].error
    assert result.default_score is None
    assert result.improvement is None
    assert result.score > 0


def test_all_trials_failed(llama: Beast, tmp_path) -> None:
    def score(merged):
        raise RuntimeError("broken")

    with pytest.raises(TuningError, match=r"all 3 trials failed, 3 times: RuntimeError: broken \(test_tuning"):
        tune(llama, score, trials=3)


@pytest.mark.parametrize("file", ["study.jsonl", "study.db"])
def test_a_study_of_failed_trials_alone_is_begun_anew(llama: Beast, tmp_path, file: str) -> None:
    def broken(merged):
        raise RuntimeError("broken")

    same = {"search": {"scaling": (0.1, 2.0)}, "storage": tmp_path / file, "trials": 3}
    for _ in range(2):  # not at once from the study, but tried again
        told = []
        with pytest.raises(TuningError, match="begun anew"):
            tune(llama, broken, on_trial=told.append, **same)
        assert len(told) == 3
    mended = tune(llama, size, **same)
    assert points(mended) == points(tune(llama, size, trials=3, search=same["search"]))
    assert points(tune(llama, size, **same)) == points(mended)  # from here on it is gone on with


@pytest.mark.parametrize("file", ["study.jsonl", "study.db"])
def test_two_processes_at_a_time_are_told(llama: Beast, tmp_path, file: str) -> None:
    same = {"search": {"scaling": (0.1, 2.0)}, "storage": tmp_path / file, "trials": 2, "score_name": "size"}

    def while_another_one_goes_on(merged):
        return tune(llama, size, **same).score

    with pytest.raises(TuningError, match="another process has taken the study over and ended trial 0"):
        tune(llama, while_another_one_goes_on, **same)
    assert points(tune(llama, size, **same)) == points(tune(llama, size, trials=2, search=same["search"]))


def test_a_missing_base_is_told_before_any_trial(llama: Beast) -> None:
    def never(merged):
        raise AssertionError

    for options in ({"method": "saliency"}, {"method": None, "selection": "saliency"}):
        told = []
        with pytest.raises(OptionError, match="reads the base model; give base="):
            samerge.tune(None, llama.adapters, never, **(LINEAR | options), on_trial=told.append, trials=2)
        assert not told
    some = {"search": {"method": ["saliency", "linear"]}, "method": None}
    assert samerge.tune(None, llama.adapters, size, **(LINEAR | some), trials=4).score > 0


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
    assert record["tuning"]["score"] == result.score
    assert record["tuning"]["default_score"] == result.default_score
    assert len(record["tuning"]["trials"]) == 8
    assert set(record["tuning"]["search"]) == set(search)
    assert any("check the adapter on data that took no part" in warning for warning in record["warnings"])
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
