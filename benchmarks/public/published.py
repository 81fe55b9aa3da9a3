"""What sources tell of these suites: every number with where it is from, and what is the same merge here."""

from __future__ import annotations

from dataclasses import dataclass

from evidence.runs import Setting
from evidence.table import Family

SOURCES: dict[str, str] = {
    "FusionBench": "https://github.com/tanganke/fusion_bench/blob/54c9e8c/docs/modelpool/flan-t5_generation.md",
    "WUDI": "https://arxiv.org/abs/2503.08099",
    "SA-Merging": "https://arxiv.org/abs/2606.00511",
    "KnOTS": "https://arxiv.org/abs/2410.19735",
    "KnOTS' code": "https://github.com/gstoica27/KnOTS/tree/baa35e8/eval_scripts",
    "CtM": "https://arxiv.org/abs/2606.03723",
}

#: What a row may be the same as beside a merge: the base alone, every task's own adapter.
BASE, OWN = "base", "own"


@dataclass(frozen=True)
class Row:
    """One published row.

    Args:
        merge: and its strength, as the source names them.
        source: one of `SOURCES`.
        mean: over the tasks, in the suite's score.
        scores: of the tasks, in the suite's order; none where the source, as far as we know it, tells the mean alone.
        same: the same merge here, where it is certain that it is.
        rank: of the merged update, if it is held to one.
        note: what is to be known of it.
    """

    merge: str
    source: str
    mean: float
    scores: tuple[float, ...] = ()
    same: Setting | str | None = None
    rank: int | None = None
    note: str = ""


def _whole(method: str, scaling: float, density: float | None = None) -> Setting:
    """A merge that nothing is truncated of."""
    return Setting(Family(method), "free", density, None, scaling)


PUBLISHED: dict[str, tuple[Row, ...]] = {
    # cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb
    "flan-t5-glue": (
        Row("base alone", "FusionBench", 75.7, (69.1, 56.5, 76.2, 88.4, 82.1, 80.1, 91.2, 62.2), BASE),
        Row("own adapters", "FusionBench", 84.6, (69.1, 82.7, 85.5, 90.9, 84.0, 84.4, 92.9, 87.4), OWN),
        Row(
            "average",
            "FusionBench",
            78.2,
            (69.7, 59.7, 78.9, 90.1, 83.8, 90.5, 91.2, 72.0),
            _whole("linear", 0.125),
            note="rte is printed as 90.5; the printed mean is that of 80.5",
        ),
        *(
            Row(f"task arithmetic, λ {scaling:g}", "FusionBench", mean, scores, _whole("linear", scaling))
            for scaling, mean, scores in (
                (0.1, 78.0, (69.5, 59.8, 78.7, 89.7, 83.6, 80.5, 91.1, 70.7)),
                (0.2, 78.1, (69.3, 59.0, 78.7, 90.1, 83.8, 79.1, 91.5, 72.9)),
                (0.3, 77.4, (68.8, 55.2, 78.7, 89.8, 83.7, 79.1, 91.5, 72.4)),
                (0.4, 73.5, (68.1, 31.3, 77.7, 88.7, 83.3, 78.7, 91.2, 68.9)),
            )
        ),
        Row(
            "TIES, λ 0.3",
            "FusionBench",
            77.5,
            (68.3, 56.3, 79.4, 89.8, 83.7, 79.4, 91.6, 71.2),
            note="trims over all of the model's weights, most of which no adapter changes: not `ties` here",
        ),
        Row("WUDI", "WUDI", 81.2),
        Row("average", "SA-Merging", 76.1, note="below FusionBench's"),
        Row("task arithmetic", "SA-Merging", 76.7, note="below FusionBench's"),
        Row("SA-Merging", "SA-Merging", 82.5),
    ),
    # snli, mnli, sick, qnli, rte, scitail; no merge's row could be read at its source
    "knots-nli": (Row("own adapters", "KnOTS' code", 92.5, (92.5, 90.3, 91.6, 94.5, 89.9, 96.5), OWN),),
    # stanford_cars, dtd, eurosat, gtsrb, mnist, resisc45, sun397, svhn
    "knots-vision": (
        Row("own adapters", "KnOTS' code", 84.0, (74.0, 58.3, 99.0, 92.7, 99.3, 88.4, 64.5, 96.2), OWN),
        Row(
            "task arithmetic, λ 0.1",
            "KnOTS",
            63.7,
            same=_whole("linear", 0.1),
            note="strengths and densities of KnOTS' rows are those of its code's configurations",
        ),
        Row("TIES, density 0.3, λ 0.3", "KnOTS", 63.7, same=_whole("ties", 0.3, 0.3)),
        Row("KnOTS-TIES, density 0.2, λ 0.6", "KnOTS", 68.0, same=_whole("knots-ties", 0.6, 0.2)),
        Row("TIES, then SVD", "CtM", 65.3, rank=16),
        Row("Iso-C, then SVD", "CtM", 65.7, rank=16),
        Row("CtM", "CtM", 70.7, rank=16),
    ),
}


def same_settings(name: str) -> list[Setting]:
    """The merges of a suite that were published and are certain to be the same here."""
    return [row.same for row in PUBLISHED[name] if isinstance(row.same, Setting)]
