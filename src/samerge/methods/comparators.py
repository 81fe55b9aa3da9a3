"""The registry's lines of the published methods that saliency is compared with. None of them reads the base."""

from __future__ import annotations

from samerge.methods.in_core import in_core
from samerge.methods.isotropic import combine_iso_c
from samerge.methods.problem import Entry
from samerge.methods.star import StarParameters, combine_star
from samerge.methods.tsv import combine_tsv
from samerge.methods.wudi import AswudiParameters, WudiParameters, combine_aswudi, combine_wudi

_DENSITY = frozenset({"density"})

#: Exact in the core space.
_IN_CORE = {
    "wudi": Entry(
        in_core(combine_wudi),
        "the merge that disturbs each adapter's own inputs least, in closed form (WUDI)",
        parameters=WudiParameters,
    ),
    "aswudi": Entry(
        in_core(combine_aswudi),
        "wudi within its leading directions, as many as the spectrum counts",
        parameters=AswudiParameters,
    ),
    "tsv": Entry(
        in_core(combine_tsv),
        "the singular triplets of all adapters side by side, decorrelated (TSV-Merge)",
        uses=_DENSITY,
        defaults={"scaling": 1.0, "density": 1.0},
    ),
    "iso-c": Entry(in_core(combine_iso_c), "the weighted sum with all its singular values made equal (Iso-C)"),
    "star": Entry(
        in_core(combine_star),
        "the mean of the adapters, each truncated and rescaled to keep its nuclear norm (STAR)",
        parameters=StarParameters,
    ),
}

COMPARATORS: dict[str, Entry] = {**_IN_CORE}
