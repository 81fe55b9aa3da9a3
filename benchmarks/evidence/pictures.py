"""The picture of docs/evidence.md, from results/quality.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evidence.store import Results, merges, untuned

#: Of Okabe and Ito's colours, which most people can tell apart.
OTHERS, OURS, BASE = "#0072B2", "#D55E00", "#999999"


def draw(results: Results, file: Path) -> None:
    """Draw the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    file.parent.mkdir(parents=True, exist_ok=True)
    figure = by_method(results)
    figure.tight_layout()
    figure.savefig(file, dpi=90, metadata={"Software": None})
    pyplot.close(figure)


def by_method(results: Results) -> Any:
    """Untuned scores at the adapters' rank with their intervals, a panel for each suite, the best merge on top."""
    from matplotlib import pyplot

    suites = list(results["suites"])
    columns = min(2, len(suites))
    lines = -(-len(suites) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.8 * columns, 4.6 * lines), squeeze=False)
    panels = list(axes.flat)
    for panel in panels[len(suites) :]:
        panel.set_visible(False)
    for panel, suite in zip(panels, suites, strict=False):
        found = [record for merge in merges(results) if (record := untuned(results, suite, merge, "r")) is not None]
        found.sort(key=lambda record: float(record["score"]))
        for place, record in enumerate(found):
            colour = OURS if record["role"] in ("default", "own") else OTHERS
            panel.plot(record["interval"], [place, place], color=colour, linewidth=1.5)
            panel.plot(record["score"], place, "o", color=colour, markersize=4)
        panel.axvline(0, color=BASE, linestyle=":", linewidth=1)
        panel.set_yticks(range(len(found)), [record["merge"] for record in found], fontsize=7)
        panel.set_title(suite, fontsize=10)
        panel.set_xlim(left=max(-60, min((record["interval"][0] for record in found), default=0) - 3), right=102)
        panel.set_xlabel("gain over the base, % of the adapters' own gain", fontsize=8)
        panel.grid(axis="x", alpha=0.3)
    return figure
