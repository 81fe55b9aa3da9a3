"""Do a few inputs help? Merges that see what each module takes, beside the default, which sees weights alone.

    python benchmarks/inputs.py --suite minilm --adapters ADAPTERS --counts 32 256
    python benchmarks/inputs.py --suite language --counts 32

Every adapter, on the base, gets some inputs of its own task, no labels, and G_n = mean x x^T of what each adapted
module takes is kept, entries off the diagonal times 0.9, as RegMean has it, to be inverted. Two merges use it:

    regmean      M = (sum_n tau_n G_n) (sum_n G_n)^-1 (Jin et al. 2023, arXiv 2212.09849); to rank r the M_r that is
                 nearest in what the inputs see, || (M - M_r) (sum_n G_n)^(1/2) ||
    even, G^p    the default's chain on tau_n C^p, and its result times C^-p, C the mean of the G_n and a tenth of its
                 own mean on the diagonal: what an adapter does to inputs that there are is what counts (the idea of
                 essential subspaces, arXiv 2602.20208, in the default's terms)

And for the strength: how far the outputs of `even` are from the adapters' own on the same inputs, by strength. A user
without labels could choose by that.

Scores are those of `quality.py`. Results go to benchmarks/results/inputs.json, and from there to docs/evidence.md; a
record with the same settings replaces the older one.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import records
import tables
import torch
from evidence.runs import config_rank, machine
from evidence.table import FULL
from safetensors.torch import load_file, save_file
from suites import suite
from suites.base import Update, default_cache, single
from suites.kept import Kept
from torch import Tensor

import samerge
from samerge.linalg.factors import LoraFactors
from samerge.report.origin import versions

RESULTS = tables.RESULTS / "inputs.json"
SETTINGS = ("suite", "merge", "inputs", "rank", "scaling")
#: By suite: rows a task, and the tasks that are scored; () for all.
MEASURED: dict[str, tuple[int, tuple[str, ...]]] = {
    "minilm": (200, ("drugs", "election", "movies", "newsgroups", "reuters", "tweets")),
    "language": (8, ()),
}
SCALINGS = (1.0, 1.4)
#: Among which agreement with the adapters' outputs chooses.
STRENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0)
#: Of entries off the diagonal of a matrix of moments.
SHRUNK = 0.9
#: Of the mean of the diagonal, added to it before a root is taken.
RIDGE = 0.1

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


def powers(moments: Sequence[Tensor], power: float) -> tuple[Tensor, Tensor]:
    """C^p and C^-p of the mean of the moments, ridged; scaled so that the mean of C's diagonal is 1."""
    C = (sum(moments, torch.zeros_like(moments[0])) / len(moments)).double()
    C = C / C.diagonal().mean()
    values, E = torch.linalg.eigh(C + RIDGE * torch.eye(len(C), dtype=C.dtype))
    return (E * values**power) @ E.T, (E * values**-power) @ E.T


def in_metric(folders: Mapping[str, Path], moments: Moments, power: float, rank: int) -> Update:
    """`even` of tau_n C^p, times C^-p."""
    modules = list(next(iter(moments.values())))
    ways = {module: powers([own[module] for own in moments.values()], power) for module in modules}
    with tempfile.TemporaryDirectory() as place:
        turned = {}
        for task, folder in folders.items():
            turned[task] = Path(place) / task
            shutil.copytree(folder, turned[task])
            file = turned[task] / "adapter_model.safetensors"
            tensors = load_file(file)
            for name, tensor in tensors.items():
                if "lora_A" in name:
                    module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                    tensors[name] = (tensor.double() @ ways[module][0]).float().contiguous()
            save_file(tensors, file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = samerge.merge(None, turned, method="even", rank=rank, dtype="float32", progress=False)
        factors = {m: LoraFactors((one.A.double() @ ways[m][1]).float(), one.B) for m, one in merged.factors.items()}
        return Update(factors, merged.layouts)


def measure(name: str, cache: Path, adapters: Path | None, counts: Sequence[int]) -> None:
    """All merges of a suite, each kept at once."""
    rows, scored = MEASURED[name]
    one = suite(name, cache, adapters)
    kept = Kept(one, rows, scored or one.tasks)
    updates = {task: single(folder) for task, folder in kept.folders.items()}
    layouts = next(iter(updates.values())).layouts
    own = max(config_rank(folder) for folder in kept.folders.values())
    for count in counts:
        G = moments(kept, updates, count)
        for rank in (own, FULL):
            factors = {
                m: regmean([one.factors[m] for one in updates.values()], [G[task][m] for task in updates], rank)
                for m in layouts
            }
            made = {"regmean": Update(factors, layouts)}
            made |= {f"even, G^{p:g}": in_metric(kept.folders, G, p, rank) for p in (0.25, 0.5)}
            for merge, update in made.items():
                for scaling in SCALINGS:
                    keep(name, merge, count, rank, scaling, kept, times(update, scaling), rows)
    for rank in (own, FULL):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = samerge.merge(None, kept.folders, method="even", rank=rank, dtype="float32", progress=False)
        strengths = STRENGTHS if rank == own else SCALINGS
        updates_at = {one: times(Update(merged.factors, layouts), one) for one in strengths}
        apart = agreement(kept, updates, updates_at, min(counts)) if rank == own else {}
        for scaling, update in updates_at.items():
            keep(name, "even", 0, rank, scaling, kept, update, rows, apart.get(scaling))


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
    merge: str,
    count: int,
    rank: int,
    scaling: float,
    kept: Kept,
    update: Update,
    rows: int,
    apart: float | None = None,
) -> None:
    """Ask a merge that has its strength, and put what it keeps into the results."""
    told: dict[str, Any] = {
        "suite": name,
        "merge": merge,
        "inputs": count,
        "rank": None if rank == FULL else rank,
        "scaling": scaling,
        "score": round(fmean(kept.of(update).values()), 1),
        **({} if apart is None else {"apart": apart}),
        "rows": rows,
        "precision": kept.evaluator.precision,
        "machine": machine(),
        "versions": versions(),
    }
    print(told, flush=True)
    records.write(RESULTS, records.replaced(RESULTS, told, SETTINGS))


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, choices=list(MEASURED))
    parser.add_argument("--counts", type=int, nargs="+", default=[32], help="inputs of each task")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--adapters", type=Path, help="ready-made adapters, one folder a task")
    given = parser.parse_args()
    measure(given.suite, given.cache, given.adapters, given.counts)


if __name__ == "__main__":
    main()
