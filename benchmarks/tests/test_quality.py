"""The benchmark of quality: its arithmetic against slow and obvious ways, and the page against its results."""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path

import pytest
import torch
from evidence import collect as collecting
from evidence.collect import collect, mark
from evidence.page import render, render_earlier
from evidence.prize import prize
from evidence.runs import Runs, config_rank, settings
from evidence.scale import regrets
from evidence.scores import interval, pack, resampled, score, spearman, unpack
from evidence.store import EARLIER, NOW, dump, load, part
from evidence.table import FAMILIES, Family
from peft import PeftModel
from suites.base import LiveWeights, Update, divide, single

import samerge
from samerge.merging.plan import plan
from samerge.methods.registry import find
from samerge.options.option import table

ROOT = Path(__file__).resolve().parent.parent.parent
# PEFT asks a transformers model for a property that newer releases of transformers call by another name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """The tiny Llama of the package's own tests, and its adapters."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tiny import make

    return make("llama", tmp_path_factory.mktemp("llama"))


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
    keys = [s.key() for s in settings(FAMILIES, "*", ["r", "2r", "free"])]
    assert len(set(keys)) == len(keys)
    assert {s.family.name for s in settings(FAMILIES, "tsv,st*", ["r"])} == {"tsv", "star"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_library_knows_every_option_of_the_table(family: Family):
    for budget in family.budgets:
        for density in family.densities:
            given = family.arguments(budget, 16, density, family.seeds[0])
            method, weights = given.pop("method"), given.pop("weights", None)
            for scaling in family.all_scalings():
                plan(method, {**given, "scaling": scaling}, weights)


def test_published_settings_are_the_methods_own():
    for family in FAMILIES:
        method = find(family.options.get("method", family.name))
        density = {row.name: row.default for row in table(method.options)}.get("density")
        known = {"auto": "auto:1.3"}  # the same, by its number
        assert family.published == known.get(str(method.scaling), method.scaling), family.name
        assert family.densities[0] in (None, density), family.name


class Toy:
    """A suite of a tiny Llama and its adapters: a row is right where a state at its token is above 0."""

    name = "toy"
    precision = "float32"
    ready = None

    def __init__(self, llama):
        self._llama, self.tasks = llama, tuple(llama.adapters)
        self._model = llama.model()
        self._live = LiveWeights(self._model)

    def base(self):
        return self._llama.folder

    def adapters(self):
        return {task: Path(folder) for task, folder in self._llama.adapters.items()}

    def evaluator(self):
        return self

    @torch.no_grad()
    def correct(self, update, task, split, count):
        self._live.put(update)
        tokens = torch.arange(count).unsqueeze(0) + self.tasks.index(task)
        return self._model(tokens).logits[0, :, 0 if split == "test" else 1] > 0


def test_every_setting_is_measured_once_and_becomes_a_record(llama, tmp_path, monkeypatch):
    toy, store = Toy(llama), tmp_path / "toy" / "measurements.jsonl"
    toy.about, toy.kin, toy.judge = "a toy", "", True
    monkeypatch.setattr(collecting, "SUITES", {"toy": ("toys", "toy")})
    monkeypatch.setitem(sys.modules, "toys", types.SimpleNamespace(toy=toy))
    runs = Runs(toy, {"validation": 0, "test": 9}, store)
    runs.references(all_tasks=False)
    todo = [s for s in settings(FAMILIES, "saliency,linear", ["r", "free"]) if s.published]
    assert [runs.measure(setting) for setting in todo] == [True] * 4
    assert not any(Runs(toy, {"validation": 0, "test": 9}, store).measure(setting) for setting in todo)
    earlier = {"suites": {}, "records": []}
    found = load(collect(tmp_path, earlier))
    by = {(r["merge"], r["budget"]): r for r in found["records"]}
    rank = max(config_rank(folder) for folder in toy.adapters().values())
    assert by["saliency", "r"]["rank"] == rank
    assert by["saliency", "free"]["rank"] > rank
    assert by["saliency", "r"]["to_default"] == [0.0, 0.0, 0.0]
    linear = samerge.merge(llama.folder, llama.adapters, method="linear", dtype="float32", progress=False)
    own = Update(linear.factors, linear.layouts)
    expected = {task: 100 * float(toy.correct(own, task, "test", 9).float().mean()) for task in toy.tasks}
    assert by["linear", "free"]["tasks"] == pytest.approx(expected, abs=0.01)
    assert found["suites"]["toy"]["definitions"] == NOW
    assert collect(tmp_path, found) == dump(found)  # again: nothing twice, nothing lost


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


@pytest.mark.parametrize(("page", "made"), [("evidence", render), ("evidence-earlier", render_earlier)])
def test_a_page_is_what_the_results_render_to(page, made):
    results = load((ROOT / "benchmarks/results/quality.json").read_text(encoding="utf-8"))
    assert (ROOT / f"docs/{page}.md").read_text(encoding="utf-8") == made(results)


def test_merges_of_before_are_told_apart():
    results = load((ROOT / "benchmarks/results/quality.json").read_text(encoding="utf-8"))
    known = {family.name for family in FAMILIES}
    for definitions in (NOW, EARLIER):
        own = part(results, definitions)
        assert all(name.endswith(" (earlier)") == (definitions == EARLIER) for name in own["suites"])
        assert {record["suite"] for record in own["records"]} == set(own["suites"])
    assert {record["merge"] for record in part(results, NOW)["records"]} <= known
    before = {record["merge"] for record in part(results, EARLIER)["records"]}
    assert not before & {"saliency", "even", "paper"}  # names of today's merges that were others, or told otherwise


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
    assert "| the adapters' rank | a | 90.0 | tsv | λ 2 | 91.0 | -0.5 [-2.0, +1.0] |" in page
    assert "| the adapters' rank | b | 70.0 | ties | λ 1 | 70.2 | -0.5 [-2.0, +1.0] |" in page
    assert "| the adapters' rank | mean | 80.0 | tsv |  | 80.0 | +0.0 |" in page  # (91 + 69) / 2 against 80
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
