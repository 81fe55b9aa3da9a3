"""Keyword arguments, typed. Rendered from the option table by tests/options/render_keywords.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

import torch

from samerge.graph import FlowGraph


class LiveKeywords(TypedDict, total=False):
    """Options of `samerge.add_weighted_adapter` beside PEFT's own; which methods have one stands beside it."""

    rank: int | None
    scaling: float | str | None
    balance: Literal["norm", "none"] | None
    dtype: torch.dtype | str | None
    device: str | None
    modules_to_save: str | None
    dora: str | None
    companions: str | None
    modules: Mapping[str, float | Mapping[str, float]] | None
    #: saliency, even.
    calibration: str | os.PathLike[str] | Sequence[str | Sequence[Mapping[str, Any]]] | Callable[[Any], Any] | None
    #: saliency, paper, elementwise.
    iterations: int | None
    #: saliency, paper, elementwise.
    connectivity: Literal["flow", "local"] | FlowGraph | None
    #: saliency, paper, elementwise.
    residual: bool | None
    #: paper.
    basis: Literal["native", "svd"] | None
    #: elementwise.
    agreement: Literal["paper", "task"] | None
    #: breadcrumbs.
    top: float | None
    #: core-ties, ctm, dare-ties, dc-merge, della, knots-ties, ties.
    aggregate: Literal["mean", "sum"] | Literal["ties", "sum"] | None
    #: dare, dare-ties, della, lora-lego.
    seed: int | None
    #: della.
    epsilon: float | None
    #: della.
    elect: bool | None
    #: doge.
    eta: float | None
    #: doge.
    shared: float | None
    #: doge.
    steps: int | None
    #: doge.
    rate: float | None
    #: robustmerge.
    floor: float | None
    #: svc.
    alpha: float | None
    #: ties.
    trim: Literal["adapter", "layer"] | None
    #: wudi.
    mu: float | None


class MergeKeywords(LiveKeywords, total=False):
    """Options of `samerge.merge`."""

    #: saliency, even, paper, elementwise, breadcrumbs, core-ties, ctm, dare, dare-ties, dc-merge, della, doge,
    #: knots-ties, localize-and-stitch, magnitude-prune, pcb, robustmerge, ties, tsv.
    density: float | None
    #: core-ties, ctm, dare-ties, della, knots-ties, ties.
    majority_sign_method: Literal["total", "frequency"] | None
    #: The same as `rank`, by PEFT's name.
    svd_rank: int | None
