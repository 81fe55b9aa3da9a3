"""DoRA adapters as plain LoRA: the exact dense update relative to the base, truncated to a rank.

DoRA learns a magnitude m for every row of the weight, in the orientation (out, in), so that its effective weight is

    W' = m * V / ||V||_rows,    V = W0 + s B A,    and its update    W' - W0 = (c - 1) * W0 + c * s B A,  c = m / ||V||.

The first part scales rows of the base and has full rank: no LoRA of a small rank holds all of it. What the truncation
loses is reported for every layer. One layer's update is dense at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from samerge.adapters import AdaptedModule, Adapter
from samerge.adapters.describe import finite
from samerge.checkpoints import WeightSource, matrix_shape
from samerge.errors import AdapterError
from samerge.factors import LoraFactors
from samerge.layouts import expert_of
from samerge.methods.problem import Site
from samerge.progress import Progress

#: From this width on, the singular triplets are found by subspace iteration instead of a full SVD.
_WIDE = 1024
_OVERSAMPLE, _ROUNDS = 16, 4


def check_dora(adapters: Sequence[Adapter], choice: str | None, source: WeightSource | None) -> None:
    """Refuse DoRA adapters that nobody asked to convert, or that cannot be for want of a base.

    Raises:
        AdapterError: names the adapter and the way out.
    """
    for adapter in adapters:
        if adapter.dora and choice is None:
            raise AdapterError(
                f"merging adapter {adapter.name!r}: it is a DoRA adapter (use_dora), whose update also rescales the "
                f"base weights by a learned magnitude and is of full rank. Convert it on the way with dora='exact' "
                f"(--dora exact): the exact update, truncated to the adapter's rank, or to more with 'exact:64'; what "
                f"that loses is reported. Or merge it into its base with merge_and_unload()"
            )
        if adapter.dora and source is None:
            raise AdapterError(
                f"merging adapter {adapter.name!r}: converting its DoRA update needs the weights that it "
                f"rescales; give base="
            )


def converted(
    sites: Sequence[Site],
    names: Sequence[str],
    choice: str | None,
    source: WeightSource | None,
    device: torch.device,
    progress: Progress,
) -> tuple[tuple[Site, ...], dict[str, dict[str, float]]]:
    """The sites with every DoRA module replaced by plain factors.

    Args:
        sites: the adapted linear maps.
        names: the experts.
        choice: "exact", or "exact:<rank>".
        source: the base.
        device: where to compute.
        progress: where to report progress.

    Returns:
        The sites, and for each module and expert the share of the energy that the truncation lost.
    """
    lost: dict[str, dict[str, float]] = {}
    if source is None or not any(m.magnitude is not None for site in sites for m in site.experts.values()):
        return tuple(sites), lost
    rank = int(choice.partition(":")[2]) if choice and ":" in choice else None
    plain = []
    with progress.task("converting DoRA", len(sites)) as advance:
        for site in sites:
            experts = dict(site.experts)
            for n, adapted in site.experts.items():
                if adapted.magnitude is None:
                    continue
                update = exact_update(names[n], site, adapted, source, device)
                factors, share = truncated(update, rank or adapted.rank)
                factors = factors.to(torch.device("cpu"))
                lost.setdefault(site.module, {})[names[n]] = share
                experts[n] = replace(adapted, rank=factors.rank, load=lambda f=factors: f, magnitude=None)  # type: ignore[misc]
            plain.append(replace(site, experts=experts))
            advance(1)
    return tuple(plain), lost


def exact_update(
    adapter: str, site: Site, adapted: AdaptedModule, source: WeightSource, device: torch.device
) -> Tensor:
    """The dense update of one DoRA module, (out, in), in float32."""
    tensor, expert = expert_of(site.key or "")
    rows, columns = matrix_shape(source.shapes[tensor], expert)
    base = source.read(tensor, 0, rows, expert).to(device, torch.float32).reshape(rows, columns)
    base = base.T if adapted.layout.transposed else base
    assert adapted.magnitude is not None
    magnitude = finite(adapter, site.module, "lora_magnitude_vector", adapted.magnitude())
    magnitude = magnitude.to(device, torch.float32).reshape(-1)
    if len(magnitude) != base.shape[0]:
        raise AdapterError(
            f"converting adapter {adapter!r}, module {site.module!r}: its lora_magnitude_vector has {len(magnitude)} "
            f"entries for {base.shape[0]} rows; the file is broken"
        )
    low_rank = adapted.load().to(device, torch.float32).delta()
    scale: Tensor = (magnitude / torch.linalg.norm(base + low_rank, dim=1))[:, None]
    update: Tensor = (scale - 1) * base + scale * low_rank
    return update


def truncated(update: Tensor, rank: int) -> tuple[LoraFactors, float]:
    """The best approximation of a dense update of rank at most `rank`, and the share of its energy that is lost.

    Wide updates go through a subspace iteration with a fixed start, within a fraction of a percent of the best.
    """
    rank = min(rank, *update.shape)
    total = float(update.double().square().sum())
    if min(update.shape) <= _WIDE:
        u, s, vh = torch.linalg.svd(update, full_matrices=False)
    else:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(update.shape[1], min(rank + _OVERSAMPLE, *update.shape), generator=generator)
        q = torch.linalg.qr(update @ start.to(update)).Q  # (out, k)
        for _ in range(_ROUNDS):
            q = torch.linalg.qr(update @ torch.linalg.qr(update.T @ q).Q).Q
        small, s, vh = torch.linalg.svd(q.T @ update, full_matrices=False)
        u = q @ small
    root = s[:rank].sqrt()
    kept = float(s[:rank].double().square().sum())
    lost = max(0.0, 1 - kept / total) if total else 0.0
    return LoraFactors(A=vh[:rank] * root[:, None], B=u[:, :rank] * root), lost
