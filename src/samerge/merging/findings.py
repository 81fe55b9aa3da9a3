"""What a user should know of a merge, in sentences: causes for concern, and what is merely worth knowing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from samerge.adapters import Adapter
from samerge.merging.configuration import strangers_of
from samerge.merging.plan import Plan
from samerge.methods.method import Begun
from samerge.methods.problem import MOST_BALANCE, Problem
from samerge.methods.scaling import ROUNDING
from samerge.report.stored import LayerRecord
from samerge.weights.stored import name_of

#: Share of a layer's energy that a truncation may lose before the report says so in words.
NOTABLE_LOSS = 0.2


#: How many times as large as the adapters' weighted norms together a merged layer may be. No sum of them reaches 1, but
#: methods that make up for what they drop do: `dare` reaches 1 / sqrt(density), 10 where it keeps one element in 100.
LOUD = 20.0


@dataclass(frozen=True)
class Findings:
    """What the user should look at.

    Args:
        alarms: raised as Python warnings, too.
        others: in the report alone.
    """

    alarms: tuple[str, ...]
    others: tuple[str, ...]


def warnings_of(
    problem: Problem, experts: Sequence[Adapter], layers: Mapping[str, LayerRecord], dtype: torch.dtype
) -> Findings:
    """What the user should look at.

    Args:
        problem: the adapters as they were brought together.
        experts: the adapters.
        layers: what became of them.
        dtype: of the output.
    """
    alarms = [text for text in (strangers_of(problem.source, experts), _nothing(problem, layers, dtype)) if text]
    found = [note for expert in experts for note in expert.notes]
    ignored = [name for name, weight in zip(problem.names, problem.weights, strict=True) if weight == 0]
    if ignored and len(ignored) < len(problem.names):
        found.append(f"weight 0 leaves these adapters out: {', '.join(ignored)}")
    dtypes = {e.name: name_of(e.dtype) for e in experts if e.modules}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name}: {kind}" for name, kind in dtypes.items())
        found.append(
            f"the adapters have different dtypes ({listed}); the widest is written unless dtype= says otherwise"
        )
    found += _dora_warnings(layers)
    heavy = {m: layer.lost for m, layer in layers.items() if layer.lost > NOTABLE_LOSS}
    if heavy:
        worst = max(heavy, key=lambda m: heavy[m])
        found.append(
            f"truncation to the rank lost over {NOTABLE_LOSS:.0%} of the energy in {len(heavy)} of {len(layers)} "
            f"layers (most in {worst}: {heavy[worst]:.0%}); a larger rank keeps more"
        )
    found += _untrained(layers)
    found += _loud(problem, layers)
    capped = sorted(
        {n for layer in layers.values() for n, one in layer.adapters.items() if one.balance == MOST_BALANCE}
    )
    if capped:
        found.append(
            f"far smaller than the others: {', '.join(capped)}. The balance makes an adapter {MOST_BALANCE:g} times as "
            f"strong at most, so it stays relatively small; was it trained?"
        )
    return Findings(tuple(alarms), tuple(found))


def notes_of(problem: Problem, planned: Plan, begun: Begun) -> tuple[str, ...]:
    """What is worth knowing and no cause for concern.

    Args:
        problem: the adapters as they were brought together.
        planned: what was to be done.
        begun: the method, at work.
    """
    weights = [weight for weight in problem.weights if weight != 0]
    total = sum(weights)
    averaged = len(weights) > 1 and min(weights) > 0 and total <= 1 + ROUNDING
    strengths = (
        f"the weights sum to {total:.3g}; weights are strengths, 1.0 each is the usual choice, and c times all weights "
        f"makes the merge c times as strong"
    )
    return (
        *([planned.note] if planned.note else []),
        *begun.notes,
        *([strengths] if averaged else []),
        *([_CALIBRATE] if _calibration_would_help(problem, planned) else []),
    )


#: Adapters of a model that writes text from which on calibration kept more wherever it was measured, at their rank.
_MANY = 4
_CALIBRATE = (
    "four adapters and more of a model that writes text kept more of what each can do, at their rank and wherever it "
    "was measured, with calibration='random', which runs the base once and needs no data, or with a few texts"
)


def _calibration_would_help(problem: Problem, planned: Plan) -> bool:
    """Whether the base could be run, was not, and the merge is of a kind that gains by it."""
    if getattr(planned.own, "calibration", planned) is not None or problem.source is None:
        return False
    if problem.target > problem.rank or getattr(planned.own, "density", None) is not None:
        return False
    writes = any(name.endswith("ForCausalLM") for name in problem.source.config.get("architectures") or ())
    return writes and sum(weight != 0 for weight in problem.weights) >= _MANY


def _sizes(problem: Problem, layer: LayerRecord) -> list[float]:
    """The norms of the adapters' weighted updates in a layer."""
    weights = dict(zip(problem.names, problem.weights, strict=True))
    own = {n: weights[n] if one.weight is None else one.weight for n, one in layer.adapters.items()}
    return [abs(own[n]) * one.norm for n, one in layer.adapters.items()]


def _untrained(layers: Mapping[str, LayerRecord]) -> list[str]:
    """What to say of adapters that are zero in every layer, among others that are not."""
    largest: dict[str, float] = {}
    for layer in layers.values():
        for name, one in layer.adapters.items():
            largest[name] = max(largest.get(name, 0.0), one.norm)
    if not any(largest.values()):
        return []  # so is the merge, and that is said
    return [
        f"the adapter {name} adds nothing: its update is zero in every layer; was it trained?"
        for name, size in largest.items()
        if not size
    ]


def _loud(problem: Problem, layers: Mapping[str, LayerRecord]) -> list[str]:
    """What to say of layers that are larger than all that went in, after the balance, and were not scaled to be."""
    times = {}
    for module, layer in layers.items():
        balanced = [
            size * one.balance for size, one in zip(_sizes(problem, layer), layer.adapters.values(), strict=True)
        ]
        largest = max(1.0, abs(layer.scale)) * sum(balanced)
        if layer.norm > LOUD * largest > 0:
            times[module] = layer.norm / largest
    if not times:
        return []
    worst = max(times, key=lambda module: times[module])
    return [
        f"{len(times)} of {len(layers)} merged layers are over {LOUD:g} times as large as all adapters' updates there "
        f"together (most in {worst}: {times[worst]:.3g} times); if that is not meant, choose another method, "
        f"balance='norm', or a smaller scaling"
    ]


def _nothing(problem: Problem, layers: Mapping[str, LayerRecord], dtype: torch.dtype) -> str | None:
    """What to say when the merged update is zero in every layer, and why it is, as far as can be told."""

    def most(layer: LayerRecord) -> float:
        """The largest norm that an adapter's part of the sum has."""
        return max((abs(layer.scale) * size for size in _sizes(problem, layer)), default=0.0)

    least = torch.finfo(torch.float32).tiny  # of what a model in float32 has of it
    if any(layer.norm > max(least, ROUNDING * most(layer)) for layer in layers.values()):
        return None
    if not any(problem.weights):
        why = "all weights are 0; give one adapter another"
    elif not any(one.norm for layer in layers.values() for one in layer.adapters.values()):
        why = "every update that went in is zero already (B is 0 in LoRA that was never trained, or lora_alpha is 0)"
    elif not any(
        one.norm * one.energy_kept or one.kept == () for own in layers.values() for one in own.adapters.values()
    ):
        # a method that chooses components keeps one at least, but where they take one another back
        why = "pruning kept nothing; choose a larger density, or a rank"
    elif not any(layer.scale for layer in layers.values()):
        why = "the scaling is 0; choose another"
    elif max(map(most, layers.values())) < max(least, torch.finfo(dtype).tiny ** 2):  # each factor has half of the size
        why = f"weights and scaling make the updates smaller than {name_of(dtype)} can hold; choose larger ones"
    else:
        why = (
            "the weighted updates cancel each other, but for rounding; check the adapters (is one given twice, with "
            "weights of opposite sign?) with samerge inspect A B"
        )
    return f"the merged update is zero in every layer, so that the adapter does nothing: {why}"


#: A loss that is told as more than 0.0 %.
_TOLD_LOSS = 0.0005


def _dora_warnings(layers: Mapping[str, LayerRecord]) -> list[str]:
    """What the conversion of DoRA adapters lost, for each of them."""
    lost: dict[str, dict[str, float]] = {}
    for module, layer in layers.items():
        for name, one in layer.adapters.items():
            if one.dora_lost is not None:
                lost.setdefault(name, {})[module] = one.dora_lost
    found = []
    for name, shares in lost.items():
        worst = max(shares, key=lambda module: shares[module])
        if shares[worst] < _TOLD_LOSS:
            continue
        mean = sum(shares.values()) / len(shares)
        text = (
            f"converting the DoRA adapter {name} to LoRA lost {mean:.1%} of its update's energy on average (most in "
            f"{worst}: {shares[worst]:.1%})"
        )
        if max(shares.values()) > NOTABLE_LOSS:
            text += "; that is much: the merged adapter will not behave like it. dora='exact:<rank>' keeps more"
        found.append(text)
    return found
