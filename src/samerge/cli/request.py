"""A merge as the command line or a recipe asks for it, checked before any work, and carried out."""

from __future__ import annotations

import time
import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from samerge.cli.console import show_json, show_notes, show_warnings, show_ways, stdout
from samerge.cli.named_adapter import AdapterSpec, unique
from samerge.cli.shared_options import Manner
from samerge.cli.target import AdapterTarget

if TYPE_CHECKING:
    from samerge.merging.merged_adapter import MergedAdapter


@dataclass(frozen=True)
class Request:
    """One merge and where its result goes.

    Args:
        base: folder or hub id; None for methods that do not read it.
        adapters: what to merge.
        method: how; None for the default.
        weights: as `samerge.merge` takes them.
        options: options of `samerge.merge` that were given.
        target: where the result goes.
        notes: how the merge differs from what the file asks for, one sentence each.

    Raises:
        OptionError: no adapter, or a name twice.
    """

    base: str | None
    adapters: tuple[AdapterSpec, ...]
    method: str | None = None
    weights: Mapping[str, float] | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    target: AdapterTarget = field(default_factory=AdapterTarget)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unique(self.adapters)


def carry_out(request: Request, manner: Manner) -> None:
    """Check where the result goes, merge, save, push, and say so.

    Under `accelerate launch` or `torchrun` all processes merge, the first one does the rest.

    Args:
        request: what to do.
        manner: how to speak.
    """
    request.target.check("merged adapter", sources=[adapter.source for adapter in request.adapters])
    from samerge.merging.merge_adapters import merge
    from samerge.parallel.processes import join, leave

    group = join()
    start = time.perf_counter()
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # what the user should know is in the report
        merged = merge(
            request.base,
            {adapter.name: adapter.source for adapter in request.adapters},
            method=request.method,
            weights=request.weights,
            progress=group.first and not manner.quiet,
            **request.options,
        )
    if group.first:
        show_warnings([*request.notes, *merged.report.warnings])
        url = request.target.deliver(merged, manner.quiet)
        if manner.as_json:
            show_notes([] if manner.quiet else merged.report.notes)
            show_json(_summary(merged, request, url))
        elif not manner.quiet:
            _show(merged, request, url, time.perf_counter() - start)
    leave()


def _summary(merged: MergedAdapter, request: Request, url: str | None) -> dict[str, Any]:
    """What `--json` prints; the whole record is in `samerge.json`."""
    told = merged.report.record.json()
    shown = ("samerge", "method", "base", "output", "options", "adapters", "timings", "notes", "warnings")
    return {"out": request.target.out, "url": url, **{key: told.get(key) for key in shown}}


def _show(merged: MergedAdapter, request: Request, url: str | None, seconds: float) -> None:
    console = stdout()
    console.print(merged.report.table())
    console.print(
        f"{len(request.adapters)} adapter{'s' * (len(request.adapters) > 1)} merged in {seconds:.1f} s.", markup=False
    )
    placed = request.target.place(merged)
    show_ways(placed and placed[1], url, placed and f"samerge inspect {placed[0]}")
