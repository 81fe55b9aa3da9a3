"""The comparators against mergekit's merges of the same updates (benchmarks/peers.py), with the same masks.

mergekit trims every tensor by itself and, unlike PEFT, elects signs on the weighted values, as is done here. It cuts
shares of elements down to whole numbers; the shares here are whole. Ours have no counterpart of its breadcrumbs_ties,
della_linear, sce, ram and the averages of whole models.
"""

from __future__ import annotations

import pytest
import torch

from methods.dense import close
from methods.peers import CHANCES, FOUND, RECORD, UPDATES, layer
from methods.streams import run
from samerge.linalg.factors import concatenate
from samerge.methods import dare, della
from samerge.methods.della import probabilities
from samerge.methods.sign_election import SignOptions, elect

OPTIONS = RECORD["mergekit"]["options"]


@pytest.fixture(autouse=True)
def one_mask(monkeypatch):
    """mergekit's masks."""
    for module in (dare, della):
        monkeypatch.setattr(module, "uniform", lambda layer, start, tiles, seed: CHANCES[list(layer.parts)])


def ours(name, method, **own):
    """Our merge with the options that mergekit's `name` had."""
    given = OPTIONS[name]
    return run(method, [layer(given["weights"])], given["density"], **own)[0]


def single(found, theirs):
    """To the float32 that mergekit draws random masks in."""
    torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-8)


def test_task_arithmetic():
    given = layer(OPTIONS["task_arithmetic"]["weights"])
    close(concatenate(list(given.parts.values())).delta(), FOUND["mergekit.task_arithmetic"])


def test_ties_with_equal_weights():
    """The same, trim="layer"."""
    close(ours("ties", "ties", trim="layer"), FOUND["mergekit.ties"])


def test_ties_with_other_weights():
    """Without normalize the same as aggregate="sum", also with a negative weight.

    With normalize, its default, mergekit divides by the sum of the agreeing weights where PEFT and we divide by their
    number: its merge does not grow with the weights.
    """
    close(ours("ties_sum", "ties", trim="layer", aggregate="sum"), FOUND["mergekit.ties_sum"])
    found = ours("ties_mean", "ties", trim="layer")
    weights = torch.tensor(OPTIONS["ties_mean"]["weights"], dtype=torch.float64)
    count = round(OPTIONS["ties_mean"]["density"] * UPDATES[0].numel())
    values = torch.stack([w * tau for w, tau in zip(weights, UPDATES, strict=True)])
    limits = torch.stack([row.abs().flatten().sort(descending=True).values[count - 1] for row in values])
    values = values * (values.abs() >= limits[:, None, None])
    agree = (values.sign() * values.sum(dim=0).sign() > 0).double()
    mass = (agree * weights[:, None, None]).sum(dim=0)
    close(found * agree.sum(dim=0), FOUND["mergekit.ties_mean"] * mass)
    assert not torch.allclose(found, FOUND["mergekit.ties_mean"])


def test_breadcrumbs():
    """The same: the largest `top` (gamma) dropped, of the rest the largest `density`; by layer, weights afterwards."""
    name = "breadcrumbs"
    close(ours(name, name, top=OPTIONS[name]["gamma"]), FOUND["mergekit.breadcrumbs"])


def test_dare():
    """The same but for the factor, 1/density here as in the paper and in PEFT.

    mergekit's `rescale`, its default, brings every adapter back to the L1 norm that it had, which is 1/density times a
    random number near 1.
    """
    single(ours("dare_linear", "dare"), FOUND["mergekit.dare_linear"] / OPTIONS["dare_linear"]["density"])
    single(
        ours("dare_ties", "dare-ties", aggregate="sum"),
        FOUND["mergekit.dare_ties"] / OPTIONS["dare_ties"]["density"],
    )
    share = OPTIONS["dare_linear_rescaled"]["density"]
    kept = [tau * (chance < share) for tau, chance in zip(UPDATES, CHANCES, strict=True)]
    factors = [float(tau.abs().sum() / part.abs().sum()) for tau, part in zip(UPDATES, kept, strict=True)]
    single(sum(f * part for f, part in zip(factors, kept, strict=True)), FOUND["mergekit.dare_linear_rescaled"])
    assert factors == pytest.approx([1 / share] * 3, rel=0.2)


def test_della():
    """One law of the masks: the same probabilities, and mergekit's masks of 4000 runs follow ours to 5 deviations.

    The factor differs: 1/p for each element here, as in the authors' code, so that the mean over masks is the update;
    mergekit brings the L1 norm back, which favours the large values that p already favours.
    """
    given = OPTIONS["della_kept"]
    share = probabilities(UPDATES[0], given["density"], given["epsilon"])
    single(share.float(), FOUND["mergekit.della_shares"].float())
    deviation = (share * (1 - share) / given["runs"]).sqrt()
    assert bool(((FOUND["mergekit.della_kept"] - share).abs() < 5 * deviation).all())
    assert bool((FOUND["mergekit.dare_shares"] == torch.tensor(given["density"])).all())
    name = "della_rescaled"
    found = ours(name, "della", epsilon=OPTIONS[name]["epsilon"])
    shares = torch.stack([probabilities(tau, OPTIONS[name]["density"], OPTIONS[name]["epsilon"]) for tau in UPDATES])
    kept = torch.stack(UPDATES) * (shares > CHANCES)
    close(found, elect(kept / shares, SignOptions()))
    norms = torch.stack(UPDATES).abs().sum(dim=(1, 2)) / kept.abs().sum(dim=(1, 2))
    single(elect(kept * norms[:, None, None], SignOptions()), FOUND["mergekit.della_rescaled"])
