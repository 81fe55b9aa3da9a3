"""DoRA adapters as plain LoRA: the exact dense update relative to the base, truncated to a rank.

DoRA learns a magnitude m for every row of the weight, in the orientation (out, in), so that its effective weight is

    W' = m * V / ||V||_rows,    V = W0 + s B A,    and its update    W' - W0 = (c - 1) * W0 + c * s B A,  c = m / ||V||.

The first part scales rows of the base and has full rank: no LoRA of a small rank holds all of it. What the truncation
loses is reported for every layer. The update is only ever seen some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from samerge.adapters import AdaptedModule, Adapter
from samerge.adapters.describe import finite_size
from samerge.adapters.model import at_hand
from samerge.errors import AdapterError
from samerge.linalg.factors import LoraFactors
from samerge.linalg.randomised_svd import Rows, truncated_svd
from samerge.methods.problem import Site
from samerge.options.module_names import expert_of
from samerge.parallel.progress import Progress
from samerge.parallel.shared_work import everywhere, own
from samerge.parallel.supply import elsewhere
from samerge.weights import WeightSource, matrix_shape, read_tile


def check_dora(
    adapters: Sequence[Adapter], choice: str | None, source: WeightSource | None, doing: str = "merging", way: str = ""
) -> None:
    """Refuse DoRA adapters that nobody asked to convert, or that cannot be for want of a base.

    Args:
        adapters: those that are read.
        choice: the option `dora`.
        source: the base.
        doing: what is done with them, for messages.
        way: what to do where there is no such option.

    Raises:
        AdapterError: names the adapter and the way out.
    """
    for adapter in adapters:
        if adapter.dora and choice is None:
            raise AdapterError(
                f"{doing} adapter {adapter.name!r}: it is a DoRA adapter (use_dora), whose update also rescales the "
                f"base weights by a learned magnitude and is of full rank. "
                + (
                    way
                    or "Convert it on the way with dora='exact': the exact update, truncated to the adapter's rank, "
                    "or to more with dora='exact:64'; what that loses is reported. Or merge it into its base with "
                    "merge_and_unload()"
                )
            )
        if adapter.dora and source is None:
            raise AdapterError(
                f"{doing} adapter {adapter.name!r}: converting its DoRA update needs the weights that it "
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

    Every process converts its own sites. Those of others get factors without values.

    Returns:
        The sites, and for each module and expert the share of the energy that the truncation lost.
    """
    lost: dict[str, dict[str, float]] = {}
    if source is None or not any(m.magnitude is not None for site in sites for m in site.experts.values()):
        return tuple(sites), lost
    rank = int(choice.partition(":")[2]) if choice and ":" in choice else None
    held: dict[str, dict[int, LoraFactors]] = {}

    def convert(site: Site) -> dict[int, tuple[int, float]]:
        held[site.module], found = {}, {}
        for n, adapted in site.experts.items():
            if adapted.magnitude is not None:
                rows = update_rows(names[n], site, adapted, source, device)
                factors, _, share = truncated_svd(rows, site.shape, rank or adapted.rank, device=device)
                held[site.module][n] = factors.to(torch.device("cpu"))
                found[n] = factors.rank, share
        return found

    def ours() -> Iterator[Site]:
        mine = own(sites)
        with progress.task("converting DoRA", len(mine)) as advance:
            for site in mine:
                yield site
                advance(1)

    plain = []
    for (module, found), site in zip(everywhere(sites, convert, ours()).items(), sites, strict=True):
        experts = dict(site.experts)
        for n, (size, share) in found.items():
            factors = held[module][n] if module in held else elsewhere(size, site.shape)
            lost.setdefault(module, {})[names[n]] = share
            experts[n] = replace(experts[n], rank=size, load=at_hand(factors), magnitude=None)
        plain.append(replace(site, experts=experts))
    return tuple(plain), lost


def update_rows(adapter: str, site: Site, adapted: AdaptedModule, source: WeightSource, device: torch.device) -> Rows:
    """Rows of the exact update of one DoRA module, (out, in), in float32.

    The norm runs along a row, so that rows of the update need only the same rows of the base. A base that is stored
    (in, out) has to be read as a whole.

    Raises:
        AdapterError: the magnitude is broken.
    """
    tensor, expert = expert_of(site.key or "")
    height, _ = matrix_shape(source.shapes[tensor], expert)
    magnitude = _magnitude(adapter, site, adapted).to(device)
    factors = adapted.load().to(device, torch.float32)
    whole = read_tile(source, tensor, expert, 0, height, device, torch.float32).T if adapted.layout.transposed else None

    def rows(start: int, stop: int) -> Tensor:
        if whole is None:
            base = read_tile(source, tensor, expert, start, stop, device, torch.float32)
        else:
            base = whole[start:stop]
        low_rank = factors.scale * (factors.B[start:stop] @ factors.A)
        norm = torch.linalg.norm(base + low_rank, dim=1)
        scale: Tensor = torch.where(norm > 0, magnitude[start:stop] / norm, torch.ones_like(norm))[:, None]
        return (scale - 1) * base + scale * low_rank

    return rows


def _magnitude(adapter: str, site: Site, adapted: AdaptedModule) -> Tensor:
    assert adapted.magnitude is not None
    magnitude = adapted.magnitude()
    finite_size(adapter, site.module, "lora_magnitude_vector", magnitude)
    magnitude = magnitude.to(torch.float32).reshape(-1)
    if len(magnitude) != site.shape[0]:
        raise AdapterError(
            f"converting adapter {adapter!r}, module {site.module!r}: its lora_magnitude_vector has {len(magnitude)} "
            f"entries for {site.shape[0]} rows; the file is broken"
        )
    return magnitude
