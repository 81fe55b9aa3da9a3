"""A merged model's way back to one LoRA adapter: a truncated SVD of every merged update, streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from samerge.adapters import servable
from samerge.adapters.layouts import Layout
from samerge.errors import OptionError
from samerge.full.assembly import Assembly
from samerge.linalg.factors import LoraFactors, balanced, norm, pad
from samerge.linalg.randomised_svd import truncated_svd
from samerge.merging.findings import NOTABLE_LOSS
from samerge.merging.merged_adapter import MergedAdapter
from samerge.options.kinds import check_share, check_whole
from samerge.report.origin import adapter_output
from samerge.report.overlap import effective_rank
from samerge.report.record import Record
from samerge.report.report import Report
from samerge.report.stored import LayerRecord
from samerge.saliency.task_vectors import shape_of

#: The largest rank where only an energy is asked for.
DEFAULT_CAP = 128


def as_adapter(
    assembly: Assembly,
    transposed: Mapping[str, bool],
    record: Record,
    rank: int | None,
    energy: float | None,
    dtype: torch.dtype,
    advance: Callable[[int], None],
) -> MergedAdapter:
    """The merged updates of the graph's matrices as one adapter.

    Args:
        assembly: the merged tensors.
        transposed: for each weight of the graph, whether it is stored (in, out).
        record: of the merge.
        rank: of every module, or the most that `energy` may ask for.
        energy: share of each update's squared norm to keep.
        dtype: of the adapter.
        advance: called with 1 for each weight.

    Raises:
        OptionError: neither was given, or one is out of its range, or no weight of the graph can have an adapter.
    """
    rank = None if rank is None else check_whole("rank", rank)
    energy = None if energy is None else check_share("energy", energy)
    if rank is None and energy is None:
        raise OptionError("as_lora needs rank=..., energy=..., or both (then the rank is the most that is used)")
    cap = rank or DEFAULT_CAP
    able = {key: turned for key, turned in transposed.items() if key.endswith(".weight") and _is_matrix(assembly, key)}
    if not able:
        raise OptionError("not one weight of the graph is a plain matrix, so that no LoRA adapter can hold the merge")
    updates: dict[str, LoraFactors] = {}
    lost: dict[str, float] = {}
    for key, turned in able.items():
        found, _, lost[key] = _truncated(assembly, key, cap, energy)
        updates[key] = found.turned() if turned else found
        advance(1)
    names = {key: key.removesuffix(".weight") for key in sorted(able)}
    most = max(1, *(update.rank for update in updates.values()))
    factors = {name: servable.cast(name, pad(balanced(updates[key]), most), dtype) for key, name in names.items()}
    layouts = {name: Layout(transposed=able[key]) for key, name in names.items()}
    matrices = {key.removesuffix(".weight") for key, shape in assembly.shapes.items() if len(shape) >= 2}
    targets = servable.target_modules(list(factors), matrices - set(factors))
    settings = servable.settings(assembly.base.name, most, targets, layouts.values())
    layers = {names[key]: _layer(record, key, updates[key], lost[key]) for key in able}
    told = replace(
        record,
        layers=layers,
        output=adapter_output(factors, dtype, most, settings),
        options={**record.options, "svd_rank": rank, "energy": energy},
        warnings=(*record.warnings, *_warnings(assembly, record, transposed, able, lost, cap, energy)),
    )
    return MergedAdapter(factors, layouts, settings, Report(told), base=assembly.base.config)


def _layer(record: Record, key: str, update: LoraFactors, lost: float) -> LayerRecord:
    """With what truncation lost; the cosines were those of the whole merged weight, and nobody looked again."""
    whole = record.layers[key.removesuffix(".weight")]
    adapters = {name: replace(one, cosine=None) for name, one in whole.adapters.items()}
    size, directions = float(norm(update)), effective_rank(update)
    return replace(whole, adapters=adapters, lost=lost, norm=size, rank=update.rank, effective_rank=directions)


def _truncated(assembly: Assembly, key: str, cap: int, energy: float | None) -> tuple[LoraFactors, Tensor, float]:
    pruner, scale = assembly.pruner, assembly.scales[key]

    def rows(start: int, stop: int) -> Tensor:
        return pruner.merged_rows(key, start, stop).mul_(scale)

    shape = shape_of(assembly.base, key)
    return truncated_svd(rows, shape, cap, energy=energy, device=pruner.device, dtype=pruner.dtype)


def _is_matrix(assembly: Assembly, key: str) -> bool:
    return key in assembly.shapes and len(assembly.shapes[key]) == 2


def _warnings(
    assembly: Assembly,
    record: Record,
    transposed: Mapping[str, bool],
    able: Mapping[str, bool],
    lost: Mapping[str, float],
    cap: int,
    energy: float | None,
) -> list[str]:
    found = []
    outside = record.outside["tensors"] if record.outside and record.outside["rule"] != "base" else []
    if outside:
        found.append(
            f"the adapter leaves out what the merge changed outside the flow graph: {len(outside)} tensors, such as "
            f"{', '.join(outside[:3])}"
        )
    unable = sorted(set(transposed) - set(able))
    if unable:
        found.append(f"the adapter leaves out weights that are no plain matrices: {len(unable)}, such as {unable[0]}")
    worst = max(lost, key=lambda key: lost[key])
    if energy is not None:
        short = [key for key in lost if lost[key] > 1 - energy + 1e-6]
        if short:
            found.append(
                f"rank {cap} keeps less than energy={energy} in {len(short)} of {len(lost)} layers (least in {worst}: "
                f"{1 - lost[worst]:.1%}); a larger rank keeps more"
            )
    elif lost[worst] > NOTABLE_LOSS:
        many = sum(share > NOTABLE_LOSS for share in lost.values())
        found.append(
            f"truncation to rank {cap} lost over {NOTABLE_LOSS:.0%} of the energy in {many} of {len(lost)} layers "
            f"(most in {worst}: {lost[worst]:.0%}); a larger rank keeps more"
        )
    return found
