"""`dare`, `dare-ties` and `della`: the masks' law, the merge given the masks, and seeds."""

from __future__ import annotations

import pytest
import torch

import samerge
from methods.dense import close
from methods.streams import dense, election, layers, run
from samerge.linalg.factors import LoraFactors
from samerge.methods.chance import uniform
from samerge.methods.della import probabilities
from samerge.methods.rows import Layer


def drawn(layer, seed):
    """The uniform numbers of a layer that is one tile."""
    return dict(zip(layer.parts, uniform(layer, 0, layer.rows(0), seed), strict=True))


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_dare(density):
    made = layers()
    added = run("dare", made, density, seed=3)
    elected = run("dare-ties", made, density, seed=3)
    for layer, update, one, other in zip(made, dense(made), added, elected, strict=True):
        chance = drawn(layer, 3)
        kept = [delta * (chance[n] < density) / density for n, delta in update.items()]
        close(one, sum(kept))
        close(other, election(kept))


def naive_probabilities(row, density, epsilon):
    order = sorted(range(len(row)), key=lambda j: (abs(float(row[j])), j))
    ranks = {j: place + 1 for place, j in enumerate(order)}
    n = len(row)
    return torch.tensor([(density - epsilon) + 2 * epsilon * (ranks[j] - 1) / (n - 1) for j in range(n)])


@pytest.mark.parametrize(("density", "epsilon"), [(0.3, 0.05), (0.5, 0.5 - 1e-9), (0.9, 0.0)])
def test_della(density, epsilon):
    made = layers()
    found = run("della", made, density, epsilon=epsilon, seed=1)
    for layer, update, merged in zip(made, dense(made), found, strict=True):
        chance, kept = drawn(layer, 1), []
        for n, delta in update.items():
            p = torch.stack([naive_probabilities(row, density, epsilon) for row in delta]).double()
            torch.testing.assert_close(probabilities(delta, density, epsilon), p, rtol=1e-6, atol=1e-7)
            p = probabilities(delta, density, epsilon)
            kept.append(delta * (chance[n] < p) / p)
        close(merged, election(kept))


def test_the_mean_over_many_masks_is_the_update():
    """Unbiased: the mean of dare over seeds is the sum, of kept elements the density."""
    made = layers()
    total = [torch.zeros(layer.shape, dtype=torch.float64) for layer in made]
    kept = 0
    for seed in range(400):
        for merged, one in zip(total, run("dare", made, 0.5, seed=seed), strict=True):
            merged += one / 400
        kept += int((drawn(made[0], seed)[0] < 0.5).sum())
    for merged, update in zip(total, dense(made), strict=True):
        exact = sum(update.values())
        assert (merged - exact).norm() < 0.12 * exact.norm()
    assert kept / (400 * 63) == pytest.approx(0.5, abs=0.02)


def test_seeds():
    before = torch.get_rng_state()
    one, same, other = (run("dare", layers(), seed=seed)[0] for seed in (0, 0, 1))
    close(one, same)
    assert (one - other).abs().max() > 1e-2
    assert torch.equal(before, torch.get_rng_state())


def test_adapters_modules_and_rows_draw_differently():
    part = LoraFactors(torch.ones(1, 50), torch.ones(40, 1))
    layer = Layer("a", (40, 50), {0: "x", 1: "y"}, {0: part, 1: part})
    x, y = uniform(layer, 0, layer.rows(0), 0)
    z = uniform(Layer("b", (40, 50), {0: "x"}, {0: part}), 0, layer.rows(0), 0)[0]
    for a, b in ((x, y), (x, z), (y, z)):
        assert abs(float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])) < 0.1
    renumbered = Layer("a", (40, 50), {4: "y"}, {4: part})
    assert torch.equal(uniform(renumbered, 0, renumbered.rows(0), 0)[0], y)


def test_what_is_refused(tmp_path):
    from tiny import chain, chain_factors, write_adapter

    adapter = write_adapter(tmp_path / "a", chain_factors(chain([6, 5]), 2, seed=0))
    with pytest.raises(samerge.OptionError, match=r"epsilon=0\.4: the probabilities run from density - epsilon"):
        samerge.merge(None, [adapter], method="della", epsilon=0.4)
    with pytest.raises(samerge.OptionError, match=r"seed=1\.5 must be a whole number"):
        samerge.merge(None, [adapter], method="dare", seed=1.5)
