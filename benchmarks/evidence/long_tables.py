"""docs/evidence-tables.md: every suite, merge, output rank and strength, and the tables behind each paragraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tables import rows as table

from evidence.at_best import at_best_table
from evidence.few_adapters import few_tables
from evidence.papers_figures import papers_tables
from evidence.store import Results, merges, select
from evidence.with_inputs import inputs_tables
from evidence.words import BUDGETS, difference, listed, setting, with_interval


def long_tables(
    results: Results, few: Sequence[Mapping[str, Any]] = (), inputs: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The page.

    Args:
        results: of `quality.py`.
        few: of `few.py`.
        inputs: of `inputs.py`.
    """
    parts = [
        "# The evidence, whole",
        "Made by `benchmarks/quality.py --render` from benchmarks/results/quality.json, few.json and inputs.json; [the "
        "evidence](evidence.md) says what it comes to. *score*: what a merge gains over the base model, in per cent of "
        "what each task's own adapter gains on the same rows, mean over tasks, gains in nats of loss; with 95 % "
        "intervals from 1000 bootstrap samples of the rows, of documents where a row is a part of one. *to the "
        "default*: the paired difference at the same output rank and the default's own strength. *right answers*: the "
        "same of right answers, in per cent of the adapters', where a task has answers; its base is not 0.",
        at_best_table(results),
        few_tables(few),
        papers_tables(results),
        inputs_tables(inputs),
        *(suite(results, name) for name in results["suites"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def suite(results: Results, name: str) -> str:
    """A suite: what it is, its tasks, its merges."""
    about = results["suites"][name]
    right = about["accuracy"]
    tasks = [
        [
            f"`{task}`",
            *(f"{loss:.3f}" for loss in losses),
            *(f"{share:.1f}" for share in right.get(task, ())),
            *(["", ""] if right and task not in right else []),
            str(about["documents"].get(task, "")),
        ]
        for task, losses in about["losses"].items()
    ]
    head = ["task", "loss: base", "its adapter", *(["right: base", "its adapter"] if right else []), "documents"]
    libraries = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
    text = f"{about['about']}. At most {about['rows']} rows a task. {about['machine']}; {libraries}; "
    text += about["identity"].split("/")[-1] + "."
    if about["ready"]:
        text += " The adapters were trained elsewhere; the tasks asked are those whose rows they are known not to know."
    if about["one for all"] is not None:
        text += f" One adapter for all tasks scores {about['one for all']:.1f}, mean over the adapters."
    without = about["without a smooth score"]
    if without:
        text += f" Without a score, as their own adapters gain less than 5 % of the loss: {listed(without)}."
    width = len(head) if about["documents"] else len(head) - 1
    found = [f"## {name}", text, table(head[:width], [row[:width] for row in tasks])]
    for budget, rank in BUDGETS.items():
        rows = []
        for merge in merges(results):
            for record in select(results, suite=name, merge=merge, budget=budget):
                accuracy = record["accuracy"]
                cells = [
                    f"**{merge}**" if record["role"] == "default" else merge,
                    setting(record) + (" (untuned)" if record["published"] else ""),
                    str(record["rank"]),
                    with_interval(record),
                    difference(record["to_default"]),
                    *([] if accuracy is None else [with_interval(accuracy), difference(accuracy["to_default"])]),
                ]
                rows.append((-float(record["score"]), cells))
        if rows:
            rows.sort(key=lambda row: row[0])
            head = ["merge", "strength", "rank", "score", "to the default"]
            head += ["right answers", "to the default"] if len(rows[0][1]) > len(head) else []
            found += [f"### {name}: output rank {rank}", table(head, [cells for _, cells in rows])]
    return "\n\n".join(found)
