"""What docs say of merges that see a few inputs, from results/inputs.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from tables import rows as table

Records = Sequence[Mapping[str, Any]]

#: The columns: a merge, and what it is called on the page.
ALONE, RANDOM, OWN = "default", "default, random tokens", "default, own inputs"
REGMEAN = "regmean"
HEADS = {ALONE: "weights alone", RANDOM: "random tokens", OWN: "own inputs", REGMEAN: "RegMean, at 1 / 1.4"}
#: What the models of the suites are asked for.
WRITES = "texts are written"
KINDS = {
    **dict.fromkeys(("exact", "language", "language-mixed"), WRITES),
    **dict.fromkeys(("minilm", "minilm-same-init", "smollm2", "vision"), "classes are told apart"),
}
#: Merges of fewer adapters than this are of groups of a suite's adapters.
MANY = 5


class Row(NamedTuple):
    """What was merged: how many adapters of a suite, to which rank (0: as it comes)."""

    suite: str
    adapters: int
    rank: int

    def __str__(self) -> str:
        count = f", {self.adapters} adapters" if self.adapters < MANY else ""
        return f"{self.suite}{count} {f'at rank {self.rank}' if self.rank else 'as it comes'}"


def _row(record: Mapping[str, Any]) -> Row:
    return Row(record["suite"], record["adapters"], record["rank"] or 0)


def _scores(records: Records) -> dict[tuple[str, Row], dict[float, float]]:
    """By merge and row the score at each strength, of the most inputs."""
    most: dict[tuple[str, Row], int] = {}
    found: dict[tuple[str, Row], dict[float, float]] = {}
    for r in sorted((r for r in records if r["merge"] in HEADS), key=lambda r: int(r["inputs"])):
        key = (r["merge"], _row(r))
        if most.setdefault(key, r["inputs"]) < r["inputs"]:
            most[key], found[key] = r["inputs"], {}
        found.setdefault(key, {})[r["scaling"]] = r["score"]
    return found


def _gains(records: Records, merge: str) -> dict[Row, float]:
    """What a merge adds to weights alone, both at strength 1."""
    scores = _scores(records)
    rows = [row for name, row in scores if name == merge and (ALONE, row) in scores]
    return {row: scores[merge, row][1.0] - scores[ALONE, row][1.0] for row in rows}


def with_inputs(records: Records) -> str:
    """What inputs add, by the number of adapters; RegMean; whether agreement can choose the strength."""
    if not any(r["merge"] in HEADS for r in records):
        return ""
    counts = sorted({r["inputs"] for r in records if r["merge"] == OWN})
    return "\n\n".join(
        part
        for part in (
            "## Do a few inputs help?",
            "`calibration` runs the base once, on inputs without labels, and merges in the metric of what each module "
            "takes there ([how](method.md#with-a-few-inputs)): 512 tokens drawn at random, which takes no data at all, "
            f"or {_range(counts)} texts or pictures of every adapter's own task. The points that it adds to the "
            "default by weights alone, nothing tuned, mean over suites "
            "([each](evidence-tables.md#with-a-few-inputs)):",
            _by_number(records),
            f"{_extremes(records)} The metric's power and its strength were chosen with all suites but language-mixed "
            f"in sight. {_regmean(records)}{_agreement(records)[0]}".strip(),
        )
        if part
    )


def inputs_in_short(records: Records) -> str:
    """What random tokens add where texts are written, at the adapters' rank, to merges of four and more."""
    gains = {
        row: gain
        for row, gain in _gains(records, RANDOM).items()
        if row.rank and row.adapters > 3 and KINDS[row.suite] == WRITES
    }
    if not gains:
        return "not measured"
    return (
        f"running the base once on random tokens (`calibration`) adds {min(gains.values()):.1f} to "
        f"{max(gains.values()):.1f} points at the adapters' rank"
    )


def inputs_tables(records: Records) -> str:
    """A row for each suite, number of adapters and output rank, a column for each merge."""
    scores = _scores(records)
    if not scores:
        return ""
    rows = sorted({row for _, row in scores}, key=lambda row: (row.adapters < MANY, row[:2], row.rank == 0))

    def cell(merge: str, row: Row) -> str:
        own = scores.get((merge, row), {})
        return " / ".join(f"{own[scaling]:.1f}" for scaling in sorted(own))

    cells = [
        [row.suite, str(row.adapters), str(row.rank or "as it comes"), *(cell(merge, row) for merge in HEADS)]
        for row in rows
    ]
    head = ["suite", "adapters", "output rank", *HEADS.values()]
    return "\n\n".join(["## With a few inputs", table(head, cells), *_agreement(records)[1:]])


def _range(counts: Sequence[int]) -> str:
    if not counts:
        return "some"
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _by_number(records: Records) -> str:
    """A row for each output rank and number of adapters, a column for each kind of task and merge."""
    gains = {merge: _gains(records, merge) for merge in (RANDOM, OWN)}
    counts = sorted({row.adapters for own in gains.values() for row in own})
    many = [count for count in counts if count >= MANY]
    groups = [([count], str(count)) for count in counts if count < MANY] + ([(many, _range(many))] if many else [])
    kinds = list(dict.fromkeys(KINDS.values()))
    cells = []
    for cut in (True, False):
        for group, name in groups:
            line = [name, "the adapters'" if cut else "as it comes"]
            for kind in kinds:
                for own in gains.values():
                    rows = [row for row in own if row.adapters in group and KINDS[row.suite] == kind]
                    found = [own[row] for row in rows if bool(row.rank) == cut]
                    line.append(f"{fmean(found):+.1f}" if found else "")
            cells.append(line)
    head = [f"{kind}: {HEADS[merge]}" for kind in kinds for merge in gains]
    return table(["adapters", "output rank", *head], cells)


def _extremes(records: Records) -> str:
    """What the two ways add at worst and at best."""
    told = []
    for merge in (RANDOM, OWN):
        gains = _gains(records, merge)
        if gains:
            worst, best = min(gains, key=lambda row: gains[row]), max(gains, key=lambda row: gains[row])
            told.append(
                f"{HEADS[merge].capitalize()} add between {gains[worst]:+.1f} ({worst}) and {gains[best]:+.1f} "
                f"({best})."
            )
    return " ".join(told)


def _regmean(records: Records) -> str:
    """RegMean at the better of its strengths, beside own inputs."""
    scores = _scores(records)
    told = []
    for merge, row in sorted(scores):
        if merge == REGMEAN and (OWN, row) in scores:
            best = max(scores[merge, row].values())
            told.append(f"{row} {best:.1f} (`calibration` {scores[OWN, row][1.0]:.1f})")
    if not told:
        return ""
    return (
        "RegMean, which solves for the same second moments in closed form and is not in samerge "
        f"(`benchmarks/inputs.py`), keeps at the better of two strengths: {'; '.join(told)}. "
    )


def _agreement(records: Records) -> tuple[str, ...]:
    """What agreement with the adapters' own outputs says of the strength: in a sentence, then beside the scores."""
    told = [r for r in records if "apart" in r]
    scalings = sorted({r["scaling"] for r in told})
    cells, choices = [], []
    for suite in dict.fromkeys(r["suite"] for r in told):
        own = {r["scaling"]: r for r in told if r["suite"] == suite}
        cells.append([suite, "outputs apart", *(f"{own[one]['apart']:.3f}" if one in own else "" for one in scalings)])
        cells.append(["", "score", *(f"{own[one]['score']:.1f}" if one in own else "" for one in scalings)])
        chosen, best = min(own, key=lambda one: own[one]["apart"]), max(own, key=lambda one: own[one]["score"])
        choices.append(f"{chosen:g} on {suite}, where {best:g} is best")
    if not told:
        return ("",)
    return (
        "How far the outputs of a merge are from those of each adapter on its own inputs is no safe way to choose the "
        f"strength of `even`: it says {'; '.join(choices)}.",
        "How far the outputs of `even` are from those of each adapter on inputs of its own (embeddings: mean squared "
        "distance; texts: Kullback-Leibler divergence), beside the score:",
        table(["suite", "strength", *(f"{one:g}" for one in scalings)], cells),
    )
