"""`svd`: the exact weighted sum, truncated to rank (the largest source rank by default).

The best approximation of the sum of `linear` in Frobenius norm (Eckart and Young 1936), through the factors: two QRs
and the singular vectors of the small core, never the dense update but where the core is as large.
"""

from __future__ import annotations

from samerge.methods import linear
from samerge.methods.memory import check_memory
from samerge.methods.method import Begun, Method
from samerge.methods.problem import Problem
from samerge.options.option import Options


def begin(problem: Problem, options: Options) -> Begun:
    """The weighted sum of every layer; what finishes a layer truncates it."""
    check_memory(problem)
    return linear.begin(problem, options)


METHOD = Method("svd", begin)
