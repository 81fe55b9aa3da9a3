"""Which tensor of an expert is which tensor of the base, and where the two differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from samerge.errors import BaseModelError
from samerge.weights import WeightSource
from samerge.weights.tiling import spans

_SHOWN = 6

#: Endings of buffers that are computed from the configuration, and that only some versions of transformers save.
_COMPUTED = (".inv_freq", ".masked_bias")


@dataclass(frozen=True)
class Mismatch:
    """A tensor that an expert and the base do not share.

    Args:
        tensor: its name, the base's where the base has it.
        expert: the expert's name.
        what: "lacks", "adds", "shape" or "values" (whole numbers that differ).
        base: its shape in the base, None where the base lacks it.
        found: its shape in the expert, None where the expert lacks it.
    """

    tensor: str
    expert: str
    what: str
    base: tuple[int, ...] | None
    found: tuple[int, ...] | None

    def __str__(self) -> str:
        if self.what == "lacks":
            return f"{self.expert} lacks {self.tensor} {self.base}"
        if self.what == "adds":
            return f"{self.expert} adds {self.tensor} {self.found}"
        if self.what == "values":
            return f"{self.expert} has other whole numbers in {self.tensor} {self.base}"
        return f"{self.tensor} is {self.base} in the base, {self.found} in {self.expert}"


def same_names(base: Iterable[str], expert: Iterable[str]) -> dict[str, str]:
    """The expert's name of each of the base's tensors that it has.

    Names are equal, or differ in one prefix for the whole model: `BertModel` says `encoder.layer.0...`, where
    `BertForSequenceClassification` says `bert.encoder.layer.0...`.

    Args:
        base: names of the base's tensors.
        expert: names of the expert's tensors.

    Example:
        >>> same_names(["layer.0.q", "layer.1.q"], ["bert.layer.0.q", "bert.layer.1.q", "head"])
        {'layer.0.q': 'bert.layer.0.q', 'layer.1.q': 'bert.layer.1.q'}
    """
    ours, theirs = sorted(base), set(expert)
    plain = {name: name for name in ours if name in theirs}
    if 2 * len(plain) >= len(ours):
        return plain
    candidates = [plain]
    for prefix in sorted(_prefixes(ours, theirs)):
        candidates.append({name: prefix + name for name in ours if prefix + name in theirs})
    for prefix in sorted(_prefixes(theirs, set(ours))):
        shorter = {name: name.removeprefix(prefix) for name in ours if name.startswith(prefix)}
        candidates.append({name: short for name, short in shorter.items() if short in theirs})
    return max(candidates, key=len)


def _prefixes(short: Iterable[str], long: set[str]) -> set[str]:
    """What stands before a short name in a long one, for the first few parts of names."""
    known = set(short)
    found = set()
    for name in long:
        parts = name.split(".")
        for cut in range(1, min(4, len(parts))):
            if ".".join(parts[cut:]) in known:
                found.add(".".join(parts[:cut]) + ".")
    return found


def mismatches(base: WeightSource, expert: WeightSource, names: Mapping[str, str], called: str) -> list[Mismatch]:
    """Every difference between an expert and the base, but for the values that are trained.

    A tensor that the expert adds and that equals another one of its own is a tied copy, and no difference. Nor are
    buffers that only one of them saved: whole numbers, such as positions, and what follows from the configuration.

    Args:
        base: the base.
        expert: the expert, under its own names.
        names: the expert's name of each of the base's tensors.
        called: the expert's name.
    """
    found = []
    for tensor, shape in base.shapes.items():
        if tensor not in names:
            if _is_buffer(base, tensor):
                continue
            found.append(Mismatch(tensor, called, "lacks", shape, None))
        elif tuple(expert.shapes[names[tensor]]) != tuple(shape):
            found.append(Mismatch(tensor, called, "shape", shape, tuple(expert.shapes[names[tensor]])))
        elif not base.dtype(tensor).is_floating_point and not _equal(base, tensor, expert, names[tensor]):
            found.append(Mismatch(tensor, called, "values", shape, shape))
    known = set(names.values())
    for tensor, shape in expert.shapes.items():
        if tensor not in known and not _is_buffer(expert, tensor) and not _is_copy(expert, tensor):
            found.append(Mismatch(tensor, called, "adds", None, tuple(shape)))
    return found


def refuse(found: Sequence[Mismatch], base: str) -> None:
    """Raise an error that lists the differences.

    Raises:
        BaseModelError: there are any.
    """
    if not found:
        return
    listed = "; ".join(str(item) for item in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise BaseModelError(
        f"merging checkpoints of {base!r}: not all tensors are shared with the base: {listed}{more}. Are they "
        f"checkpoints of this base? mismatched='base' keeps the base's tensors there, and leaves out what is added"
    )


def _is_buffer(source: WeightSource, tensor: str) -> bool:
    return not source.dtype(tensor).is_floating_point or tensor.endswith(_COMPUTED)


def _is_copy(source: WeightSource, tensor: str) -> bool:
    shape = source.shapes[tensor]
    if len(shape) < 2 or not source.config.get("tie_word_embeddings", True):
        return False
    others = (name for name, other in source.shapes.items() if name != tensor and other == shape)
    return any(source.dtype(name) == source.dtype(tensor) and _equal(source, tensor, source, name) for name in others)


def _equal(a: WeightSource, tensor: str, b: WeightSource, other: str) -> bool:
    for start, stop in spans(a.shapes[tensor]):
        left, right = a.read(tensor, start, stop), b.read(other, start, stop)
        if left.dtype != right.dtype or not torch.equal(left.cpu(), right.cpu()):
            return False
    return True
