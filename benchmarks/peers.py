"""Other implementations' merges of small tensors, kept for the tests: mergekit's and FusionBench's.

    pip install mergekit fusion-bench       (apart from samerge: their pins are narrow)
    python benchmarks/peers.py tests/data

writes peers.safetensors (the updates, the masks, what each peer made of them) and peers.json (versions and options).
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

#: Updates: three experts of rank 6, 24 x 20; 1/3 of the smaller side, rounded down, is the rank.
SHAPE, RANK, EXPERTS = (24, 20), 6, 3
#: Shares that are whole numbers of the 480 elements: 96, 24, 168.
DENSITY, TOP, CHANCE = 0.2, 0.05, 0.35
EPSILON = 0.1
EQUAL, OTHER = [1.0, 1.0, 1.0], [1.0, -0.5, 2.0]


def updates() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # as large as LoRA's updates are: WUDI's steps have a fixed length
    return [0.01 * (1 + n) * draw(SHAPE[0], RANK) @ draw(RANK, SHAPE[1]) for n in range(EXPERTS)]


@contextlib.contextmanager
def bernoulli(answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """With another source of random masks."""
    before = torch.bernoulli
    torch.bernoulli = answer
    try:
        yield
    finally:
        torch.bernoulli = before


def by_mergekit(found: dict[str, Tensor], taus: Sequence[Tensor], chances: Tensor) -> dict[str, dict[str, object]]:
    from mergekit import merge_methods, sparsify
    from mergekit.merge_methods.base import TensorGroup

    base = torch.zeros(SHAPE, dtype=torch.float64)
    group = TensorGroup.from_tensors([base, *taus], base_index=0)
    options: dict[str, dict[str, object]] = {}

    def merge(name: str, method: str, weights: Sequence[float], **given: object) -> None:
        for_each = {key: given.pop(key) for key in ("density", "gamma", "epsilon") if key in given}
        parameters = {key: dict.fromkeys((1, 2, 3), value) for key, value in for_each.items()}
        parameters |= {"weight": dict(zip((1, 2, 3), weights, strict=True)), **given}
        left = iter(chances)
        with bernoulli(lambda share: (next(left).to(share.dtype) < share).to(share.dtype)):
            (found[f"mergekit.{name}"],) = merge_methods.get(method)([group], parameters=parameters)
        options[name] = {"method": method, "weights": list(weights), **for_each, **given}

    merge("task_arithmetic", "task_arithmetic", OTHER)
    merge("ties", "ties", EQUAL, density=DENSITY)
    merge("ties_sum", "ties", OTHER, density=DENSITY, normalize=False)
    merge("ties_mean", "ties", [1.0, 0.5, 2.0], density=DENSITY)
    merge("breadcrumbs", "breadcrumbs", OTHER, density=DENSITY, gamma=TOP)
    merge("dare_linear", "dare_linear", OTHER, density=CHANCE, rescale=False)
    merge("dare_linear_rescaled", "dare_linear", EQUAL, density=CHANCE)
    merge("dare_ties", "dare_ties", OTHER, density=CHANCE, rescale=False)
    merge("della_rescaled", "della", EQUAL, density=CHANCE, epsilon=EPSILON)

    shares: list[Tensor] = []

    def keep(share: Tensor) -> Tensor:
        shares.append(share.clone())
        return torch.ones_like(share)

    with bernoulli(keep):
        sparsify.della_magprune(taus[0], density=CHANCE, epsilon=EPSILON)
        sparsify.bernoulli(taus[0], density=CHANCE)
    found["mergekit.della_shares"], found["mergekit.dare_shares"] = shares
    torch.manual_seed(0)
    runs = 4000
    kept = sum((sparsify.della_magprune(taus[0], density=CHANCE, epsilon=EPSILON) != 0).float() for _ in range(runs))
    found["mergekit.della_kept"] = kept / runs
    options["della_kept"] = {"runs": runs, "density": CHANCE, "epsilon": EPSILON}
    return options


def by_fusion_bench(found: dict[str, Tensor], taus: Sequence[Tensor], chances: Tensor) -> dict[str, dict[str, object]]:
    from fusion_bench.method.dare.utils import param_random_drop_
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c
    from fusion_bench.method.knots.knots_utils import subspace_alignment
    from fusion_bench.method.task_singular_vector.utils.TSVM_utils import compute_and_sum_svd_mem_reduction
    from fusion_bench.method.ties_merging.ties_merging_utils import ties_merging
    from fusion_bench.method.wudi.wudi import wudi_merging

    vectors = [{"w": tau.clone()} for tau in taus]
    flat = torch.stack([tau.flatten() for tau in taus])
    found["fusion_bench.iso_c"] = iso_c(vectors, accelerator="cpu")["w"]
    found["fusion_bench.tsv"] = compute_and_sum_svd_mem_reduction(vectors, accelerator="cpu")["w"]
    for how in ("mean", "sum"):
        found[f"fusion_bench.ties_{how}"] = ties_merging(flat, DENSITY, how).view(SHAPE)
    u, s, vhs = subspace_alignment([tau.clone() for tau in taus])
    values = torch.stack([(s[:, None] * vh).flatten() for vh in vhs])
    found["fusion_bench.knots_ties"] = u @ ties_merging(values, DENSITY, "mean").view(len(s), SHAPE[1])
    steps = [300, 20000]
    for count in steps:
        found[f"fusion_bench.wudi_{count}"] = wudi_merging(vectors, accelerator="cpu", iter_num=count)["w"].detach()
    before = torch.rand_like
    torch.rand_like = lambda values: 1 - chances[0].to(values.dtype)
    try:
        dropped = taus[0].clone()
        param_random_drop_(dropped, 1 - CHANCE, rescale=True)
    finally:
        torch.rand_like = before
    found["fusion_bench.dare"] = dropped
    return {"ties": {"density": DENSITY}, "dare": {"density": CHANCE}, "wudi": {"steps": steps}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the two files go")
    folder: Path = parser.parse_args().folder
    taus = updates()
    chances = torch.rand(EXPERTS, *SHAPE, generator=torch.Generator().manual_seed(1))
    found = {"updates": torch.stack(taus), "chances": chances}
    record = {
        "torch": torch.__version__,
        "shares": {"density": DENSITY, "top": TOP, "chance": CHANCE, "epsilon": EPSILON},
        "mergekit": {"version": version("mergekit"), "options": by_mergekit(found, taus, chances)},
        "fusion-bench": {"version": version("fusion-bench"), "options": by_fusion_bench(found, taus, chances)},
    }
    save_file({name: value.contiguous() for name, value in found.items()}, folder / "peers.safetensors")
    (folder / "peers.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
