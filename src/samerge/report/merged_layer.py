"""The record of one merged layer: how it compares, as it is written, with the adapters as they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from samerge.linalg.factors import LoraFactors, norm
from samerge.linalg.sign_conflicts import Conflict, sample_rows, sign_counts
from samerge.linalg.triplets import Triplets
from samerge.methods.method import Share
from samerge.methods.problem import Part
from samerge.report.overlap import effective_rank, overlaps
from samerge.report.stored import AdapterInLayer, LayerRecord


def layer_record(
    written: LoraFactors,
    parts: Mapping[int, Part],
    shares: Mapping[int, Share],
    names: Sequence[str],
    dora_lost: Mapping[str, float],
) -> LayerRecord:
    """What became of the adapters in a layer, by name, without a comparison with the merged update.

    Args:
        written: the merged update as it is written.
        parts: the adapters' updates, by number.
        shares: what the method says of them.
        names: of the adapters, by number.
        dora_lost: what the conversion of DoRA modules lost here, by name.
    """
    adapters = {
        names[n]: AdapterInLayer(
            norm=parts[n].norm / parts[n].balance if share.norm is None else share.norm,
            energy_kept=share.energy,
            components=share.components,
            kept=share.kept,
            elements=share.elements,
            balance=parts[n].balance,
            dora_lost=dora_lost.get(names[n]),
        )
        for n, share in shares.items()
    }
    merged = written.to(dtype=torch.float32)
    return LayerRecord(adapters, float(norm(merged)), effective_rank=effective_rank(merged))


def compared(
    record: LayerRecord,
    shape: tuple[int, int],
    written: LoraFactors,
    trained: Mapping[str, LoraFactors | Triplets],
    signs: Sequence[LoraFactors],
    after: Conflict | None,
) -> LayerRecord:
    """The record with what a comparison of the merged update with the adapters' own says.

    Args:
        record: of the layer.
        shape: (out, in).
        written: the merged update as it is written.
        trained: the adapters' updates as they were trained (without balance and weight), by name; by triplets where
            they have been taken apart already.
        signs: the same updates, each times a positive number or not.
        after: the sign conflicts that pruning left, where something was pruned.
    """
    merged = written.to(signs[0].A.device if signs else written.A.device, torch.float32).existing()
    rows = sample_rows(shape)
    counts = sign_counts([*signs, merged], rows)
    before = counts.among(len(signs))
    compare = overlaps(merged, list(trained.values()))
    adapters = {
        name: replace(
            record.adapters[name],
            cosine=one.cosine,
            interference=one.interference,
            sign_conflict=counts.share(place, len(signs)),
        )
        for place, (name, one) in enumerate(zip(trained, compare, strict=True))
    }
    return replace(
        record,
        adapters={**record.adapters, **adapters},
        sign_conflict=before.share,
        sign_conflict_after=after.share if after else None,
        signs_left=after.compared / before.compared if after and before.compared else None,
        sampled=(len(rows) * shape[1], shape[0] * shape[1]),
    )
