"""What the conflicts between adapters say, in words."""

from __future__ import annotations

import statistics

from samerge.merging.between_adapters import Conflicts
from samerge.methods.problem import MOST_BALANCE
from samerge.report.facts import number

#: Cosines from which two adapters count as the same, or as cancelling.
_SAME, _AGAINST, _CANCEL = 0.9, -0.2, -0.8
#: Norm over the median of the others from which an adapter counts as far larger than they, or its inverse.
_IMBALANCE = 3.0
#: Overlap of two row spaces from which they count as shared; far above chance at the usual ranks and widths.
_SHARED = 0.5


#: What becomes of unequal norms.
_BALANCE = "the default brings all of them to one norm in each layer"


def reading(found: Conflicts) -> str:
    """One paragraph: who cancels whom, who is the same, who drowns the others, and what to do about it.

    Example:
        >>> from samerge.merging.between_adapters import Conflicts
        >>> one = ((1.0, 0.01), (0.01, 1.0))
        >>> reading(Conflicts(("a", "b"), (1.0, 1.2), one, one, one, one, 0.01, {}, (0, 0)))
        'No two of these adapters work against each other: cosines from 0.01 to 0.01, norms within a factor of 1.2.'
    """
    told = [*_apart(found), *_pairs(found), *_shared(found), *_norms(found)]
    if told:
        return " ".join(told)
    values = [value for i, j in found.pairs() if (value := found.cosine[i][j]) is not None]
    if not values:
        return "No cosine of these adapters can be told: an update is zero, or larger than a number can be."
    norms = [norm for norm in found.norms if norm]
    span = max(norms) / min(norms)
    return (
        f"No two of these adapters work against each other: cosines from {number(min(values))} to "
        f"{number(max(values))}, norms within a factor of {span:.1f}."
    )


def _apart(found: Conflicts) -> list[str]:
    """Pairs without a common layer: their cosine is 0 whatever they do."""
    return [
        f"{found.names[i]} and {found.names[j]} adapt no layer in common: there is nothing to compare; are they "
        "adapters of one base?"
        for i, j in found.pairs()
        if found.rows[i][j] is None and found.cosine[i][j] is not None
    ]


def _pairs(found: Conflicts) -> list[str]:
    told = []
    for i, j in found.pairs():
        value, both = found.cosine[i][j], f"{found.names[i]} and {found.names[j]}"
        if value is None:
            continue
        if value <= _CANCEL:
            told.append(
                f"{both} nearly cancel (cosine {value:.2f}): together they leave little of either; leave one out."
            )
        elif value <= _AGAINST:
            told.append(
                f"{both} work against each other (cosine {value:.2f}): what one does, the other undoes in part; a "
                f"smaller weight for one leaves more of the other."
            )
        elif value >= _SAME:
            told.append(
                f"{both} are nearly the same (cosine {value:.2f}): what they share counts twice, or takes places from "
                f"the other adapters; leave one out."
            )
    return told


def _shared(found: Conflicts) -> list[str]:
    """Pairs that read the same inputs and answer differently: these cannot be told apart by what they see."""
    told = []
    for i, j in found.pairs():
        rows, cosine = found.rows[i][j], found.cosine[i][j]
        if rows is not None and cosine is not None and rows >= _SHARED and _AGAINST < cosine < _SAME:
            told.append(
                f"{found.names[i]} and {found.names[j]} react to the same inputs (row spaces overlap by {rows:.0%}) in "
                f"different ways (cosine {cosine:.2f}): there the merge does something between the two."
            )
    return told


def _norms(found: Conflicts) -> list[str]:
    told = []
    for n, size in enumerate(found.norms):
        if size == 0:
            told.append(f"{found.names[n]} is zero: it changes nothing; was it trained?")
            continue
        others = [value for m, value in enumerate(found.norms) if m != n and value > 0]
        if not others:
            continue
        ratio = size / statistics.median(others)
        if ratio >= _IMBALANCE:
            told.append(
                f"{found.names[n]} is {ratio:.0f}x larger than the others: {_BALANCE}; with balance='none' it "
                f"outweighs them."
            )
        elif ratio <= 1 / _IMBALANCE and len(others) > 1:
            told.append(
                f"{found.names[n]} is {1 / ratio:.0f}x smaller than the others: {_BALANCE}, made at most "
                f"{MOST_BALANCE:g} times as strong; with balance='none' it is hardly there."
            )
    return told
