"""Merges that see inputs, against what they minimise, written out densely."""

from __future__ import annotations

import json
from types import SimpleNamespace

import inputs
import pytest
import torch
from evidence.with_inputs import inputs_in_short, inputs_tables, with_inputs
from inputs import agreement, measure, moments, own_inputs, regmean, shrunk
from suites.base import Update
from suites.kept import Kept
from test_quality import Toy, llama  # noqa: F401  # a fixture

import samerge
from samerge.linalg.factors import LoraFactors


def case(seed: int = 0) -> tuple[list[LoraFactors], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    own = [
        LoraFactors(torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator), 0.7)
        for _ in range(3)
    ]
    inputs = [torch.randn(9, 6, generator=generator) * torch.arange(1.0, 7.0) for _ in own]
    return own, [shrunk(x.T @ x / len(x)) for x in inputs]


def error(M: torch.Tensor, own, moments) -> float:
    """sum_n E || (M - tau_n) x ||^2."""
    differences = [M.double() - (one.scale * one.B @ one.A).double() for one in own]
    return sum(float((d @ G.double() * d).sum()) for d, G in zip(differences, moments, strict=True))


@pytest.mark.parametrize("rank", [2, 4, 100])
def test_no_other_update_of_its_rank_is_nearer_on_the_inputs(rank):
    own, G = case()
    made = regmean(own, G, rank)
    assert made.rank == min(rank, 5)
    least = error(made.B @ made.A, own, G)
    A, B = (side.clone().double().requires_grad_() for side in (made.A, made.B))
    slope = torch.autograd.grad(
        sum(((B @ A - (o.scale * o.B @ o.A).double()) @ g.double() * (B @ A - (o.scale * o.B @ o.A).double())).sum()
            for o, g in zip(own, G, strict=True)), (A, B)
    )  # fmt: skip
    assert all(float(one.norm()) < 1e-3 * least for one in slope)
    whole = sum((o.scale * o.B @ o.A).double() @ g.double() for o, g in zip(own, G, strict=True))
    total = sum(G).double()
    root = torch.linalg.cholesky(total)
    U, S, Vh = torch.linalg.svd(whole @ torch.linalg.inv(total) @ root)
    best = (U[:, :rank] * S[:rank]) @ Vh[: min(rank, 5)] @ torch.linalg.inv(root)
    assert torch.allclose((made.B @ made.A).double(), best, atol=1e-4)


class Fed:
    """An evaluator of a two-layer model, which feeds fixed inputs in two calls."""

    def __init__(self) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        self.inputs = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))

    @torch.no_grad()
    def outputs(self, update, task, count) -> None:
        for batch in self.inputs[:, :count]:
            self.model(batch[None])


def test_moments_are_means_over_all_that_a_module_takes():
    fed = Fed()
    kept = SimpleNamespace(evaluator=fed)
    found = moments(kept, {"a": SimpleNamespace(factors={"0": None, "2": None})}, 4)
    taken = fed.inputs[:, :4].reshape(-1, 4)
    hidden = torch.relu(fed.model[0](taken)).detach()
    for module, x in (("0", taken), ("2", hidden)):
        expected = sum(torch.outer(row, row) for row in x) / len(x)
        expected = torch.where(torch.eye(len(expected)).bool(), expected, 0.9 * expected)
        assert torch.allclose(found["a"][module], expected, atol=1e-6)
    fed.outputs(None, "a", 4)
    assert torch.allclose(found["a"]["0"], moments(kept, {"a": SimpleNamespace(factors={"0": None})}, 4)["a"]["0"])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_suite_is_measured_in_each_way(llama, monkeypatch, tmp_path):  # noqa: F811
    """Weights alone, random tokens and own inputs are three different merges, each scored at both ranks."""
    toy = Toy(llama)
    ids = torch.arange(3, 20)[None]
    monkeypatch.setitem(inputs.MEASURED, "toy", (4, ()))
    monkeypatch.setattr(inputs, "suite", lambda *given: toy)
    monkeypatch.setattr(inputs, "own_inputs", lambda one, group: (3, lambda model: model(input_ids=ids)))
    monkeypatch.setattr(inputs, "RESULTS", tmp_path / "inputs.json")
    measure("toy", tmp_path, None)
    told = json.loads((tmp_path / "inputs.json").read_text())
    assert [(r["merge"], r["inputs"], r["rank"] is None) for r in told] == [
        (merge, count, full)
        for full in (False, True)
        for merge, count in (("default", 0), ("default, random tokens", 0), ("default, own inputs", 3))
    ]
    kept = Kept(toy, 4, toy.tasks)
    for record in told[:3]:
        given = {0: None, 1: "random", 2: lambda model: model(input_ids=ids)}[told.index(record)]
        update = samerge.merge(toy.base(), kept.folders, rank=record["rank"], calibration=given, progress=False)
        found = kept.of(Update(update.factors, update.layouts))
        assert record["score"] == pytest.approx(sum(found.values()) / len(found), abs=0.2)


def test_texts_of_a_task_are_as_the_model_is_given_them(monkeypatch):
    from suites.smollm2 import PROMPTS

    rows = {task: SimpleNamespace(rows=lambda cache: ([("a text", 0)] * 500, [])) for task in PROMPTS}
    monkeypatch.setattr(inputs, "TEXT_TASKS", rows)
    one = SimpleNamespace(name="smollm2", tasks=tuple(PROMPTS), cache=None)
    each, given = own_inputs(one, one.tasks)
    assert (each, len(given)) == (192 // len(PROMPTS), 192 // len(PROMPTS) * len(PROMPTS))
    assert given[0] == f"{PROMPTS['bbc'].before}a text{PROMPTS['bbc'].cue}"
    assert len(own_inputs(one, ("bbc", "mail"))[1]) == 2 * each


def of_inputs(suite: str, adapters: int, scores: dict[str, float]) -> list[dict]:
    """Records of both ranks; without truncation everything is one better."""
    return [
        {
            **{"suite": suite, "adapters": adapters, "merge": merge, "inputs": 32 * ("own" in merge), "rank": rank},
            **{"scaling": 1.0, "score": score + (rank is None)},
        }
        for merge, score in scores.items()
        for rank in (16, None)
    ]


def test_the_page_says_what_inputs_add():
    records = [
        *of_inputs("exact", 6, {"default": 70.0, "default, random tokens": 69.0, "default, own inputs": 75.5}),
        *of_inputs("language", 8, {"default": 50.0, "default, random tokens": 57.0, "default, own inputs": 60.0}),
        *of_inputs("exact", 2, {"default": 90.0, "default, random tokens": 89.5, "default, own inputs": 90.25}),
        *of_inputs("vision", 5, {"default": 60.0, "default, own inputs": 59.0}),
    ]
    regmean = [
        {**records[0], "merge": "regmean", "inputs": n, "scaling": s, "score": 50.0 + n + s}
        for n in (8, 32)
        for s in (1.0, 1.4)
    ]
    text = with_inputs([*records, *regmean])
    assert "| 2 | the adapters' | -0.5 | +0.2 |  |  |\n| 5 to 8 | the adapters' | +3.0 | +7.8 |  | -1.0 |" in text
    assert "| 5 to 8 | as it comes | +3.0 | +7.8 |  | -1.0 |" in text
    assert "Random tokens add between -1.0 (exact at rank 16) and +7.0 (language at rank 16)." in text
    assert "Own inputs add between -1.0 (vision at rank 16) and +10.0 (language at rank 16)." in text
    assert "exact at rank 16 83.4 (`calibration` 75.5)." in text
    assert "adds -1.0 to 7.0 points" in inputs_in_short(records)
    table = inputs_tables([*records, *regmean])
    assert "| exact | 6 | 16 | 70.0 | 69.0 | 75.5 | 83.0 / 83.4 |\n| exact | 6 | as it comes | 71.0 | 70.0 |" in table
    assert table.index("| vision |") < table.index("| exact | 2 |")
    assert with_inputs([]) == inputs_tables([]) == ""
    strengths = [
        {**records[0], "merge": "even", "scaling": s, "score": v, "apart": a}
        for s, v, a in ((0.5, 40.0, 0.125), (1.0, 70.0, 0.25))
    ]
    assert "it says 0.5 on exact, where 1 is best." in with_inputs([*records, *strengths])
    text = inputs_tables([*records, *strengths])
    assert "| exact | outputs apart | 0.125 | 0.250 |\n|  | score | 40.0 | 70.0 |" in text


def test_agreement_is_the_mean_distance_from_each_adapters_outputs():
    class Asked:
        def outputs(self, update, task, count):
            return torch.full((count, 2), float(update) + len(task))

        @staticmethod
        def apart(own, other):
            return float((own - other).square().sum(dim=1).mean())

    kept = SimpleNamespace(evaluator=Asked(), ends={"a": None, "bb": None})
    assert agreement(kept, {"a": 1.0, "bb": 3.0}, {0.5: 1.0, 1.0: 2.0}, 3) == {0.5: 4.0, 1.0: 2.0}
