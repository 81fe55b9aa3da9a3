"""The section of docs/evidence.md on merges that see a few inputs, from results/inputs.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tables import rows as table

#: The columns: a merge, and what it is called on the page.
ALONE, RANDOM, OWN = "default", "default, random tokens", "default, own inputs"
REGMEAN = "regmean"
HEADS = {ALONE: "weights alone", RANDOM: "random tokens", OWN: "own inputs", REGMEAN: "RegMean, at 1 / 1.4"}


def with_inputs(records: Sequence[Mapping[str, Any]]) -> str:
    """A table: a row for each suite and output rank, a column for each merge."""
    told = [r for r in records if r["merge"] in HEADS]
    if not told:
        return ""
    rows = sorted({(r["suite"], r["rank"] or 0) for r in told}, key=lambda row: (row[0], row[1] == 0))
    cells = []
    for suite, rank in rows:
        cells.append([suite, str(rank) if rank else "as it comes", *(_cell(told, suite, rank, one) for one in HEADS)])
    counts = sorted({r["inputs"] for r in told if r["merge"] == OWN})
    return "\n\n".join(
        [
            "## Do a few inputs help?",
            "`calibration` runs the base once, on inputs without labels, and merges in the metric of what each module "
            "takes there ([how](method.md#with-a-few-inputs)). Beside the default by weights alone: with 512 tokens "
            f"drawn at random, which takes no data at all, and with {_range(counts)} texts or pictures of every "
            "adapter's own task. All at strength 1, nothing tuned. RegMean solves for the same second moments in "
            "closed form; it is not in samerge (`benchmarks/inputs.py`). The metric's power and its strength were "
            "chosen with all of these but language-mixed in sight.",
            table(["suite", "output rank", *HEADS.values()], cells),
            _verdict(told, rows),
            _strengths(records),
        ]
    ).strip()


def _cell(records: Sequence[Mapping[str, Any]], suite: str, rank: int, merge: str) -> str:
    own = {
        (r["inputs"], r["scaling"]): r["score"]
        for r in records
        if (r["suite"], r["rank"] or 0, r["merge"]) == (suite, rank, merge)
    }
    most = max((inputs for inputs, _ in own), default=0)
    return " / ".join(f"{own[key]:.1f}" for key in sorted(own) if key[0] == most)


def _range(counts: Sequence[int]) -> str:
    if not counts:
        return "some"
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _verdict(records: Sequence[Mapping[str, Any]], rows: Sequence[tuple[str, int]]) -> str:
    """What the two ways add to weights alone, on the mean and at worst."""
    score = {(r["merge"], (r["suite"], r["rank"] or 0)): r["score"] for r in records if r["merge"] != REGMEAN}
    told = []
    for merge, name in ((RANDOM, "Random tokens"), (OWN, "Own inputs")):
        both = [row for row in rows if (merge, row) in score and (ALONE, row) in score]
        gains = {row: score[merge, row] - score[ALONE, row] for row in both}
        if gains:
            worst = min(gains, key=lambda row: gains[row])
            best = max(gains, key=lambda row: gains[row])
            told.append(
                f"{name} add {fmean(gains.values()):+.1f} on the mean, from {gains[worst]:+.1f} ({_named(worst)}) to "
                f"{gains[best]:+.1f} ({_named(best)})."
            )
    return " ".join(told)


def _named(row: tuple[str, int]) -> str:
    suite, rank = row
    return f"{suite} {f'at rank {rank}' if rank else 'as it comes'}"


def _strengths(records: Sequence[Mapping[str, Any]]) -> str:
    """What agreement with the adapters' own outputs says of the strength, beside the scores."""
    told = [r for r in records if "apart" in r]
    if not told:
        return ""
    scalings = sorted({r["scaling"] for r in told})
    cells, choices = [], []
    for suite in dict.fromkeys(r["suite"] for r in told):
        own = {r["scaling"]: r for r in told if r["suite"] == suite}
        cells.append([suite, "outputs apart", *(f"{own[one]['apart']:.3f}" if one in own else "" for one in scalings)])
        cells.append(["", "score", *(f"{own[one]['score']:.1f}" if one in own else "" for one in scalings)])
        chosen, best = min(own, key=lambda one: own[one]["apart"]), max(own, key=lambda one: own[one]["score"])
        choices.append(f"{chosen:g} on {suite}, where {best:g} is best")
    return "\n\n".join(
        [
            "Could agreement choose the strength? How far the outputs of `even` are from those of each adapter on "
            "inputs of its own (embeddings: mean squared distance; texts: Kullback-Leibler divergence), beside the "
            f"score. It would choose {'; '.join(choices)}.",
            table(["suite", "strength", *(f"{one:g}" for one in scalings)], cells),
        ]
    )
