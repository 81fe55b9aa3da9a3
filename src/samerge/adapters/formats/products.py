"""LoHa and LoKr, of LyCORIS and of PEFT, as LoRA: exactly, of the rank that takes.

| kind | update | rank as a LoRA |
|---|---|---|
| LoHa | (w1_a w1_b) * (w2_a w2_b), element by element | r^2 |
| LoKr | w1 x w2, the Kronecker product; each whole, or a product of two | r of the one times r of the other |

With a core (`hada_t1`, `hada_t2`, `lokr_t2`), a convolution's matrix is w_a^T (t w_b).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from samerge.adapters.describe import Stored, check_dtypes
from samerge.adapters.formats.format import Place
from samerge.adapters.formats.pairs import Parts
from samerge.adapters.model import AdaptedModule, widest
from samerge.linalg.factors import LoraFactors
from samerge.linalg.products import hadamard, hadamard_rank, kronecker, through_core, trivial
from samerge.weights.untrusted import Origin

#: What each kind needs, with and without a core; LoKr's halves by themselves.
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_CORES = {"hada_t1", "hada_t2"}
_LOKR = (({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"}), ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}))

Shape = tuple[int, ...]
Read = Callable[[str], Tensor]


def kind_of(parts: Mapping[str, Shape]) -> str | None:
    """LoHa or LoKr, by the names of a module's tensors; None where they are neither, or not complete."""
    names = set(parts)
    if names in (_LOHA, _LOHA | _CORES):
        return "LoHa"
    halves = [half for choices in _LOKR for half in choices if half <= names]
    if len(halves) == 2 and names - halves[0] - halves[1] in (set(), {"lokr_t2"}):
        return "LoKr"
    return None


def divisor(parts: Mapping[str, Shape]) -> int | None:
    """What alpha is divided by: the rank; None where a LoKr is whole, which is scaled by 1."""
    for name in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if name in parts:
            return parts[name][0]
    return None


def as_lora(parts: Mapping[str, Shape], dtype: torch.dtype, read: Read) -> Stored:
    """The factors that a module's tensors stand for.

    Args:
        parts: the shapes of its tensors, of one of the kinds.
        dtype: the widest of its tensors.
        read: gives one of them.

    Raises:
        ValueError: the shapes do not belong together.
    """
    if "hada_w1_a" in parts:
        one, two = _factored(parts, "hada_w1", "hada_t1"), _factored(parts, "hada_w2", "hada_t2")
        if one.shape != two.shape or one.kernel != two.kernel:
            raise ValueError(f"its two products are of {one.shape} and {two.shape}")
        out, columns = one.shape
        rank = hadamard_rank(one.rank, two.rank, one.shape)
    else:
        one, two = _factored(parts, "lokr_w1"), _factored(parts, "lokr_w2", "lokr_t2")
        out, columns = one.shape[0] * two.shape[0], one.shape[1] * two.shape[1]
        rank = one.rank * two.rank
    across = (columns // math.prod(two.kernel), *two.kernel)
    up = (out, rank, *[1] * len(two.kernel))
    return Stored(((rank, *across), up), dtype, False, partial(_read, "hada_w1_a" in parts, sorted(parts), read))


def shapes_of(place: Place, parts: Parts) -> dict[str, Shape]:
    """The shapes of a module's tensors, but for alpha."""
    return {part: place.tensors.entries[key].shape for part, key in parts.items() if part != "alpha"}


def product(place: Place, module: str, parts: Parts, origin: Origin) -> Stored:
    """The factors that a module of a file stands for; its scale is the format's to say.

    Args:
        place: where the adapter lies.
        module: its name, for errors.
        parts: its tensors, of one of the kinds.
        origin: what is being read, for errors.

    Raises:
        AdapterError: the tensors do not belong together, or hold no floating-point numbers.
    """
    shapes = shapes_of(place, parts)
    kinds = {part: place.tensors.dtype(parts[part]) for part in shapes}
    check_dtypes(place.name, module, kinds)
    try:
        return as_lora(shapes, widest(kinds.values()), lambda part: place.tensors.read(parts[part]))
    except ValueError as error:
        raise origin.refusal(f"module {module!r}: {error}; the file is broken") from error


def notes_of(name: str, modules: Mapping[str, AdaptedModule], products: Mapping[str, int]) -> list[str]:
    """What to say of modules that are products of low-rank matrices.

    Args:
        name: of the adapter.
        modules: all that it adapts.
        products: how many of them are of which kind.
    """
    if not products:
        return []
    told = " and ".join(f"{count} modules as {kind}" for kind, count in sorted(products.items()))
    most = max(one.rank for one in modules.values())
    return [
        f"the adapter {name} has {told}, which are read exactly, as LoRA of rank {most} at most: nothing is lost. "
        f"rank=, or samerge compress, makes the result smaller and says what that loses"
    ]


@dataclass(frozen=True)
class _Half:
    """One half of a product: its rank, its shape as a matrix, and its kernel where that is known."""

    rank: int
    shape: tuple[int, int]
    kernel: Shape = ()


def _factored(parts: Mapping[str, Shape], half: str, core: str = "") -> _Half:
    if half in parts:
        shape = parts[half]
        if len(shape) < 2:
            raise ValueError(f"{half} has shape {shape}, which is no matrix")
        matrix = shape[0], math.prod(shape[1:])
        return _Half(min(matrix), matrix, shape[2:])
    a, b = parts[f"{half}_a"], parts[f"{half}_b"]
    if core in parts:
        t = parts[core]
        if len(t) < 3 or len(a) != 2 or len(b) != 2 or (t[0], t[1]) != (a[0], b[0]):
            raise ValueError(f"{core} has shape {t}, {half}_a {a} and {half}_b {b}")
        return _Half(t[0], (a[1], b[1] * math.prod(t[2:])), t[2:])
    if len(a) != 2 or len(b) < 2 or a[1] != b[0]:
        raise ValueError(f"{half}_a has shape {a} and {half}_b {b}; expected (out, r) and (r, in)")
    return _Half(b[0], (a[0], math.prod(b[1:])), b[2:])


def _read(loha: bool, names: list[str], read: Read) -> tuple[Tensor, Tensor]:
    tensors = {name: read(name).float() for name in names}
    if loha:
        made = hadamard(_half(tensors, "hada_w1", "hada_t1"), _half(tensors, "hada_w2", "hada_t2"))
    else:
        made = kronecker(_half(tensors, "lokr_w1"), _half(tensors, "lokr_w2", "lokr_t2"))
    return made.A, made.B


def _half(tensors: Mapping[str, Tensor], half: str, core: str = "") -> LoraFactors:
    if half in tensors:
        return trivial(tensors[half].flatten(1))
    a, b = tensors[f"{half}_a"], tensors[f"{half}_b"]
    if core in tensors:
        return LoraFactors(through_core(tensors[core], b).flatten(1), a.T)
    return LoraFactors(b.flatten(1), a)
