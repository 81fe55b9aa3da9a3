"""The benchmark of quality: its arithmetic against slow and obvious ways, and the page against its results."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from evidence.collect import mark
from evidence.page import render
from evidence.prize import prize
from evidence.runs import foretold, norm_scales, settings
from evidence.scale import regrets
from evidence.scores import interval, pack, resampled, score, spearman, unpack
from evidence.shares import ranks, shared
from evidence.store import dump, load
from evidence.table import FAMILIES, Family
from peft import PeftModel
from suites.base import LiveWeights, Update, divide, single

import samerge
from samerge.linalg.truncation import truncate
from samerge.methods import entry
from samerge.methods.chain import chain

ROOT = Path(__file__).resolve().parent.parent.parent


def answers(seed: int, sizes=(11, 30), rate: float = 0.6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"task {i}": torch.rand(size, generator=generator) < rate for i, size in enumerate(sizes)}


@pytest.mark.parametrize("count", [1, 7, 8, 9, 250])
def test_answers_survive_their_packing(count):
    own = answers(count, (count,))["task 0"]
    assert torch.equal(unpack(pack(own)), own)


def test_bootstrap_is_what_drawing_items_one_by_one_gives():
    experts, merged = answers(1, rate=0.9), [answers(2), answers(3)]
    found = resampled(experts, merged, times=5, seed=4)
    generator = torch.Generator().manual_seed(4)
    expected = torch.zeros(2, 5)
    for task in sorted(experts):
        draws = torch.randint(len(experts[task]), (5, len(experts[task])), generator=generator)
        for i, one in enumerate(merged):
            for t, draw in enumerate(draws.tolist()):
                right = sum(bool(one[task][j]) for j in draw)
                expected[i, t] += 100 * right / sum(bool(experts[task][j]) for j in draw) / len(experts)
    torch.testing.assert_close(found.float(), expected)


def test_bootstrap_scatters_around_the_score_and_an_expert_is_certain_of_itself():
    experts, merged = answers(1, (400, 300), 0.9), answers(2, (400, 300))
    samples = resampled(experts, [merged, experts], times=500)
    low, high = interval(samples[0])
    assert low < score(merged, experts) < high
    assert interval(samples[1]) == pytest.approx((100.0, 100.0))


def test_rank_correlation():
    random_ = random.Random(0)
    a = [random_.random() for _ in range(20)]
    assert spearman(a, [x**3 for x in a]) == pytest.approx(1.0)
    assert spearman(a, [-x for x in a]) == pytest.approx(-1.0)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(3**0.5 / 2)  # the tie has rank 1.5


def record(suite: str, scaling: float, validation: float, test: float) -> dict:
    return {
        **{"suite": suite, "merge": "m", "budget": "r", "density": None, "scaling": scaling},
        **{"validation": validation, "test": test},
    }


def test_a_setting_is_chosen_by_suites_of_other_kin_only():
    table = {"a": (90, 80, 70), "b": (60, 90, 50), "c": (10, 20, 50)}
    records = [
        record(suite, scaling, validation, 100 - validation)
        for suite, row in table.items()
        for scaling, validation in zip((0.5, 1.0, 2.0), row, strict=True)
    ]
    mark(records, {"a": "x", "b": "x", "c": "y"})
    marks = {(r["suite"], r["scaling"]): set(r["marks"]) for r in records}
    assert marks["a", 2.0] == {"best", "tuned elsewhere"}  # c alone chose, as b is of a's kin
    assert marks["b", 2.0] == {"best", "tuned elsewhere"}
    assert marks["c", 1.0] == {"tuned elsewhere"}  # 80 + 90 is the most of a and b together
    assert (marks["a", 0.5], marks["b", 1.0], marks["c", 2.0]) == ({"tuned"}, {"tuned"}, {"tuned"})


def test_splits_are_disjoint_and_whole():
    splits = divide(range(100))
    assert sorted(splits["validation"] + splits["test"]) == list(range(100))
    assert len(splits["validation"]) == 33
    assert divide(range(100)) == splits
    assert len(divide(range(9000))["validation"]) == 1000


def test_no_two_merges_have_one_name():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    assert sum(family.role == "default" for family in FAMILIES) == 1
    keys = [s.key() for s in settings(FAMILIES, "*", ["r", "2r", "free"], judge=False)]
    assert len(set(keys)) == len(keys)
    judged = settings(FAMILIES, "*", ["r"], judge=True)
    assert not any(s.family.design for s in judged)
    assert {s.family.name for s in settings(FAMILIES, "tsv,st*", ["r"], judge=True)} == {"tsv", "star"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_library_knows_every_option_of_the_table(family: Family):
    for budget in family.budgets:
        for density in family.densities:
            given = family.arguments(budget, 16, density, family.seeds[0])
            links = chain(*(given.pop(name, None) for name in ("method", "selection", "aggregation", "recipe")))
            own, weights = given.pop("method_options", None), given.pop("weights", None)
            for scaling in family.all_scalings():
                links.options({**given, "scaling": scaling}, own, measured=weights == "auto")


def test_published_settings_are_the_registrys():
    for family in FAMILIES:
        if family.role == "comparator" and set(family.options) == {"method"}:
            defaults = entry(family.options["method"]).defaults
            known = {"auto": "auto:1.3"}  # the same, by its number
            assert family.published == known.get(str(defaults["scaling"]), defaults["scaling"]), family.name
            assert family.densities[0] in (None, defaults.get("density")), family.name


@pytest.mark.parametrize("method", ["tsv", "linear"])
def test_scale_and_rank_after_the_merge_are_the_merges_own(method, llama):
    plain = samerge.merge(llama.folder, llama.adapters, method=method, scaling=1.0, progress=False)
    cut = {module: truncate(update, 3)[0] for module, update in plain.factors.items()}
    scales = norm_scales(cut, plain.report.record["layers"], 1.6)
    update = Update(cut, plain.layouts, scales)
    whole = samerge.merge(llama.folder, llama.adapters, method=method, scaling="auto:1.6", svd_rank=3, progress=False)
    for module in whole.factors:
        torch.testing.assert_close(update.delta(module), whole.delta(module), rtol=1e-3, atol=1e-5)
    own = whole.report.record["diagnostics"]["experts"]
    found = foretold(update, {name: single(folder) for name, folder in llama.adapters.items()})
    assert {"expected_retention", "interference", "cosine"} <= set(found)
    for key, value in found.items():
        assert value == pytest.approx(sum(row[key] for row in own.values()) / len(own), abs=1e-3)


def spectra(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(sizes))
    return [torch.rand(n, generator=generator).double().sort(descending=True).values * (n + 1) for n in sizes]


def test_ranks_by_energy_hold_the_most_of_all_that_cost_as_much():
    values = spectra(6, 4, 5)
    choices = itertools.product(*(range(1, len(own) + 1) for own in values))

    def energy(chosen):
        return sum(float(own[:k].square().sum()) for own, k in zip(values, chosen, strict=True))

    best = max((chosen for chosen in choices if sum(chosen) <= 3 * 3), key=energy)
    assert ranks(values, [7, 7, 7], 3, "energy") == list(best)
    assert len(set(best)) > 1  # or it would say nothing


def test_ranks_follow_what_their_rule_looks_at():
    falling, level = torch.arange(12, 0, -1).double(), torch.ones(12).double()
    assert ranks([9 * falling, falling], [5, 5], 4, "energy") == [7, 1]
    assert ranks([9 * falling, falling], [5, 5], 4, "relative") == [4, 4]
    assert ranks([falling, falling], [10, 1], 4, "relative") == [4, 4]  # whatever it costs
    assert ranks([falling, falling], [10, 1], 4, "energy") == [3, 12]
    assert ranks([9 * level, level[:6]], [5, 5], 3, "effective") == [4, 2]  # effective ranks 12 and 6
    assert ranks([falling, falling[:0]], [5, 5], 2, "energy") == [4, 0]


@pytest.mark.parametrize("rule", ["energy", "relative", "effective"])
def test_ranks_cost_no_more_than_the_uniform_one_and_leave_no_component_that_could_be_had(rule):
    values, costs = spectra(9, 14, 30, 5), [12, 60, 24, 24]
    found = ranks(values, costs, 6, rule)
    left = 6 * sum(costs) - sum(k * cost for k, cost in zip(found, costs, strict=True))
    assert left >= 0
    assert all(1 <= k <= len(own) for k, own in zip(found, values, strict=True))
    assert all(cost > left or k == len(own) for k, cost, own in zip(found, costs, values, strict=True))


def test_layers_of_shared_ranks_are_those_of_the_default_at_their_own_rank(llama):
    [family] = [family for family in FAMILIES if family.shares == "energy"]
    whole = samerge.merge(
        None, llama.adapters, scaling=1.0, progress=False, **family.arguments("r", 3, None, family.seeds[0])
    )
    found = shared(whole.factors, 3, "energy")
    by_rank = {
        k: samerge.merge(None, llama.adapters, recipe="even", svd_rank=k, scaling=1.0, progress=False)
        for k in {update.rank for update in found.values()}
    }
    assert len(by_rank) > 1
    for module, update in found.items():
        expected = by_rank[update.rank].delta(module)
        torch.testing.assert_close(whole.layouts[module].delta(update), expected, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_live_weights_are_what_peft_makes_and_come_back(llama):
    tokens = torch.arange(12).reshape(2, 6)
    name, folder = next(iter(llama.adapters.items()))
    expected = PeftModel.from_pretrained(llama.model(), folder, adapter_name=name)(tokens).logits
    model = llama.model()
    before = model(tokens).logits
    live, update = LiveWeights(model), single(folder)
    live.put(update)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-5)
    other = single(list(llama.adapters.values())[1])
    live.put(other)
    live.put(update)
    torch.testing.assert_close(model(tokens).logits, expected, rtol=1e-4, atol=1e-5)
    live.put(None)
    assert torch.equal(model(tokens).logits, before)


def test_the_page_is_what_the_results_render_to():
    results = load((ROOT / "benchmarks/results/quality.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/evidence.md").read_text(encoding="utf-8") == render(results)


def results_of(rows: list[tuple[str, str, object, float, float]]) -> dict:
    """Results of one output rank from (suite, merge, scale, validation score, test score); λ 1 is published."""
    records = [
        {
            **record(suite, scaling, validation, test),
            **{"merge": merge, "role": "default" if merge == "even" else "comparator", "published": scaling == 1.0},
            **{"interval": [test - 1, test + 1], "to_default": [0.5, -1.0, 2.0]},
        }
        for suite, merge, scaling, validation, test in rows
    ]
    suites = {row[0]: {"judge": True} for row in rows}
    mark(records, {suite: suite for suite in suites})
    return {"suites": suites, "records": records}


def test_what_rules_lose_is_counted_from_the_best_number():
    numbers = [
        ("a", "tsv", scaling, 50.0, test) for scaling, test in ((0.5, 80.0), (0.7, 83.0), (1.0, 82.0), (2.0, 60.0))
    ]
    rules = [("a", "tsv", "auto:1.3", 99.0, 84.5), ("a", "tsv", "auto:2.0", 99.0, 81.0)]
    [found] = regrets(results_of(numbers + rules))
    assert (found.best["scaling"], found.flat) == (0.7, False)
    assert found.losses == {"auto:1.3": 1.5, "auto:2.0": -2.0, "unit": -1.0}
    assert regrets(results_of(numbers)) == []  # nothing to compare
    assert regrets(results_of(numbers[:3] + rules)) == []  # too few to call one of them the best


def test_the_default_is_held_against_the_best_of_the_others_at_its_best():
    rows = [
        *(("a", "even", 1.0, 0.0, 90.0), ("b", "even", 1.0, 0.0, 70.0)),
        *(("a", "even", 2.0, 0.0, 99.0), ("b", "even", 2.0, 0.0, 99.0)),  # the default is not tuned
        *(("a", "even, weights auto", 1.0, 0.0, 99.0), ("b", "even, weights auto", 1.0, 0.0, 99.0)),  # nor another
        *(("a", "tsv", 1.0, 9.0, 80.0), ("a", "tsv", 2.0, 1.0, 91.0)),  # chosen by test rows, not by validation
        *(("b", "tsv", 1.0, 9.0, 69.0), ("b", "tsv", 2.0, 1.0, 60.0)),
        *(("a", "ties", 1.0, 0.0, 85.0), ("b", "ties", 1.0, 0.0, 70.2)),
    ]
    page = prize(results_of(rows))
    assert "| the experts' rank | a | 90.0 | tsv | λ 2 | 91.0 | -0.5 [-2.0, +1.0] |" in page
    assert "| the experts' rank | b | 70.0 | ties | λ 1 | 70.2 | -0.5 [-2.0, +1.0] |" in page
    assert "| the experts' rank | mean | 80.0 | tsv |  | 80.0 | +0.0 |" in page  # (91 + 69) / 2 against 80
    assert page.endswith("Everywhere it is within 0.5 of the best, or ahead.")


def test_the_file_of_results_is_a_list_that_says_what_each_record_is():
    text = (ROOT / "benchmarks/results/quality.json").read_text(encoding="utf-8")
    rows, results = json.loads(text), load(text)
    needed = {"suite", "merge", "role", "rank", "scaling", "seed", "score", "tasks", "items", "versions"}
    assert all(needed <= row.keys() for row in rows)
    assert {row["role"] for row in rows} == {"default", "comparator", "reference", "ablation"}
    assert dump(results) == text
    for name, about in results["suites"].items():  # the base, and each task's expert
        references = [row for row in rows if row["suite"] == name and row["role"] == "reference"]
        assert [row["merge"] for row in references] == ["base", *(f"expert {task}" for task in about["experts"])]
        for row in references[1:]:
            task = row["merge"].removeprefix("expert ")
            assert row["tasks"][task] == about["experts"][task]
