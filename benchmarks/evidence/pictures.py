"""The pictures of docs/evidence.md, from results/quality.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evidence.query import BUDGETS, marked, merges, select

#: Okabe and Ito's colours, which most people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def draw(results: dict[str, Any], folder: Path, name: str) -> None:
    """Draw all pictures of which there are measurements, as `name-....png`."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    _save(by_method(results), folder / f"{name}-methods.png")
    if any(_has_rules(results, merge) for merge in merges(results)):
        _save(against_scale(results), folder / f"{name}-scale.png")
    if select(results, role="ablation"):
        _save(by_ablation(results), folder / f"{name}-ablations.png")


def by_method(results: dict[str, Any]) -> Any:
    """Scores at the experts' rank: untuned with interval, tuned on validation rows as a ring."""
    suites = list(results["suites"])
    figure, axes = _grid(len(suites), 4.6, 5.4)
    for axis, suite in zip(axes, suites, strict=False):
        rows = [
            (record["test"], merge, record, marked(results, merge, suite, "r", "tuned"))
            for merge in merges(results)
            if (record := marked(results, merge, suite, "r", "published")) is not None
        ]
        rows.sort(key=lambda row: row[0])
        for place, (value, _, record, tuned) in enumerate(rows):
            colour = COLOURS[1] if record["role"] in ("default", "own") else COLOURS[0]
            low, high = record["interval"]
            axis.plot([low, high], [place, place], color=colour, linewidth=1.5)
            axis.plot(value, place, "o", color=colour, markersize=5)
            if tuned is not None:
                axis.plot(tuned["test"], place, "o", markerfacecolor="none", markeredgecolor=colour, markersize=8)
        axis.axvline(results["suites"][suite]["base"]["test"], color=COLOURS[7], linestyle=":", linewidth=1)
        axis.set_yticks(range(len(rows)), [merge for _, merge, _, _ in rows], fontsize=8)
        axis.set_title(suite, fontsize=10)
        axis.set_xlabel("% of the experts' accuracy")
        axis.set_xlim(min(60, *(row[0] - 4 for row in rows)) if rows else 60, 102)
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle("Output rank as the experts': dots untuned (95 %), rings tuned, dotted line the base", fontsize=10)
    return figure


def against_scale(results: dict[str, Any]) -> Any:
    """Score against lambda; rules without data as stars at their mean scale."""
    names = [merge for merge in merges(results) if _has_rules(results, merge)][: len(COLOURS)]
    suites = list(results["suites"])
    figure, axes = _grid(len(suites), 4.6, 3.6)
    for axis, suite in zip(axes, suites, strict=False):
        for colour, merge in zip(COLOURS, names, strict=False):
            found = select(results, suite=suite, merge=merge, budget="r")
            found = [record for record in found if record["density"] == found[0]["density"]]
            line = sorted((r["scaling"], r["test"]) for r in found if not isinstance(r["scaling"], str))
            stars = [(r["mean_scale"], r["test"]) for r in found if isinstance(r["scaling"], str) and "mean_scale" in r]
            if line:
                axis.plot(*zip(*line, strict=True), color=colour, marker=".", label=merge)
            if stars:
                axis.plot(*zip(*stars, strict=True), "*", color=colour, markersize=9)
        axis.set_xscale("log")
        axis.set_xticks([0.3, 0.5, 1, 2], ["0.3", "0.5", "1", "2"])
        axis.minorticks_off()
        axis.set_title(f"{suite}, output rank {BUDGETS['r']}", fontsize=9)
        axis.set_xlabel("scale (stars: rules without data, at their mean scale)", fontsize=8)
        axis.grid(alpha=0.3)
        axis.set_ylabel("% of the experts' accuracy", fontsize=8)
    axes[0].legend(fontsize=7)
    return figure


def _has_rules(results: dict[str, Any], merge: str) -> bool:
    """Whether a merge was tried at several rules for its scale."""
    found = select(results, merge=merge, budget="r")
    return len({record["scaling"] for record in found if isinstance(record["scaling"], str)}) > 1


def by_ablation(results: dict[str, Any]) -> Any:
    """Every variant of the selection at auto:1.3, with its interval."""
    from matplotlib import pyplot

    suites = [suite for suite in results["suites"] if select(results, suite=suite, role="ablation")]
    names = merges(results, ("own", "ablation"))[::-1]
    figure, axis = pyplot.subplots(figsize=(7, 1 + 0.28 * len(names)))
    for offset, (suite, colour) in enumerate(zip(suites, COLOURS, strict=False)):
        for place, merge in enumerate(names):
            for record in select(results, suite=suite, merge=merge, budget="r", scaling="auto:1.3"):
                height = place - 0.15 + 0.3 * offset / max(1, len(suites) - 1)
                axis.plot(record["interval"], [height, height], color=colour, linewidth=1)
                axis.plot(record["test"], height, "o", color=colour, markersize=4)
        axis.plot([], [], "o-", color=colour, label=suite)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("% of the experts' accuracy (95 %)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def _grid(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with room for so many panels, two in a row."""
    from matplotlib import pyplot

    columns = min(2, count)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    panels = list(axes.flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels


def _save(figure: Any, file: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(file, dpi=90, metadata={"Software": None})
    pyplot.close(figure)
