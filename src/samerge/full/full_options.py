"""The options of a merge of full checkpoints, and its two methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samerge.errors import OptionError
from samerge.options.common import dtype, text
from samerge.options.elements import ElementOptions
from samerge.options.kinds import word
from samerge.options.option import filled, meant, option, table, unknown
from samerge.options.scaling import auto_only


@dataclass(frozen=True)
class FullOptions(ElementOptions):
    """Options of one merge of checkpoints, all filled in."""

    scaling: float | str = option(
        auto_only(),
        "auto",
        "The strength of the merged update: a number, or auto: 1.3 times the checkpoints' mean norm.",
    )
    outside: str = option(
        word("average", "sum", "base"),
        "average",
        "What becomes of tensors outside the graph (norms, biases, embeddings, heads): the weighted average of their "
        "changes, their weighted sum, or the base's.",
    )
    mismatched: str = option(
        word("error", "base"),
        "error",
        "What becomes of tensors that a checkpoint lacks or adds, or that have another shape there: an error, or the "
        "base's.",
    )
    dtype: str | None = option(
        dtype(), None, "Of the output: float32, bfloat16, float16 or float64.", told="the base's own"
    )
    device: str | None = option(text("NAME"), None, "Where to compute: cpu, cuda, mps.", told="cpu")


#: The methods of a merge of checkpoints, and what each changes of the defaults. `paper` is SA-Merging as published.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "elementwise": {},
    "paper": {"scaling": 1.0, "residual": False, "outside": "sum"},
}


def resolve(method: str, given: Mapping[str, Any]) -> FullOptions:
    """Options from what the caller gave and the method's defaults, in this order of strength.

    Args:
        method: "elementwise" or "paper".
        given: the caller's options; None means not given.

    Raises:
        OptionError: an option is not known or out of its range.

    Example:
        >>> options = resolve("paper", {"density": 0.2, "scaling": None})
        >>> options.density, options.scaling, options.outside, options.mismatched
        (0.2, 1.0, 'sum', 'error')
    """
    if method not in METHODS:
        raise OptionError(f"method={method!r} is not known{meant(method, METHODS)} Choose one of {', '.join(METHODS)}")
    known = [row.name for row in table(FullOptions)]
    for name in given:
        if name not in known:
            raise unknown(name, known, "a merge of checkpoints")
    return filled(FullOptions, {**METHODS[method], **{k: v for k, v in given.items() if v is not None}})
