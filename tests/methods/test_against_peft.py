"""The comparators against PEFT's own merges, `peft.utils.merge_utils` and `add_weighted_adapter`, on the same updates.

Where the two differ, the test says why and shows that this is all of the difference. The random ones get one mask.
"""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from peft_faults import counts_scales_once
from tiny import randomise
from torch import Tensor

import samerge
from methods.dense import close
from methods.streams import dense, layers, run
from samerge.linalg.factors import LoraFactors
from samerge.methods.chance import uniform
from samerge.methods.rows import Layer

WEIGHTS = [1.0, -0.5, 2.0]
#: 33 of the 66 elements of the layer that all three experts adapt, 21 of 66.
DENSITIES = [33 / 66, 21 / 66]
NAMES = ["math", "code", "talk"]


def case(weights: list[float]) -> tuple[Layer, list[Tensor], Tensor]:
    """The layer that all experts adapt, weighted; their unweighted updates; the weights."""
    layer = layers(weights=dict(enumerate(weights)))[1]
    plain = dense(layers(weights=dict.fromkeys(range(3), 1.0)))[1]
    return layer, list(plain.values()), torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("weights", [[1.0] * 3, WEIGHTS])
def test_magnitude_prune(density, weights):
    """The same for all weights: both choose before they weight."""
    layer, deltas, given = case(weights)
    (ours,) = run("magnitude-prune", [layer], density)
    close(ours, merge_utils.magnitude_prune(deltas, given, density))


def test_how_many_are_kept():
    """PEFT rounds down, to none at last; here to the nearest, one at least. Of 66, 0.17 are 11.22 and 0.18 are 11.88.

    At a density of 1 PEFT warns; the merge is the same.
    """
    layer, deltas, _ = case([1.0] * 3)
    alone = Layer(layer.module, layer.shape, {0: "zero"}, {0: layer.parts[0]})
    for density, theirs, ours in [(0.17, 11, 11), (0.18, 11, 12), (0.001, 0, 1)]:
        assert int((merge_utils.prune(deltas[0], density, "magnitude") != 0).sum()) == theirs
        (merged,) = run("magnitude-prune", [alone], density)
        assert int((merged != 0).sum()) == ours
    with pytest.warns(UserWarning, match="no pruning will be performed"):
        theirs = merge_utils.magnitude_prune(deltas, torch.ones(3, dtype=torch.float64), 1.0)
    (ours,) = run("magnitude-prune", [layer], 1.0)
    close(ours, theirs)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("vote", ["total", "frequency"])
@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_ties_with_equal_weights(density, vote, weight):
    """By layer the same, but where the vote by frequency is a draw: PEFT gives it to plus, here nobody has it."""
    layer, deltas, given = case([weight] * 3)
    (ours,) = run("ties", [layer], density, trim="layer", majority_sign_method=vote)
    theirs = merge_utils.ties(deltas, given, density, vote)
    trimmed = torch.stack([merge_utils.prune(d, density, "magnitude") for d in deltas])
    votes = (trimmed if vote == "total" else trimmed.sign()).sum(dim=0)
    close(ours[votes != 0], theirs[votes != 0])
    draw = (votes == 0) & (trimmed != 0).any(dim=0)
    assert bool(draw.any()) == (vote == "frequency")
    assert not ours[draw].any()
    assert (theirs[draw] > 0).all()


@pytest.mark.parametrize("vote", ["total", "frequency"])
def test_ties_with_other_weights(vote):
    """PEFT elects signs on the unweighted values, so that an adapter with a negative weight counts for what it is not.

    Here w tau is what is merged and so what is elected on: PEFT's own function gives it when w tau is what it is given.
    """
    layer, deltas, given = case(WEIGHTS)
    density = DENSITIES[0]
    (ours,) = run("ties", [layer], density, trim="layer", majority_sign_method=vote)
    weighted = [w * delta for w, delta in zip(WEIGHTS, deltas, strict=True)]
    theirs = merge_utils.ties(weighted, torch.ones(3, dtype=torch.float64), density, vote)
    trimmed = torch.stack([merge_utils.prune(d, density, "magnitude") for d in weighted])
    decided = (trimmed if vote == "total" else trimmed.sign()).sum(dim=0) != 0
    close(ours[decided], theirs[decided])
    assert not torch.allclose(ours, merge_utils.ties(deltas, given, density, vote))


def test_ties_over_the_whole_adapter():
    """PEFT trims every tensor by itself; `ties` as it is by default is PEFT's function on flattened adapters."""
    made = layers(weights=dict.fromkeys(range(3), 1.0))
    shared = [
        Layer(one.module, one.shape, {0: "zero", 2: "two"}, {n: one.parts[n] for n in (0, 2)}) for one in made[1:]
    ]
    flat = [torch.cat([one.parts[n].delta().flatten() for one in shared]) for n in (0, 2)]
    density = 53 / len(flat[0])
    ours = torch.cat([merged.flatten() for merged in run("ties", shared, density)])
    close(ours, merge_utils.ties(flat, torch.ones(2, dtype=torch.float64), density))
    by_layer = torch.cat([merged.flatten() for merged in run("ties", shared, density, trim="layer")])
    assert not torch.allclose(ours, by_layer)


def masks_of(monkeypatch: pytest.MonkeyPatch, drawn: list[Tensor]) -> None:
    """PEFT's masks are those that samerge draws."""
    left = iter(drawn)

    def bernoulli(input: Tensor) -> Tensor:
        chance = next(left)
        assert chance.shape == input.shape
        return (chance < input).to(input.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)


@pytest.mark.parametrize("weights", [[1.0] * 3, WEIGHTS])
def test_dare_with_one_mask(weights, monkeypatch):
    """The same for all weights."""
    layer, deltas, given = case(weights)
    (ours,) = run("dare", [layer], 0.4, seed=5)
    masks_of(monkeypatch, list(uniform(layer, 0, layer.rows(0), 5)))
    close(ours, merge_utils.dare_linear(deltas, given, 0.4))


@pytest.mark.parametrize("vote", ["total", "frequency"])
@pytest.mark.parametrize("weights", [[1.0] * 3, WEIGHTS])
def test_dare_ties_with_one_mask(weights, vote, monkeypatch):
    """As `ties`: the same with equal weights and no draws; otherwise PEFT's function on w tau."""
    layer, deltas, _ = case(weights)
    (ours,) = run("dare-ties", [layer], 0.4, seed=5, majority_sign_method=vote)
    chance = uniform(layer, 0, layer.rows(0), 5)
    masks_of(monkeypatch, list(chance))
    weighted = torch.stack([w * delta for w, delta in zip(weights, deltas, strict=True)])
    theirs = merge_utils.dare_ties(list(weighted), torch.ones(3, dtype=torch.float64), 0.4, vote)
    kept = weighted * (chance < 0.4)
    decided = (kept if vote == "total" else kept.sign()).sum(dim=0) != 0
    close(ours[decided], theirs[decided])
    assert not ours[~decided].any()


def test_masks_have_one_law():
    """Each its own random numbers: density, mean and spread of what is kept of 40 000 ones, to 5 deviations."""
    density, count = 0.3, 40_000
    layer = Layer("a", (200, 200), {0: "zero"}, {0: LoraFactors(torch.ones(1, 200), torch.ones(200, 1))})
    (ours,) = run("dare", [layer], density)
    torch.manual_seed(0)
    theirs = merge_utils.dare_linear([torch.ones(200, 200)], torch.ones(1), density)
    spread = math.sqrt((1 - density) / density)
    for found in (ours, theirs):
        assert abs(float((found != 0).float().mean()) - density) < 5 * math.sqrt(density * (1 - density) / count)
        assert abs(float(found.mean()) - 1) < 5 * spread / math.sqrt(count)
        assert float(found.std()) == pytest.approx(spread, rel=0.03)


def model():
    """Three adapters of ranks 3, 4 and 3 on two layers; the second layer is adapted by the first two only."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Linear(16, 14))
    both = [LoraConfig(r=r, lora_alpha=2 * r, target_modules=["0", "1"]) for r in (3, 4)]
    found = get_peft_model(net, both[0], adapter_name="math")
    found.add_adapter("code", both[1])
    found.add_adapter("talk", LoraConfig(r=3, lora_alpha=5, target_modules=["0"]))
    randomise(found)
    return found


def merged_by_both(model, weights, kind, rank, **options) -> list[tuple[Tensor, Tensor]]:
    model.add_weighted_adapter(NAMES, weights, "theirs", kind, svd_rank=rank, **options)
    samerge.add_weighted_adapter(model, NAMES, weights, "ours", kind, rank, progress=False, **options)
    found = [model.base_model.model[number] for number in (0, 1)]
    return [(layer.get_delta_weight("ours"), layer.get_delta_weight("theirs")) for layer in found]


@counts_scales_once
@pytest.mark.parametrize("rank", [2, 5, 12])
@pytest.mark.parametrize(
    ("kind", "weights", "options"),
    [
        ("svd", WEIGHTS, {}),
        ("magnitude_prune_svd", WEIGHTS, {"density": 0.25}),
        ("ties_svd", [1.0] * 3, {"density": 0.25}),
    ],
)
def test_on_a_model(kind, weights, options, rank):
    """Truncated to one rank, adapters of different ranks, a layer that one of them lacks."""
    for ours, theirs in merged_by_both(model(), weights, kind, rank, **options):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_cat_on_a_model():
    for ours, theirs in merged_by_both(model(), WEIGHTS, "cat", None):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@counts_scales_once
@pytest.mark.parametrize("kind", ["dare_linear_svd", "dare_ties_svd"])
def test_dare_on_a_model_with_one_mask(kind, monkeypatch):
    live = model()
    modules, drawn = ["0", "1"], []
    for number, module in enumerate(modules):
        experts = NAMES if number == 0 else NAMES[:2]
        shape = tuple(live.base_model.model[number].weight.shape)
        parts = {n: LoraFactors(torch.zeros(1, shape[1]), torch.zeros(shape[0], 1)) for n in range(len(experts))}
        layer = Layer(module, shape, dict(enumerate(experts)), parts)
        drawn += list(uniform(layer, 0, layer.rows(0), 0))
    masks_of(monkeypatch, drawn)
    for ours, theirs in merged_by_both(live, [1.0] * 3, kind, 5, density=0.5):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_linear_has_cross_terms_in_peft():
    """PEFT's `linear` adds A's and B's apart, each times the root of the weight: the sum, and B_i A_j of every two.

    So do its `ties`, `dare_linear`, `dare_ties` and `magnitude_prune`, which prune A and B as if they were updates;
    these have no counterpart here. One of them alone is the adapter itself.
    """
    torch.manual_seed(0)
    live = get_peft_model(
        torch.nn.Sequential(torch.nn.Linear(8, 9)), LoraConfig(r=3, lora_alpha=6, target_modules=["0"]), "math"
    )
    live.add_adapter("code", LoraConfig(r=3, lora_alpha=3, target_modules=["0"]))
    randomise(live)
    layer, pair, weights = live.base_model.model[0], ["math", "code"], [0.5, 2.0]
    live.add_weighted_adapter(pair, weights, "theirs", "linear")
    samerge.add_weighted_adapter(live, pair, weights, "ours", "linear", progress=False)
    roots = [math.sqrt(w * layer.scaling[name]) for w, name in zip(weights, pair, strict=True)]
    A = [root * layer.lora_A[name].weight for root, name in zip(roots, pair, strict=True)]
    B = [root * layer.lora_B[name].weight for root, name in zip(roots, pair, strict=True)]
    ours, theirs = layer.get_delta_weight("ours"), layer.get_delta_weight("theirs")
    torch.testing.assert_close(theirs - ours, B[0] @ A[1] + B[1] @ A[0], rtol=1e-4, atol=1e-4)
    live.add_weighted_adapter(["math"], [0.5], "alone", "linear")
    torch.testing.assert_close(layer.get_delta_weight("alone"), 0.5 * layer.get_delta_weight("math"))
