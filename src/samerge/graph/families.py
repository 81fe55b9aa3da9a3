"""The table of families: one row for each family of models.

To add a family, write a row; nothing else changes. A row is checked against the tensors that a checkpoint holds, so a
family that shares the names of a row but has weights of its own fails with a message instead of being misread.
"""

from __future__ import annotations

from samerge.graph.blocks import Family
from samerge.graph.decoders import DECODERS
from samerge.graph.encoders import ENCODER_DECODERS, ENCODERS
from samerge.graph.vision import VISION

FAMILIES: tuple[Family, ...] = (*DECODERS, *ENCODERS, *ENCODER_DECODERS, *VISION)

_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}


def families() -> tuple[str, ...]:
    """The `model_type`s that have a row, sorted."""
    return tuple(sorted(_BY_TYPE))


def find_family(model_type: str) -> Family | None:
    """The row of a `model_type`, or None."""
    return _BY_TYPE.get(model_type)
