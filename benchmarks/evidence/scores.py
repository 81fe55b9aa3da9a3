"""From what a model made of rows to a score with an interval. Pure: tensors and numbers in, numbers out.

One score for everything. A row has a gain: how much the merge does better on it than the base model. A merge's score on
a task is its mean gain in per cent of the mean gain of the task's own adapter, on the same rows:

    100 (L_base - L_merge) / (L_base - L_adapter)     L: loss, in nats     the smooth score: the base is 0
    100 right_merge / right_adapter                   right: share of right answers     its base is what it is

and over tasks the mean. 100 is as good as the adapters.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import numpy
import torch
from torch import Tensor

#: By task: (rows,) each, what counts for each row.
Gains = Mapping[str, Tensor]

#: A task whose own adapter gains less than this share of the base's loss has no smooth score: nothing to keep.
LEAST = 0.05


def has_score(base: float, own: float) -> bool:
    """Whether a task has a smooth score.

    Args:
        base: mean loss of the base on it.
        own: mean loss of the task's own adapter.

    Example:
        >>> has_score(4.0, 3.8), has_score(4.0, 3.9)
        (True, False)
    """
    return base - own >= LEAST * base


def pack(values: Tensor) -> str:
    """Numbers as text: float16 for losses, bits for booleans.

    Example:
        >>> pack(torch.tensor([True, False, True])), pack(torch.tensor([0.5, 2.0]))
        ('3:oA==', 'f:ADgAQA==')
    """
    array = values.numpy()
    if values.dtype == torch.bool:
        return f"{len(array)}:{base64.b64encode(numpy.packbits(array).tobytes()).decode()}"
    return f"f:{base64.b64encode(array.astype('<f2').tobytes()).decode()}"


def unpack(text: str) -> Tensor:
    """What `pack` was given, as float64; losses within half a thousandth of themselves.

    Example:
        >>> unpack("3:oA==").tolist(), unpack("f:ADgAQA==").tolist()
        ([1.0, 0.0, 1.0], [0.5, 2.0])
    """
    kind, _, data = text.partition(":")
    raw = base64.b64decode(data)
    if kind == "f":
        return torch.from_numpy(numpy.frombuffer(raw, dtype="<f2").astype("float64"))
    bits = numpy.unpackbits(numpy.frombuffer(raw, dtype=numpy.uint8))[: int(kind)]
    return torch.from_numpy(bits.astype("float64"))


def score(merged: Gains, own: Gains) -> float:
    """100 mean_t (mean gain of the merge on t / mean gain of t's own adapter).

    Example:
        >>> half, all_ = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
        >>> score({"a": half, "b": all_}, {"a": all_, "b": all_})
        75.0
    """
    return 100 * sum(float(merged[task].mean() / own[task].mean()) for task in own) / len(own)


def resampled(
    own: Gains, merges: Sequence[Gains], documents: Gains | None = None, times: int = 1000, seed: int = 0
) -> Tensor:
    """Scores over bootstrap samples of the rows, (len(merges), times).

    Rows are drawn with replacement within each task, or whole documents where several rows are of one; all merges and
    the adapters see the same draws, so the difference of two rows of the result is a paired comparison.

    Args:
        own: each task's own adapter's gains.
        merges: theirs.
        documents: by task the number of each row's document; each row its own by default.
        times: number of samples.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(merges), times, dtype=torch.float64)
    for task in sorted(own):
        count = len(own[task])
        _, of = torch.unique((documents or {}).get(task, torch.arange(count)), return_inverse=True)
        units = int(of.max()) + 1
        draws = torch.randint(units, (times, units), generator=generator)
        # How often each was drawn turns the means into one matrix product.
        often = torch.zeros(times, units, dtype=torch.float64).scatter_add_(
            1, draws, torch.ones(times, units, dtype=torch.float64)
        )[:, of]
        gains = torch.stack([one[task] for one in merges]).double()
        total += gains @ often.T / (often @ own[task].double())
    return 100 * total / len(own)


def interval(values: Tensor) -> list[float]:
    """The central 95 % of the values, to hundredths."""
    return [round(v, 2) for v in torch.quantile(values.double(), torch.tensor([0.025, 0.975]).double()).tolist()]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; ties get the mean of their ranks.

    Example:
        >>> spearman([1, 2, 3, 4], [10, 20, 30, 25])
        0.8
    """
    ranks = [_ranks(list(values)) for values in (first, second)]
    a, b = (values - values.mean() for values in ranks)
    return round(float((a @ b) / (a.norm() * b.norm())), 12)


def _ranks(values: Sequence[float]) -> Tensor:
    column = torch.tensor(values, dtype=torch.float64)
    below = (column[:, None] > column[None, :]).sum(1)
    same = (column[:, None] == column[None, :]).sum(1)
    return below.double() + (same.double() + 1) / 2
