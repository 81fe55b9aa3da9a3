"""Keyword arguments, typed. Rendered from the option table by tests/options/render_keywords.py."""

from __future__ import annotations

from typing import Literal, TypedDict

import torch

from samerge.graph import FlowGraph


class FullKeywords(TypedDict, total=False):
    """Options of `samerge.merge_full`."""

    density: float | None
    iterations: int | None
    agreement: Literal["paper", "task"] | None
    connectivity: Literal["flow", "local"] | FlowGraph | None
    residual: bool | None
    scaling: float | Literal["auto"] | None
    outside: Literal["average", "sum", "base"] | None
    mismatched: Literal["error", "base"] | None
    dtype: torch.dtype | str | None
    device: str | None
