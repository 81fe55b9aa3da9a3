"""The benchmark of quality: its arithmetic against slow and obvious ways, and the pages against their results."""

from __future__ import annotations

import json
import random
import sys
import types
from pathlib import Path
from statistics import fmean
from unittest import mock

import pytest
import strength
import torch
from evidence import collect as collecting
from evidence.at_best import at_best, at_best_table
from evidence.collect import collect
from evidence.few_adapters import few_adapters, few_in_short, few_tables
from evidence.long_tables import long_tables
from evidence.page import in_short, orders, page
from evidence.runs import Runs, config_rank, settings
from evidence.scores import interval, pack, resampled, score, spearman, unpack
from evidence.store import dump, load, select
from evidence.table import DEFAULT, FAMILIES, Family
from peft import PeftModel
from suites.base import LiveWeights, Part, Update, judged, mixed, single
from suites.kept import Kept

import samerge
from samerge.merging.plan import plan
from samerge.methods import chain
from samerge.methods.registry import find
from samerge.options.option import table

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks/results/quality.json"
FEW, INPUTS = RESULTS.with_name("few.json"), RESULTS.with_name("inputs.json")
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
def test_answers_and_losses_survive_their_packing(count):
    own = answers(count, (count,))["task 0"]
    assert torch.equal(unpack(pack(own)), own.double())
    losses = 5 * torch.rand(count)
    torch.testing.assert_close(unpack(pack(losses)), losses.double(), rtol=5e-4, atol=0)


def test_bootstrap_is_what_drawing_items_one_by_one_gives():
    experts, merged = answers(1, rate=0.9), [answers(2), answers(3)]
    experts = {task: one.double() for task, one in experts.items()}
    merged = [{task: a.double() for task, a in one.items()} for one in merged]
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


def test_bootstrap_of_documents_draws_all_rows_of_one_together():
    own, merged = {"t": torch.rand(6) + 1}, {"t": torch.rand(6)}
    documents = {"t": torch.tensor([5, 5, 8, 8, 8, 9])}
    found = resampled(own, [merged], documents, times=40, seed=2)[0].tolist()
    rows = {5: [0, 1], 8: [2, 3, 4], 9: [5]}
    possible = set()
    for draw in [(a, b, c) for a in rows for b in rows for c in rows]:
        chosen = [i for document in draw for i in rows[document]]
        gain = sum(float(merged["t"][i]) for i in chosen) / sum(float(own["t"][i]) for i in chosen)
        possible.add(round(100 * gain, 3))
    assert {round(value, 3) for value in found} <= possible
    assert len(set(found)) > 3


def test_bootstrap_scatters_around_the_score_and_an_expert_is_certain_of_itself():
    experts, merged = (
        {task: a.double() for task, a in answers(seed, (400, 300), rate).items()} for seed, rate in ((1, 0.9), (2, 0.6))
    )
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


def test_rows_are_mixed_and_none_is_lost():
    assert sorted(mixed(range(100))) == list(range(100)) != mixed(range(100)) == mixed(range(100))


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


#: So many that in no sample all are wrong.
ROWS = 60


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
    def answers(self, update, task, count):
        self._live.put(update)
        number = self.tasks.index(task)
        logits = self._model((torch.arange(count).unsqueeze(0) + number) % 24).logits[0]
        return judged(logits[:, :4], (torch.arange(count) + number) % 4, 30.0)

    def parts(self):
        return Part("toy, first", self.tasks[:1], True), Part("toy, whole", self.tasks, False)


def dense_score(toy, update, tasks) -> float:
    """The smooth score, from losses that were never packed."""
    values = []
    for task in tasks:
        base, own, merged = (
            fmean(toy.answers(one, task, ROWS).losses.tolist()) for one in (None, single(toy.adapters()[task]), update)
        )
        values.append(100 * (base - merged) / (base - own))
    return fmean(values)


def test_every_setting_is_measured_once_and_becomes_a_record(llama, tmp_path, monkeypatch):
    toy, store = Toy(llama), tmp_path / "toy" / "measurements.jsonl"
    toy.about = "a toy"
    monkeypatch.setattr(collecting, "SUITES", {"toy": ("toys", "toy")})
    monkeypatch.setattr("evidence.scores.LEAST", -9.0)  # its adapters were not trained
    monkeypatch.setitem(sys.modules, "toys", types.SimpleNamespace(toy=toy))
    runs = Runs(toy, ROWS, store)
    runs.references(all_tasks=False)
    todo = [s for s in settings(FAMILIES, "saliency,linear", ["r", "free"]) if s.published]
    assert [runs.measure(setting) for setting in todo] == [True] * 4
    assert not any(Runs(toy, ROWS, store).measure(setting) for setting in todo)
    found = collect(tmp_path, {})
    by = {(r["suite"], r["merge"], r["budget"]): r for r in found["records"]}
    rank = max(config_rank(folder) for folder in toy.adapters().values())
    assert by["toy, whole", "saliency", "r"]["rank"] == rank
    assert by["toy, whole", "saliency", "free"]["rank"] > rank
    assert by["toy, whole", "saliency", "r"]["to_default"] == [0.0, 0.0, 0.0]
    linear = samerge.merge(llama.folder, llama.adapters, method="linear", dtype="float32", progress=False)
    own = Update(linear.factors, linear.layouts)
    for part in toy.parts():
        record = by[part.name, "linear", "free"]
        assert record["score"] == pytest.approx(dense_score(toy, own, part.tasks), abs=1.5)  # losses are of 11 bits
        right = [
            float(toy.answers(own, task, ROWS).correct.float().sum())
            / float(toy.answers(single(toy.adapters()[task]), task, ROWS).correct.float().sum())
            for task in part.tasks
        ]
        assert record["accuracy"]["score"] == pytest.approx(100 * fmean(right), abs=0.01)
        assert found["suites"][part.name]["judge"] == part.judge
    [mean] = [row for row in found["overall"] if (row["merge"], row["budget"]) == ("linear", "r")]
    assert mean["suites"] == ["toy, first"]
    assert mean["score"] == by["toy, first", "linear", "r"]["score"]
    again = load(dump(found))
    assert again == found
    assert collect(tmp_path, again) == found  # nothing twice, nothing lost
    kept = collect(tmp_path / "empty", again)
    assert (kept["suites"], kept["records"]) == (found["suites"], found["records"])
    for text in (page(found), long_tables(found)):
        assert "toy, whole" in text


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


def test_pages_are_what_the_results_render_to():
    results = load(RESULTS.read_text(encoding="utf-8"))
    few, inputs = (json.loads(path.read_text(encoding="utf-8")) for path in (FEW, INPUTS))
    for name, made in (
        ("evidence", page(results, few, inputs)),
        ("evidence-tables", long_tables(results, few, inputs)),
    ):
        assert (ROOT / f"docs/{name}.md").read_text(encoding="utf-8") == made


def test_merges_of_few_adapters_in_words():
    """Means, order, and where a rival is ahead."""
    scores = {("saliency", 16): (90, 80), ("even", 16): (91, 81), ("tsv", 16): (85, 82), ("saliency", None): (90, 90)}
    scores |= {("tsv", None): (80, 80)}
    records = [
        {"merge": merge, "rank": rank, "adapters": count, "suite": "toy", "score": one}
        for (merge, rank), own in scores.items()
        for count, one in zip((2, 3), own, strict=True)
    ]
    text = few_adapters(records)
    assert "the default keeps 85.0 on the mean of 2 sets of groups" in text
    assert "`tsv`, 83.5; a rival is ahead of it on toy, 3 (`tsv`, -2.0)." in text
    assert "`tsv`, 80.0; no rival is ahead of it on any." in text
    assert few_in_short(records) == "the default keeps 85.0 %, the best rival, `tsv`, 83.5"
    table = few_tables(records)
    assert "| even | 91.0 | 81.0 | 86.0 |\n| **saliency** | 90.0 | 80.0 | 85.0 |\n| tsv | 85.0 | 82.0 | 83.5 |" in table
    assert few_adapters([]) == few_tables([]) == ""


def test_what_a_merge_of_a_group_keeps(llama):
    """By hand: the losses of the toy's evaluator on base, adapter and merge."""
    toy = Toy(llama)
    first, second = list(toy.adapters())[:2]
    kept = Kept(toy, ROWS, [first])
    shares = kept.shares([first, second], method="linear")
    merged = samerge.merge(None, {n: toy.adapters()[n] for n in (first, second)}, method="linear", progress=False)
    losses = [
        float(toy.answers(update, first, ROWS).losses.mean())
        for update in (None, single(toy.adapters()[first]), Update(merged.factors, merged.layouts))
    ]
    assert shares == {first: pytest.approx(100 * (losses[0] - losses[2]) / (losses[0] - losses[1]), rel=1e-4)}
    assert kept.mean([(first, second)], method="linear") == pytest.approx(shares[first])


def test_the_file_of_results_has_merges_that_the_table_knows():
    results = load(RESULTS.read_text(encoding="utf-8"))
    assert {record["merge"] for record in results["records"]} <= {family.name for family in FAMILIES}
    assert {record["suite"] for record in results["records"]} == set(results["suites"])
    assert all(select(results, suite=name, merge=DEFAULT, published=True) for name in results["suites"])
    for record in results["records"]:
        assert record["interval"][0] <= record["score"] <= record["interval"][1]


def made_up(rows: list[tuple[str, str, float, float]]) -> dict:
    """Results of one output rank from (suite, merge, strength, score); strength 1 is published."""
    records = [
        {
            **{"suite": suite, "merge": merge, "budget": "r", "density": None, "scaling": scaling, "score": value},
            **{"published": scaling == 1.0, "role": "default" if merge == DEFAULT else "comparator"},
            "foretold": {"cosine": value, "interference": -value},
        }
        for suite, merge, scaling, value in rows
    ]
    return {"suites": {row[0]: {"judge": row[0] != "c"} for row in rows}, "overall": [], "records": records}


def test_the_default_is_held_against_the_best_of_the_others_at_its_best():
    rows = [
        *(("a", DEFAULT, 1.0, 90.0), ("b", DEFAULT, 1.0, 70.0), ("c", DEFAULT, 1.0, 1.0)),
        *(("a", DEFAULT, 2.0, 99.0), ("a", "tsv", 1.0, 80.0), ("a", "tsv", 2.0, 91.0)),
        *(("b", "tsv", 1.0, 69.0), ("b", "ties", 1.0, 70.2), ("c", "ties", 1.0, 99.0)),
    ]
    text = at_best_table(made_up(rows))
    assert "| the adapters' rank | a | judges | 90.0 | 99.0 at λ 2 | tsv | λ 2 | 91.0 | -1.0 |" in text
    assert "| the adapters' rank | b | judges | 70.0 | 70.0 at λ 1 | ties | λ 1 | 70.2 | -0.2 |" in text
    assert "| the adapters' rank | c | design | 1.0 | 1.0 at λ 1 | ties | λ 1 | 99.0 | -98.0 |" in text
    told = at_best(made_up(rows))
    assert "on 2 of 3 rows: a at the adapters' rank (-1.0, `tsv`); c at the adapters' rank (-98.0, `ties`)." in told
    assert "Nowhere is it behind by more than 0.5." in at_best(made_up(rows[1:2] + rows[5:7]))


def test_in_short_is_what_the_judges_say():
    overall = [
        {"merge": merge, "budget": budget, "score": score, "to_default": [0, 0, 0]}
        for merge, budget, score in (("saliency", "r", 76), ("even", "r", 77), ("tsv", "r", 60), ("ties", "free", 99))
    ]
    text = in_short({"overall": [*overall, {**overall[2], "merge": "ties", "score": 70}]}, [], [])
    assert "keeps 76.0 % of what" in text
    assert text.endswith("the best rival there, `ties`, 70.0.")
    assert in_short({"overall": overall[:2]}, [], []) == ""


def test_orders_of_figures_are_of_untuned_merges():
    rows = [("a", name, 1.0, value) for name, value in (("m", 1.0), ("n", 3.0), ("o", 2.0), ("p", 5.0))]
    [found] = orders(made_up([*rows, ("a", "m", 2.0, 99.0)]))
    assert found == {"suite": "a", "merges": 4, "cosine": 1.0, "interference": -1.0}


def test_a_merge_of_a_given_size(llama):
    """What `strength.py` puts in the place of the default's strength still fits there."""
    norms = []
    for size in (1.0, 2.0):
        with mock.patch.object(chain, "strength", strength.sized(size)):
            merged = samerge.merge(None, llama.adapters, method="even", dtype="float32", progress=False)
        layers = merged.report.record.layers
        norms.append([float(merged.delta(m).norm()) for m, layer in layers.items() if len(layer.adapters) > 1])
    assert norms[0]
    assert norms[1] == pytest.approx([2 * norm for norm in norms[0]], rel=1e-4)
