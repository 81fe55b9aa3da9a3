"""From the cache's lines of measurements to results/quality.json: scores, intervals, and which setting is which."""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from suites import SUITES
from torch import Tensor

from evidence.runs import Setting, read_lines, settings
from evidence.scores import Answers, interval, resampled, score, unpack
from evidence.store import NOW, Results, dump
from evidence.table import ALL, FAMILIES

Line = Mapping[str, Any]
Record = dict[str, Any]

#: Whom paired differences are taken to, at the same output rank: what `merge(base, adapters)` does.
DEFAULT = ("saliency", True)

#: By key. A line may have been written under another table: its role and whether it is published are this one's.
_KNOWN = {setting.key(): setting for setting in settings(FAMILIES, "*", ALL)}


def collect(cache: Path, known: Results) -> str:
    """The text of results/quality.json: the suites in the cache, and what else was known.

    Args:
        cache: with the lines of every suite that was measured here.
        known: of the file as it is.
    """
    suites: dict[str, Any] = {}
    records: list[Record] = []
    for name in SUITES:
        lines = [line for line in read_lines(cache / name / "measurements.jsonl") if _is_known(line)]
        if any((line["merge"], line.get("budget"), line.get("published")) == (DEFAULT[0], "r", True) for line in lines):
            by_identity: dict[str, list[Line]] = defaultdict(list)
            for line in lines:
                by_identity[line["identity"]].append(line)
            most = max(by_identity.values(), key=len)
            about, own = suite_records(name, most)
            checks = [precision_check(most, other) for other in by_identity.values() if _other_precision(most, other)]
            suites[name] = {**about, "checks": checks}
            records += own
    records += [record for record in known["records"] if record["suite"] not in suites]
    suites |= {name: about for name, about in known["suites"].items() if name not in suites}
    now = [record for record in records if suites[record["suite"]]["definitions"] == NOW]
    mark(now, {name: about["kin"] for name, about in suites.items()})
    return dump({"suites": suites, "records": records})


def suite_records(name: str, lines: Sequence[Line]) -> tuple[dict[str, Any], list[Record]]:
    """What is to be said of a suite, and a record for each of its measurements."""
    experts = {split: own_answers(lines, split) for split in ("validation", "test")}
    known = ("merge", "budget", "rank", "density", "scaling", "seed")
    merges = [line for line in lines if line["role"] != "reference"]
    base = next(line for line in lines if line["merge"] == "base")
    answers = [_answers(line, "test") for line in (base, *merges)]
    samples = resampled(experts["test"], answers)
    defaults = {line["budget"]: i for i, line in enumerate(merges, 1) if _is_default(line)}
    records = []
    for i, line in enumerate(merges, 1):
        records.append(
            {
                "suite": name,
                "role": _setting(line).family.role,
                "published": _setting(line).published,
                **{key: line[key] for key in known},
                "validation": _validation(line, experts["validation"]),
                "test": round(score(answers[i], experts["test"]), 2),
                "interval": _rounded(interval(samples[i])),
                "to_default": _difference(samples, answers, experts["test"], i, defaults.get(line["budget"])),
                "tasks": _accuracies(answers[i]),
                "merge_seconds": line["merge_seconds"],
            }
        )
    module, kind = SUITES[name]
    suite = getattr(importlib.import_module(module), kind)
    about = {
        "about": suite.about,
        "kin": suite.kin or name,
        "judge": suite.judge,
        "adapters": base["identity"].split("/")[1],
        "precision": base["identity"].split("/")[-1],
        "items": {split: sum(len(one) for one in experts[split].values()) for split in experts},
        "experts": _accuracies(experts["test"]),
        "individuals": _individuals(lines, experts["test"]),
        "rank": next(record["rank"] for record in records if (record["role"], record["budget"]) == ("default", "r")),
        "definitions": NOW,
        "ready": base.get("ready", False),
        "base": {
            "test": round(score(answers[0], experts["test"]), 2),
            "interval": _rounded(interval(samples[0])),
            "tasks": _accuracies(answers[0]),
        },
        "machine": base["machine"],
        "versions": base["versions"],
    }
    return about, records


def _is_known(line: Line) -> bool:
    """Whether the table has the setting: it may have had others when the line was written."""
    return line["role"] == "reference" or tuple(line["key"]) in _KNOWN


def precision_check(lines: Sequence[Line], others: Sequence[Line]) -> dict[str, Any]:
    """How the answers of the same merges differ when they are computed in another precision."""
    known = {json.dumps(line["key"]): line for line in lines}
    pairs = [(known[key], line) for line in others if (key := json.dumps(line["key"])) in known]
    merges = [(a, b) for a, b in pairs if a["role"] != "reference"]
    asked, differ = 0, 0
    for a, b in pairs:
        first, second = _answers(a, "test"), _answers(b, "test")
        asked += sum(len(one) for one in first.values())
        differ += sum(int((first[task] != second[task]).sum()) for task in first)
    experts = [own_answers(side, "test") for side in (lines, others)]
    shifts = [abs(score(_answers(a, "test"), experts[0]) - score(_answers(b, "test"), experts[1])) for a, b in merges]
    return {
        "precision": others[0]["identity"].split("/")[-1],
        "merges": [a["merge"] for a, _ in merges],
        "differ": round(100 * differ / asked, 2),
        "shift": round(max(shifts, default=0.0), 2),
    }


def _other_precision(lines: Sequence[Line], others: Sequence[Line]) -> bool:
    a, b = lines[0]["identity"].split("/"), others[0]["identity"].split("/")
    return bool(a[:-1] == b[:-1] and a[-1] != b[-1])


def own_answers(lines: Iterable[Line], split: str) -> dict[str, Tensor]:
    """Every expert's answers on its own task; none where the split was not measured."""
    prefix = "expert "
    return {
        (task := line["merge"].removeprefix(prefix)): unpack(line["correct"][split][task])
        for line in lines
        if line["merge"].startswith(prefix) and split in line["correct"]
    }


def _validation(line: Line, experts: Answers) -> float | None:
    return round(score(_answers(line, "validation"), experts), 2) if experts else None


def mark(records: Sequence[Record], kin: Mapping[str, str]) -> None:
    """Write into the records which settings were chosen, and how.

    `marks` holds "tuned" (best validation score of the suite itself), "tuned elsewhere" (best mean validation score of
    the suites of other kin), and "best" (best test score: an upper bound that nobody can choose). Candidates, noted as
    `candidate`, are the scales that all methods are tried at and the published one, so that none has more of them for
    its rules; where a merge was tried at rules alone, all.

    Args:
        records: of all suites.
        kin: suite -> kin.
    """
    groups: dict[tuple[str, str], dict[str, dict[tuple[Any, Any], Record]]] = defaultdict(lambda: defaultdict(dict))
    numbers = {(r["merge"], r["budget"]) for r in records if not isinstance(r["scaling"], str)}
    for record in records:
        record["marks"], record["candidate"] = [], False
        ruled = isinstance(record["scaling"], str) and not record["published"]
        if ruled and (record["merge"], record["budget"]) in numbers:
            continue
        record["candidate"] = True
        setting = (record["density"], record["scaling"])
        groups[record["merge"], record["budget"]][record["suite"]].setdefault(setting, record)
    for by_suite in groups.values():
        for name, own in by_suite.items():
            if len(own) < 2 or any(record["validation"] is None for record in own.values()):
                continue  # nothing to choose from, or by
            max(own.values(), key=lambda record: record["validation"])["marks"].append("tuned")
            max(own.values(), key=lambda record: record["test"])["marks"].append("best")
            others = [by_suite[other] for other in by_suite if kin[other] != kin[name]]
            common = [setting for setting in own if all(setting in other for other in others)]
            if others and len(common) > 1:
                best = max(common, key=lambda s: sum(float(other[s]["validation"]) for other in others))
                own[best]["marks"].append("tuned elsewhere")


def _is_default(line: Line) -> bool:
    return (line["merge"], _setting(line).published) == DEFAULT


def _setting(line: Line) -> Setting:
    return _KNOWN[tuple(line["key"])]


def _answers(line: Line, split: str) -> Answers:
    return {task: unpack(bits) for task, bits in line["correct"][split].items()}


def _accuracies(answers: Answers) -> dict[str, float]:
    return {task: round(100 * float(one.float().mean()), 2) for task, one in answers.items()}


def _individuals(lines: Iterable[Line], experts: Answers) -> dict[str, Record]:
    """Accuracies of every expert, and its score where it was asked all tasks: what one of them alone would do."""
    return {
        line["merge"].removeprefix("expert "): {
            "test": round(score(answers, experts), 2) if answers.keys() == experts.keys() else None,
            "tasks": _accuracies(answers),
        }
        for line in lines
        if line["merge"].startswith("expert ") and (answers := _answers(line, "test"))
    }


def _difference(
    samples: Tensor, answers: Sequence[Answers], experts: Answers, i: int, default: int | None
) -> list[float] | None:
    if default is None:
        return None
    difference = score(answers[i], experts) - score(answers[default], experts)
    return [round(difference, 2), *_rounded(interval(samples[i] - samples[default]))]


def _rounded(pair: tuple[float, float]) -> list[float]:
    return [round(value, 2) for value in pair]
