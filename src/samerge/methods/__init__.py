"""The registry of merge methods: one line each. A method is one file and one line here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

from samerge.errors import OptionError
from samerge.methods.comparators import COMPARATORS
from samerge.methods.elementwise import merge_elementwise
from samerge.methods.exact import weighted_sum
from samerge.methods.problem import Entry

_SELECTION = frozenset(
    {"recipe", "rank", "density", "iterations", "basis", "agreement", "scope", "connectivity", "residual"}
    | {"refresh", "precision"}
)

REGISTRY: dict[str, Entry] = {
    "saliency": Entry(
        weighted_sum,
        "keep each adapter's most salient rank-1 components, side by side (SA-Merging)",
        uses=_SELECTION,
        defaults={"scaling": "auto"},
        needs_base=True,
        adaptive=True,
        selection="saliency",
        by_site=True,
    ),
    "elementwise": Entry(
        merge_elementwise,
        "keep each adapter's most salient elements, then truncate to svd_rank (SA-Merging of full weights)",
        uses=_SELECTION - {"rank", "basis", "scope", "refresh", "precision"},
        defaults={"scaling": "auto", "density": 0.1},
        needs_base=True,
        adaptive=True,
    ),
    "linear": Entry(
        weighted_sum, "the exact weighted sum (task arithmetic); its rank is the sum of the ranks", by_site=True
    ),
    "cat": Entry(weighted_sum, "the same as linear, under the name that PEFT gives its exact sum", by_site=True),
    "svd": Entry(
        weighted_sum,
        "the exact weighted sum, truncated to svd_rank (the largest source rank by default)",
        uses=frozenset({"rank"}),
        svd_rank=lambda rank: rank,
        by_site=True,
    ),
    **COMPARATORS,
}


def methods() -> Iterator[str]:
    """The names of the merge methods."""
    return iter(REGISTRY)


def entry(method: str, option: str = "method") -> Entry:
    """The registry's line for a method.

    Args:
        method: its name.
        option: by which option it was named, for messages.

    Raises:
        OptionError: there is no such method.
    """
    if method not in REGISTRY:
        raise OptionError(f"{option}={method!r} is not known; choose one of {', '.join(REGISTRY)}")
    return REGISTRY[method]


class _Callable(ModuleType):
    """Importing this package puts it in the place of the function `samerge.methods`; so it can be called like it."""

    def __call__(self) -> Iterator[str]:
        return methods()


sys.modules[__name__].__class__ = _Callable
