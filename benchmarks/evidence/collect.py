"""From the cache's lines of measurements to results/quality.json: scores, intervals, differences, means over suites."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from suites import PUBLIC, SUITES
from suites.base import Part
from torch import Tensor

from evidence.runs import Setting, read_lines, settings
from evidence.scores import Gains, has_score, interval, resampled, score, unpack
from evidence.store import Results
from evidence.table import ALL, DEFAULT, FAMILIES

Line = Mapping[str, Any]

#: By key. A line may have been written under another table: its role and whether it is published are this one's.
_KNOWN = {setting.key(): setting for setting in settings(FAMILIES, "*", ALL)}


def collect(cache: Path, known: Results) -> Results:
    """What results/quality.json holds: the suites in the cache, and what else was known.

    Args:
        cache: with the lines of every suite that was measured here.
        known: of the file as it is; suites that the cache has not stay as they are there.
    """
    suites: dict[str, Any] = {}
    records: list[dict[str, Any]] = []
    samples: dict[str, dict[tuple[str, str], Tensor]] = {}
    for name, (module, kind) in (SUITES | PUBLIC).items():
        lines = [line for line in read_lines(cache / name / "measurements.jsonl") if _is_known(line)]
        by_identity: dict[str, list[Line]] = defaultdict(list)
        for line in lines:
            by_identity[line["identity"]].append(line)
        found = [own for own in by_identity.values() if _defaults(own)]
        for own in sorted(found, key=len, reverse=True):
            suite = getattr(importlib.import_module(module), kind)
            for part in suite.parts():
                label = part.name if part.name not in suites else f"{part.name}, {_rows(own)} rows a task"
                suites[label], more, samples[label] = of_part(label, part, suite.about, own)
                records += more
    kept = {name: about for name, about in known.get("suites", {}).items() if name not in suites}
    records += [record for record in known.get("records", []) if record["suite"] in kept]
    return {"suites": suites | kept, "overall": overall(suites, records, samples), "records": records}


def of_part(
    label: str, part: Part, about: str, lines: Sequence[Line]
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[tuple[str, str], Tensor]]:
    """What is to be said of a suite, a record for each of its merges, and the samples of those that nobody tuned."""
    base = next(line for line in lines if line["merge"] == "base")
    own = {line["merge"].removeprefix("expert "): line for line in lines if line["merge"].startswith("expert ")}
    merges = [line for line in lines if line["role"] != "reference"]
    tasks = [task for task in part.tasks if task in own]
    losses = {task: (unpack(base["losses"][task]), unpack(own[task]["losses"][task])) for task in tasks}
    smooth = [task for task in tasks if has_score(*(float(one.mean()) for one in losses[task]))]
    documents = {task: torch.tensor(of) for task, of in base.get("documents", {}).items()}
    gained = {task: losses[task][0] - losses[task][1] for task in smooth}

    def gain(line: Line) -> Gains:
        return {task: losses[task][0] - unpack(line["losses"][task]) for task in smooth}

    answered = [task for task in tasks if task in base.get("correct", {})]

    def right(line: Line) -> Gains:
        return {task: unpack(line["correct"][task]) for task in answered}

    figures, samples = _figures(merges, [gain(line) for line in merges], gained, documents)
    accuracy: list[dict[str, Any] | None] = [None] * len(merges)
    if answered:
        accuracy, _ = _figures(
            merges,
            [right(line) for line in merges],
            {task: unpack(own[task]["correct"][task]) for task in answered},
            {},
        )
    told = ("merge", "budget", "rank", "density", "scaling", "seed", "foretold")
    records = [
        {
            "suite": label,
            **{key: line[key] for key in told},
            "role": _setting(line).family.role,
            "published": _setting(line).published,
            **figure,
            "accuracy": right_ones,
            "tasks": {task: round(100 * float(gain(line)[task].mean() / gained[task].mean()), 1) for task in smooth},
        }
        for line, figure, right_ones in zip(merges, figures, accuracy, strict=True)
    ]
    asked = [line for line in own.values() if set(tasks) <= set(line["losses"])]
    whole = {
        "about": about,
        "judge": part.judge,
        "rows": _rows(lines),
        "documents": {task: len(set(of.tolist())) for task, of in documents.items() if task in tasks},
        "losses": {task: [round(float(one.mean()), 4) for one in losses[task]] for task in tasks},
        "without a smooth score": [task for task in tasks if task not in smooth],
        "accuracy": {
            task: [round(100 * float(unpack(line["correct"][task]).mean()), 1) for line in (base, own[task])]
            for task in answered
        },
        "one for all": round(fmean(score(gain(line), gained) for line in asked), 1) if len(asked) == len(own) else None,
        "ready": base["ready"],
        **{key: base[key] for key in ("identity", "machine", "versions")},
    }
    untuned = {(line["merge"], line["budget"]): samples[i] for i, line in enumerate(merges) if _setting(line).published}
    return whole, records, untuned


def overall(
    suites: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    samples: Mapping[str, Mapping[tuple[str, str], Tensor]],
) -> list[dict[str, Any]]:
    """Means over the suites that judge, of merges that all have untuned; the suites' samples are independent."""
    names = [name for name, about in suites.items() if about["judge"]]
    found = []
    for merge, budget in dict.fromkeys((record["merge"], record["budget"]) for record in records):
        own = [samples[name].get((merge, budget)) for name in names]
        default = [samples[name].get((DEFAULT, budget)) for name in names]
        if not names or any(one is None for one in (*own, *default)):
            continue
        scores = {
            which: [
                float(record["score"])
                for name in names
                for record in records
                if (record["suite"], record["merge"], record["budget"]) == (name, which, budget) and record["published"]
            ]
            for which in (merge, DEFAULT)
        }
        difference = torch.stack([a - b for a, b in zip(own, default, strict=True)]).mean(dim=0)  # type: ignore[operator]
        low, high = interval(difference)
        change = round(fmean(scores[merge]) - fmean(scores[DEFAULT]), 2)
        row = {"merge": merge, "budget": budget, "suites": names, "score": round(fmean(scores[merge]), 2)}
        found.append({**row, "to_default": [change, low, high]})
    return found


def _figures(
    lines: Sequence[Line], gains: Sequence[Gains], own: Gains, documents: Gains
) -> tuple[list[dict[str, Any]], Tensor]:
    """Score, interval and difference to the default of the same output rank, of every line."""
    samples = resampled(own, gains, documents)
    scores = [score(one, own) for one in gains]
    defaults = _defaults(lines)
    found = []
    for i, line in enumerate(lines):
        at = defaults.get(line["budget"])
        difference = None
        if at is not None:
            difference = [round(scores[i] - scores[at], 2), *interval(samples[i] - samples[at])]
        found.append({"score": round(scores[i], 2), "interval": interval(samples[i]), "to_default": difference})
    return found, samples


def _rows(lines: Iterable[Line]) -> int:
    return int(next(iter(lines))["identity"].split("/")[2].split()[0])


def _is_known(line: Line) -> bool:
    """Whether the table has the setting: it may have had others when the line was written."""
    return line["role"] == "reference" or tuple(line["key"]) in _KNOWN


def _defaults(lines: Iterable[Line]) -> dict[str, int]:
    """Where the default is among the lines, by output rank."""
    return {
        line["budget"]: i
        for i, line in enumerate(lines)
        if line["role"] != "reference" and line["merge"] == DEFAULT and _setting(line).published
    }


def _setting(line: Line) -> Setting:
    return _KNOWN[tuple(line["key"])]
