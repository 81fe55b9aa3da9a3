"""Merges that see inputs, against what they minimise, written out densely."""

from __future__ import annotations

from types import SimpleNamespace

import inputs
import pytest
import torch
from evidence.with_inputs import with_inputs
from inputs import agreement, in_metric, moments, powers, regmean, shrunk
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


def test_powers_are_inverse_and_square():
    _, G = case(1)
    half, back = powers(G, 0.5)
    mean = sum(G).double() / 3
    expected = mean / mean.diagonal().mean() + inputs.RIDGE * torch.eye(6).double()
    assert torch.allclose(half @ half, expected, atol=1e-9)
    assert torch.allclose(half @ back, torch.eye(6).double(), atol=1e-9)


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
def test_the_power_0_is_even_itself(llama):  # noqa: F811
    toy = Toy(llama)
    kept = Kept(toy, 4, toy.tasks)
    modules = list(samerge.merge(None, kept.folders, method="even", progress=False).factors)
    eyes = {task: {m: torch.eye(kept_width(kept, m)) for m in modules} for task in kept.folders}
    update = in_metric(kept.folders, eyes, 0.0, 4)
    plain = samerge.merge(None, kept.folders, method="even", rank=4, dtype="float32", progress=False)
    for module in modules:
        assert torch.allclose(update.delta(module), plain.delta(module), atol=1e-5)


def kept_width(kept: Kept, module: str) -> int:
    from samerge.adapters import read_adapter

    found = [read_adapter(folder, task).modules.get(module) for task, folder in kept.folders.items()]
    return next(one.shape[1] for one in found if one is not None)


def test_the_page_says_what_inputs_add():
    scores = {("even", 0): (70.0, 72.0), ("regmean", 32): (60.0, 65.0), ("even, G^0.5", 32): (71.0, 69.0)}
    records = [
        {"suite": "toy", "merge": merge, "inputs": count, "rank": 16, "scaling": scaling, "score": score}
        for (merge, count), own in scores.items()
        for scaling, score in zip((1.0, 1.4), own, strict=True)
    ]
    text = with_inputs(records)
    assert "| even | none | 70.0 / 72.0 |\n| even, G^0.5 | 32 | 71.0 / 69.0 |\n| regmean | 32 | 60.0 / 65.0 |" in text
    assert "-1.0 on toy at rank 16 (`even, G^0.5`, 32 inputs, strength 1)." in text
    assert with_inputs([]) == ""
    for record, apart in zip(records[:2], (0.25, 0.5), strict=True):
        record["apart"] = apart
    text = with_inputs([*records, {**records[0], "scaling": 0.5, "score": 40.0, "apart": 0.125}])
    assert "| even | none | 70.0 / 72.0 |" in text
    assert "It would choose 0.5 on toy, where 1.4 is best." in text
    assert "| toy | outputs apart | 0.125 | 0.250 | 0.500 |\n|  | score | 40.0 | 70.0 | 72.0 |" in text


def test_agreement_is_the_mean_distance_from_each_adapters_outputs():
    class Asked:
        def outputs(self, update, task, count):
            return torch.full((count, 2), float(update) + len(task))

        @staticmethod
        def apart(own, other):
            return float((own - other).square().sum(dim=1).mean())

    kept = SimpleNamespace(evaluator=Asked(), ends={"a": None, "bb": None})
    assert agreement(kept, {"a": 1.0, "bb": 3.0}, {0.5: 1.0, 1.0: 2.0}, 3) == {0.5: 4.0, 1.0: 2.0}
