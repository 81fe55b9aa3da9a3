"""The section of docs/evidence.md on merges that see a few inputs, from results/inputs.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tables import rows as table

#: The merge that sees weights alone, the default's chain.
ALONE = "even"


def with_inputs(records: Sequence[Mapping[str, Any]]) -> str:
    """A table: a row for each merge and number of inputs, a column for each suite and output rank."""
    if not records:
        return ""
    strengths = _strengths(records)
    records = [r for r in records if r["scaling"] in {o["scaling"] for o in records if o["merge"] != ALONE}]
    columns = sorted({(r["suite"], r["rank"] or 0) for r in records}, key=lambda c: (c[0], c[1] == 0))
    scores = {(r["merge"], r["inputs"], r["suite"], r["rank"] or 0, r["scaling"]): r["score"] for r in records}
    scalings = sorted({r["scaling"] for r in records})
    cells = []
    for merge, inputs in sorted({(r["merge"], r["inputs"]) for r in records}, key=lambda m: (m[0] != ALONE, *m)):
        row = [merge, str(inputs) if inputs else "none"]
        for suite, rank in columns:
            told = [scores.get((merge, inputs, suite, rank, scaling)) for scaling in scalings]
            row.append("" if None in told else " / ".join(f"{one:.1f}" for one in told))
        cells.append(row)
    both = " and ".join(f"{one:g}" for one in scalings)
    head = [
        "merge",
        "inputs a task",
        *(f"{suite}, {f'rank {rank}' if rank else 'as it comes'}" for suite, rank in columns),
    ]
    return "\n\n".join(
        [
            "## Do a few inputs help?",
            "Where there are some unlabelled inputs of each task, a merge can see what each module takes. "
            "RegMean solves for it in closed form; the default's chain can work in the metric of the inputs "
            f"(`benchmarks/inputs.py`; none of it is in samerge, which sees weights alone). Strengths {both}, in this "
            f"order; `{ALONE}` is the default's chain without inputs.",
            table(head, cells),
            _verdict(scores, columns),
            strengths,
        ]
    ).strip()


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
            f"Could agreement choose the strength? How far the outputs of `{ALONE}` are from those of each adapter on "
            "inputs of its own (embeddings: mean squared distance; texts: Kullback-Leibler divergence), beside the "
            f"score. It would choose {'; '.join(choices)}.",
            table(["suite", "strength", *(f"{one:g}" for one in scalings)], cells),
        ]
    )


def _verdict(scores: Mapping[tuple[Any, ...], float], columns: Sequence[tuple[str, int]]) -> str:
    """How the best with inputs does to the best without, column by column."""
    told = []
    for suite, rank in columns:
        of = {key: score for key, score in scores.items() if key[2:4] == (suite, rank)}
        without = max(score for key, score in of.items() if key[0] == ALONE)
        merge, inputs, *_, scaling = max((key for key in of if key[0] != ALONE), key=lambda key: of[key])
        best = max(score for key, score in of.items() if key[0] != ALONE)
        told.append(f"{best - without:+.1f} on {suite} {f'at rank {rank}' if rank else 'as it comes'} "
                    f"(`{merge}`, {inputs} inputs, strength {scaling:g})")  # fmt: skip
    return f"The best with inputs to `{ALONE}`, both at the better of these strengths: {'; '.join(told)}."
