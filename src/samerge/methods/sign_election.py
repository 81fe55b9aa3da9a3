"""The election of signs (Yadav et al. 2023, TIES): which values of several adapters are merged, element by element.

    gamma = sign(sum_i v_i)                          majority_sign_method="total"
    gamma = sign(sum_i sign(v_i))                    majority_sign_method="frequency"
    M = mean of those v_i != 0 with sign(v_i) = gamma     aggregate="mean", or their sum: "sum"

Where the vote is a draw, gamma = 0, nobody agrees and M = 0. It is one where the votes cancel but for the rounding of
float32: values that cancel exactly do so however the adapters are written, and give 0 and not one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samerge.options.kinds import word
from samerge.options.option import Options, option

#: A vote of less than this share of the mass that voted is a draw.
DRAW = 1e-6


@dataclass(frozen=True)
class SignOptions(Options):
    """Options of an election."""

    majority_sign_method: str = option(
        word("total", "frequency"), "total", "Who wins a vote on a sign: the larger sum (total), or the larger number."
    )
    aggregate: str = option(word("mean", "sum"), "mean", "What becomes of the values that agree.")


def elect(values: Tensor, parameters: SignOptions) -> Tensor:
    """The merged values.

    Args:
        values: (N, ...), those of each expert; 0 takes no part.
        parameters: how.

    Example:
        >>> elect(torch.tensor([[1.0, 2.0], [3.0, -1.0], [-1.0, -3.0]]), SignOptions())
        tensor([ 2., -2.])
    """
    signs = values.sign()
    votes = values if parameters.majority_sign_method == "total" else signs
    result = votes.sum(dim=0)
    result = torch.where(result.abs() > DRAW * votes.abs().sum(dim=0), result, 0)
    agree = signs * result.sign() > 0
    total = (values * agree).sum(dim=0)
    return total if parameters.aggregate == "sum" else total / agree.sum(dim=0).clamp_min(1)
