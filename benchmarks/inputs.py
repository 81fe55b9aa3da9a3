"""Do a few inputs help? The default with `calibration`, and RegMean, beside the default that sees weights alone.

    python benchmarks/inputs.py --suite exact
    python benchmarks/inputs.py --suite exact --few                       # merges of two, three and four adapters
    python benchmarks/inputs.py --suite minilm --adapters ADAPTERS --regmean

Every merge is as it comes, nothing tuned, at the adapters' rank and without truncation:

    default                   by weights alone
    default, random tokens    `calibration="random"`: the base is run on 512 tokens drawn at random, no data at all
    default, own inputs       `calibration=[...]`: on some texts of every adapter's task, no labels, all together
    regmean                   M = (sum_n tau_n G_n) (sum_n G_n)^-1 (Jin et al. 2023, arXiv 2212.09849), G_n = mean x x^T
                              of what a module takes on the inputs of task n, entries off the diagonal times 0.9 as
                              RegMean has it; to rank r the M_r that is nearest in what the inputs see,
                              || (M - M_r) (sum_n G_n)^(1/2) ||. Not in samerge: with `--regmean`, of two suites

And for the strength, with `--regmean`: how far the outputs of `even` are from the adapters' own on the same inputs, by
strength. A user without labels could choose by that.

Scores are those of `quality.py`. Results go to benchmarks/results/inputs.json, and from there to docs/evidence.md; a
record with the same settings replaces the older one.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import few
import records
import tables
import torch
from evidence.runs import config_rank, machine
from evidence.table import FULL
from evidence.with_inputs import ALONE, OWN, RANDOM
from few import Groups
from suites import suite
from suites.base import Suite, Update, default_cache, single
from suites.domains import DOMAINS
from suites.exact_tasks import EXACT_TASKS
from suites.images import TASKS as IMAGE_TASKS
from suites.kept import Kept
from suites.smollm2 import PROMPTS
from suites.texts import TASKS as TEXT_TASKS
from suites.vision import prepared
from torch import Tensor

import samerge
from samerge.linalg.factors import LoraFactors
from samerge.report.origin import versions

RESULTS = tables.RESULTS / "inputs.json"
SETTINGS = ("suite", "adapters", "merge", "inputs", "rank", "scaling")
#: By suite: rows a task, and the tasks that are scored; () for all.
_TEXT_TASKS = ("drugs", "election", "movies", "newsgroups", "reuters", "tweets")
MEASURED: dict[str, tuple[int, tuple[str, ...]]] = {
    "minilm": (200, _TEXT_TASKS),
    "minilm-same-init": (200, _TEXT_TASKS),
    "language": (8, ()),
    "language-mixed": (8, ()),
    "exact": (100, ()),
    "smollm2": (60, ()),
    "vision": (120, ()),
}
#: By suite, groups of four; those of two and three are `few.py`'s.
FOURS: dict[str, Groups] = {
    "exact": (("dates", "json", "languages", "order"), ("dates", "languages", "roman", "sums")),
    "language": (("c", "french", "german", "speeches"), ("perl", "polish", "spanish", "sql")),
    "minilm": (("election", "movies", "newsgroups", "reuters"), ("election", "movies", "reuters", "tweets")),
    "smollm2": (("bbc", "mail", "movies", "newsgroups"), ("bbc", "mail", "reuters", "tweets")),
    "vision": (("cifar10", "digits", "fashion", "mnist"), ("cifar10", "digits", "fashion", "rotation")),
}
#: Those whose evaluators give the outputs of an adapter on inputs of its own.
WITH_OUTPUTS = ("minilm", "language")
#: Merges, and what they are calibrated with.
WAYS = {ALONE: None, RANDOM: "random", OWN: "own"}
#: Unlabelled inputs of all tasks together; samerge runs the first 256 texts.
INPUTS = 192
SCALINGS = (1.0, 1.4)
#: Among which agreement with the adapters' outputs chooses.
STRENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0)
#: Of entries off the diagonal of a matrix of moments.
SHRUNK = 0.9

Moments = Mapping[str, Mapping[str, Tensor]]


def moments(kept: Kept, updates: Mapping[str, Update], count: int) -> dict[str, dict[str, Tensor]]:
    """G_n by adapter and module, (d_in, d_in) in float32.

    Args:
        kept: the suite, asked.
        updates: each adapter by itself.
        count: inputs of each task.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for task, update in updates.items():
        sums: dict[str, Tensor] = {}
        rows: dict[str, int] = {}

        def take(module: str, given: Tensor, sums: dict[str, Tensor] = sums, rows: dict[str, int] = rows) -> None:
            x = given.detach().flatten(0, -2).float()
            sums[module] = sums.get(module, torch.zeros(x.shape[1], x.shape[1])) + x.T @ x
            rows[module] = rows.get(module, 0) + len(x)

        hooks = [
            kept.evaluator.model.get_submodule(module).register_forward_pre_hook(  # type: ignore[attr-defined]
                lambda _, given, module=module, take=take: take(module, given[0])
            )
            for module in update.factors
        ]
        kept.evaluator.outputs(update, task, count)  # type: ignore[attr-defined]
        for hook in hooks:
            hook.remove()
        found[task] = {module: shrunk(total / rows[module]) for module, total in sums.items()}
        print(task, "moments", flush=True)
    return found


def shrunk(G: Tensor) -> Tensor:
    """The matrix with entries off the diagonal times `SHRUNK`."""
    return SHRUNK * G + (1 - SHRUNK) * torch.diag(G.diagonal())


def regmean(own: Sequence[LoraFactors], moments: Sequence[Tensor], rank: int) -> LoraFactors:
    """(sum tau_n G_n)(sum G_n)^-1, to a rank in the metric of sum G_n, through the factors.

    Args:
        own: tau_n of one module.
        moments: G_n.
        rank: of the result.
    """
    folded = [one.folded() for one in own]
    B = torch.cat([one.B.double() for one in folded], dim=1)  # (d_out, R)
    Y = torch.cat([G.double() @ one.A.double().T for one, G in zip(folded, moments, strict=True)], dim=1)  # (d_in, R)
    root = torch.linalg.cholesky(sum(moments, torch.zeros_like(moments[0])).double())  # sum G = L L^T
    image = torch.linalg.solve_triangular(root, Y, upper=False)  # M L = B image^T
    (q_b, r_b), (q_z, r_z) = torch.linalg.qr(B), torch.linalg.qr(image)
    U, S, Vh = torch.linalg.svd(r_b @ r_z.T)
    keep = min(rank, len(S))
    right = torch.linalg.solve_triangular(root.T, q_z @ Vh[:keep].T, upper=True)
    return LoraFactors(right.T.float().contiguous(), ((q_b @ U[:, :keep]) * S[:keep]).float())


def texts(one: Suite, task: str, count: int) -> list[str]:
    """Texts of a task that adapters were trained on, as the model would be given them."""
    if one.name.startswith("language"):
        documents = DOMAINS[task].split(one.cache)[0]
        return [document[:2000] for document in documents[:count]]
    if one.name == "exact":
        return [asked + answer for asked, answer in EXACT_TASKS[task].rows(one.cache)[0][:count]]
    rows = [text for text, _ in TEXT_TASKS[task].rows(one.cache)[0][:count]]
    if one.name != "smollm2":
        return rows
    prompt = PROMPTS[task]
    return [f"{prompt.before}{text[:200]}{prompt.cue}" for text in rows]


def own_inputs(one: Suite, group: Sequence[str]) -> tuple[int, list[str] | Callable[[Any], None]]:
    """How many inputs of each task of a group, and all of them as `calibration` takes them."""
    each = INPUTS // len(one.tasks)
    if one.name != "vision":
        return each, [text for task in group for text in texts(one, task, each)]
    pictures = [prepared(IMAGE_TASKS[task].pictures(one.cache)[0].take(range(each)).pixels) for task in group]

    def run(model: Any) -> None:
        for batch in pictures:
            model(pixel_values=batch)

    return each, run


def measure(name: str, cache: Path, adapters: Path | None, few_at_once: bool = False) -> None:
    """The default by weights alone and calibrated, each kept at once.

    Args:
        name: of the suite.
        cache: of downloads and adapters.
        adapters: ready-made ones.
        few_at_once: groups of two, three and four adapters, each asked its own tasks, in place of all.
    """
    one = suite(name, cache, adapters)
    rows, scored = MEASURED[name]
    sizes: tuple[Groups, ...] = ((one.tasks,),)
    if few_at_once:
        rows, sizes = few.MEASURED[name]
        sizes, scored = (*sizes, FOURS[name]), sorted({task for groups in sizes for group in groups for task in group})
    kept = Kept(one, rows, scored or one.tasks)
    own = max(config_rank(folder) for folder in kept.folders.values())
    for groups in sizes:
        for rank in (own, FULL):
            for merge, calibrated in WAYS.items():
                if calibrated == "random" and name == "vision":
                    continue  # it takes no tokens
                count, shares = 0, []
                for group in groups:
                    options: dict[str, Any] = {}
                    if calibrated:
                        count, given = own_inputs(one, group) if calibrated == "own" else (0, calibrated)
                        options["calibration"] = given
                    shares.append(fmean(kept.shares(group, rank=rank, **options).values()))
                told = {"rows": rows, "precision": kept.evaluator.precision}
                keep(name, len(groups[0]), merge, count, rank, 1.0, fmean(shares), **told)


def measure_regmean(name: str, cache: Path, adapters: Path | None, counts: Sequence[int]) -> None:
    """RegMean, and what agreement says of the strength of `even`."""
    rows, scored = MEASURED[name]
    one = suite(name, cache, adapters)
    kept = Kept(one, rows, scored or one.tasks)
    updates = {task: single(folder) for task, folder in kept.folders.items()}
    layouts = next(iter(updates.values())).layouts
    own = max(config_rank(folder) for folder in kept.folders.values())
    told: dict[str, Any] = {"rows": rows, "precision": kept.evaluator.precision}
    for count in counts:
        G = moments(kept, updates, count)
        for rank in (own, FULL):
            factors = {
                m: regmean([one.factors[m] for one in updates.values()], [G[task][m] for task in updates], rank)
                for m in layouts
            }
            for scaling in SCALINGS:
                update = times(Update(factors, layouts), scaling)
                keep(name, len(one.tasks), "regmean", count, rank, scaling, fmean(kept.of(update).values()), **told)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = samerge.merge(None, kept.folders, method="even", rank=own, dtype="float32", progress=False)
    updates_at = {scaling: times(Update(merged.factors, layouts), scaling) for scaling in STRENGTHS}
    apart = agreement(kept, updates, updates_at, min(counts))
    for scaling, update in updates_at.items():
        keep(
            name, len(one.tasks), "even", 0, own, scaling, fmean(kept.of(update).values()), apart=apart[scaling], **told
        )


def agreement(kept: Kept, own: Mapping[str, Update], merges: Mapping[float, Update], count: int) -> dict[float, float]:
    """By strength how far the merge's outputs are from the adapters' own on their inputs, mean over the tasks."""
    found: dict[float, list[float]] = {one: [] for one in merges}
    asked: Any = kept.evaluator
    for task in kept.ends:
        wanted = asked.outputs(own[task], task, count)
        for scaling, update in merges.items():
            found[scaling].append(asked.apart(wanted, asked.outputs(update, task, count)))
    return {scaling: round(fmean(values), 4) for scaling, values in found.items()}


def times(update: Update, scaling: float) -> Update:
    """The update times a number."""
    return Update({m: LoraFactors(o.A, o.B * scaling, o.scale) for m, o in update.factors.items()}, update.layouts)


def keep(
    name: str,
    adapters: int,
    merge: str,
    count: int,
    rank: int,
    scaling: float,
    score: float,
    rows: int,
    precision: str,
    apart: float | None = None,
) -> None:
    """Put what a merge keeps into the results."""
    told: dict[str, Any] = {
        "suite": name,
        "adapters": adapters,
        "merge": merge,
        "inputs": count,
        "rank": None if rank == FULL else rank,
        "scaling": scaling,
        "score": round(score, 1),
        **({} if apart is None else {"apart": apart}),
        "rows": rows,
        "precision": precision,
        "machine": machine(),
        "versions": versions(),
    }
    print(told, flush=True)
    records.write(RESULTS, records.replaced(RESULTS, told, SETTINGS))


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, choices=list(MEASURED))
    parser.add_argument("--few", action="store_true", help=f"two to four adapters, of {', '.join(FOURS)}")
    parser.add_argument("--regmean", action="store_true", help=f"RegMean, of {' and '.join(WITH_OUTPUTS)}")
    parser.add_argument("--counts", type=int, nargs="+", default=[32], help="inputs of each task, for RegMean")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--adapters", type=Path, help="ready-made adapters, one folder a task")
    given = parser.parse_args()
    if given.regmean and given.suite not in WITH_OUTPUTS:
        parser.error(f"--regmean is for {' and '.join(WITH_OUTPUTS)}")
    if given.few and given.suite not in FOURS:
        parser.error(f"--few is for {', '.join(FOURS)}")
    if given.regmean:
        measure_regmean(given.suite, given.cache, given.adapters, given.counts)
    else:
        measure(given.suite, given.cache, given.adapters, given.few)


if __name__ == "__main__":
    main()
