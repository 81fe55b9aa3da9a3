"""From right and wrong answers to a score with an interval. Pure: tensors and numbers in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy
import torch
from torch import Tensor

#: Right answers of every task, bool.
Answers = Mapping[str, Tensor]


def pack(answers: Tensor) -> str:
    """Booleans as text: how many, and their bits.

    Example:
        >>> pack(torch.tensor([True, False, True]))
        '3:a0'
    """
    return f"{len(answers)}:{numpy.packbits(answers.numpy()).tobytes().hex()}"


def unpack(text: str) -> Tensor:
    """The booleans of `pack`.

    Example:
        >>> unpack("3:a0").tolist()
        [True, False, True]
    """
    count, _, bits = text.partition(":")
    found = numpy.unpackbits(numpy.frombuffer(bytes.fromhex(bits), dtype=numpy.uint8))[: int(count)]
    return torch.from_numpy(found.astype(bool))


def score(merged: Answers, experts: Answers) -> float:
    """Per cent of the experts' accuracy, mean over tasks: 100 mean_t acc_t(merged) / acc_t(expert t).

    Example:
        >>> half, all_ = torch.tensor([True, False]), torch.tensor([True, True])
        >>> score({"a": half, "b": all_}, {"a": all_, "b": all_})
        75.0
    """
    ratios = [float(merged[task].float().mean() / experts[task].float().mean()) for task in experts]
    return 100 * sum(ratios) / len(ratios)


def resampled(experts: Answers, answers: Sequence[Answers], times: int = 1000, seed: int = 0) -> Tensor:
    """Scores over bootstrap samples of the items, (len(answers), times).

    Items are drawn with replacement within each task; all answers and the experts see the same draws, so the difference
    of two rows is a paired comparison.

    Args:
        experts: each task's own expert's answers.
        answers: of the merges.
        times: number of samples.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(answers), times, dtype=torch.float64)
    for task in sorted(experts):
        count = len(experts[task])
        draws = torch.randint(count, (times, count), generator=generator)
        # How often each item was drawn turns the means into one matrix product.
        often = torch.zeros(times, count, dtype=torch.float64).scatter_add_(
            1, draws, torch.ones(times, count, dtype=torch.float64)
        )
        own = often @ experts[task].double()  # (times,)
        total += torch.stack([one[task].double() for one in answers]) @ often.T / own
    return 100 * total / len(experts)


def interval(values: Tensor) -> tuple[float, float]:
    """The central 95 % of the values."""
    low, high = torch.quantile(values.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


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
    return below + (same + 1) / 2
