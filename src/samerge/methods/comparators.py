"""The registry's lines of the published methods that saliency is compared with. None of them reads the base."""

from __future__ import annotations

from samerge.methods.aligned import CoreTiesParameters, aligned_ties, by_cores, by_knots
from samerge.methods.breadcrumbs import BreadcrumbsParameters, prepare_breadcrumbs
from samerge.methods.chance import SeedParameters
from samerge.methods.ctm import CtmParameters, by_tucker
from samerge.methods.dare import DareTiesParameters, prepare_dare, prepare_dare_ties
from samerge.methods.della import DellaParameters, prepare_della
from samerge.methods.in_core import in_core
from samerge.methods.isotropic import combine_iso_c
from samerge.methods.lego import LegoParameters, merge_lego
from samerge.methods.pcb import PcbParameters, prepare_pcb
from samerge.methods.problem import Entry
from samerge.methods.robust import RobustParameters, merge_robust
from samerge.methods.rows import by_rows
from samerge.methods.star import StarParameters, combine_star
from samerge.methods.ties import TiesParameters, prepare_magnitude_prune, prepare_ties
from samerge.methods.tsv import combine_tsv
from samerge.methods.wudi import AswudiParameters, WudiParameters, combine_aswudi, combine_wudi

_RANK = frozenset({"rank"})
_DENSITY = frozenset({"density", "rank"})

#: Exact in the core space.
_IN_CORE = {
    "wudi": Entry(
        in_core(combine_wudi),
        "the merge that disturbs each adapter's own inputs least, in closed form (WUDI)",
        uses=_RANK,
        parameters=WudiParameters,
        by_site=True,
    ),
    "aswudi": Entry(
        in_core(combine_aswudi),
        "wudi within its leading directions, as many as the spectrum counts",
        uses=_RANK,
        parameters=AswudiParameters,
        by_site=True,
    ),
    "tsv": Entry(
        in_core(combine_tsv),
        "the singular triplets of all adapters side by side, decorrelated (TSV-Merge)",
        uses=_DENSITY,
        defaults={"scaling": 1.0, "density": 1.0},
        by_site=True,
    ),
    "iso-c": Entry(
        in_core(combine_iso_c, flat=True),
        "the weighted sum with all its singular values made equal (Iso-C)",
        uses=_RANK,
        by_site=True,
    ),
    "star": Entry(
        in_core(combine_star),
        "the mean of the adapters, each truncated and rescaled to keep its nuclear norm (STAR)",
        uses=_RANK,
        parameters=StarParameters,
        by_site=True,
    ),
}

#: Element by element, streamed by rows.
_BY_ROWS = {
    "ties": Entry(
        by_rows(prepare_ties),
        "trim by magnitude, elect a sign for every element, average what agrees (TIES), truncate to svd_rank",
        uses=_DENSITY,
        adaptive=True,
        defaults={"scaling": 1.0, "density": 0.2},
        parameters=TiesParameters,
    ),
    "magnitude-prune": Entry(
        by_rows(prepare_magnitude_prune),
        "trim every layer by magnitude, add, truncate to svd_rank",
        uses=_DENSITY,
        adaptive=True,
        defaults={"scaling": 1.0, "density": 0.2},
    ),
    "dare": Entry(
        by_rows(prepare_dare),
        "drop elements at random, rescale, add (DARE), truncate to svd_rank",
        uses=_DENSITY,
        adaptive=True,
        defaults={"scaling": 1.0, "density": 0.1},
        parameters=SeedParameters,
    ),
    "dare-ties": Entry(
        by_rows(prepare_dare_ties),
        "drop elements at random, rescale, elect signs (DARE with TIES), truncate to svd_rank",
        uses=_DENSITY,
        adaptive=True,
        defaults={"scaling": 1.0, "density": 0.1},
        parameters=DareTiesParameters,
    ),
    "della": Entry(
        by_rows(prepare_della),
        "drop elements at random, small ones more often, elect signs (DELLA), truncate to svd_rank",
        uses=_DENSITY,
        defaults={"scaling": 1.0, "density": 0.3},
        parameters=DellaParameters,
    ),
    "breadcrumbs": Entry(
        by_rows(prepare_breadcrumbs),
        "drop the largest and the smallest elements of every layer, add, truncate to svd_rank (Breadcrumbs)",
        uses=_DENSITY,
        defaults={"scaling": 0.3, "density": 0.14},
        parameters=BreadcrumbsParameters,
    ),
    "pcb": Entry(
        by_rows(prepare_pcb),
        "weigh every element by how it competes within and between adapters (PCB), truncate to svd_rank",
        uses=_DENSITY,
        defaults={"scaling": 1.2, "density": 0.1},
        parameters=PcbParameters,
    ),
}

#: In a space that is common to all adapters, and on the factors as they are.
_OTHERS = {
    "knots-ties": Entry(
        aligned_ties(by_knots),
        "TIES on the adapters' parts in one SVD for all (KnOTS)",
        uses=_DENSITY,
        defaults={"scaling": 1.0, "density": 0.2},
        parameters=TiesParameters,
    ),
    "core-ties": Entry(
        aligned_ties(by_cores),
        "TIES on the adapters' small cores between common singular vectors",
        uses=_DENSITY,
        defaults={"scaling": 1.0, "density": 0.2},
        parameters=CoreTiesParameters,
    ),
    "ctm": Entry(
        aligned_ties(by_tucker),
        "balance norms, compress all adapters to one space of rank svd_rank, TIES in it (Compress then Merge)",
        uses=_DENSITY,
        defaults={"scaling": 0.75, "density": 0.25},
        parameters=CtmParameters,
    ),
    "lora-lego": Entry(
        merge_lego,
        "cluster the rank-1 components of all adapters, as trained, to rank of them (LoRA-LEGO)",
        uses=_RANK,
        parameters=LegoParameters,
        counts=True,
        by_site=True,
    ),
    "robustmerge": Entry(
        merge_robust,
        "prune and add the factors apart, with cross terms (RobustMerge)",
        uses=_DENSITY,
        defaults={"scaling": 4.0, "density": 0.2},
        parameters=RobustParameters,
        by_site=True,
    ),
}

COMPARATORS: dict[str, Entry] = {**_BY_ROWS, **_IN_CORE, **_OTHERS}
