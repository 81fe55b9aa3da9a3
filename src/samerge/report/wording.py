"""What a merge does, in words: a sentence for every method and for the options that come before and after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samerge.report.markdown import code

_PAPER = "[Saliency-Aware Model Merging](https://arxiv.org/abs/2606.00511) (SA-Merging)"
_METHODS = {
    "saliency": (
        f"{_PAPER}: every rank-1 component of every adapter is scored by how much the connectivity of the adapted "
        "network depends on it and by how well it agrees with the merged update; the least salient ones are pruned "
        "over several iterations, and what is kept is summed."
    ),
    "elementwise": (
        f"{_PAPER}, element by element: the elements of every update are scored by how much the connectivity of the "
        "adapted network depends on them and by how well they agree with the merged update; the most salient ones "
        "are kept and summed."
    ),
    "linear": "The weighted sum of the adapters' updates.",
    "cat": "The weighted sum of the adapters' updates, exactly, by laying their components side by side.",
    "compress": "The adapter with every layer's update replaced by its best approximation of a lower rank.",
    "extract": "The difference between the checkpoint's linear weights and the base's, truncated to a low rank (SVD).",
    "svd": "The weighted sum of the adapters' updates, brought to a lower rank by a truncated SVD.",
    "tsv": (
        "In every layer the singular vectors of all adapters, side by side, are replaced by the nearest orthonormal "
        "ones, so that directions which adapters share are divided among them (TSV-Merge: Gargiulo et al., 2024)."
    ),
}
#: What comes before a method, and what comes after it, by the option and its value.
_BEFORE = {
    ("balance", "norm"): "First the update of every adapter is brought to the adapters' mean norm, layer by layer.",
    ("balance", "global"): "First the update of every adapter is brought, as a whole, to the adapters' mean norm.",
}
_AFTER = {
    ("spectrum", "flat"): (
        "The singular values of every merged layer are made equal, in the spirit of Iso-C (Marczak et al., 2025)."
    ),
    ("scaling", "unit"): "The weights count in proportion to each other: brought to one, where they are the same.",
    ("scaling", "auto"): "The norm of every merged layer is set in proportion to the adapters' mean norm there.",
}


def in_words(record: Mapping[str, Any]) -> str:
    """How a merge was made, in the order of its links.

    Args:
        record: what `samerge.json` holds, with its `method`.

    Returns:
        A paragraph of Markdown.

    Example:
        >>> in_words({"method": "linear", "options": {"scaling": "auto"}}).split(". ")[0]
        "The weighted sum of the adapters' updates"
    """
    method, options = str(record["method"]), record.get("options") or {}
    before, after = (
        [words for (option, value), words in table.items() if options.get(option) == value]
        for table in (_BEFORE, _AFTER)
    )
    return " ".join([*before, _METHODS.get(method) or _chain(method), *after])


def _chain(method: str) -> str:
    """A method without words of its own, or a selection and an aggregation."""
    selection, plus, aggregation = method.partition("+")
    if not plus:
        return f"The method {code(method)} of samerge."
    score = f" Saliency is the score of {_PAPER}." if selection == "saliency" else ""
    combined = f" {_METHODS[aggregation]}" if aggregation in _METHODS else ""
    return (
        f"Rank-1 components of every adapter, selected by {code(selection)}, combined by {code(aggregation)}."
        f"{score}{combined}"
    )
