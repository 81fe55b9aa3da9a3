"""A merge as the command line or a recipe asks for it, checked before any work, and carried out."""

from __future__ import annotations

import os
import tempfile
import time
import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samerge.cli.console import show_json, show_warnings, stderr, stdout
from samerge.cli.named_adapter import AdapterSpec, unique
from samerge.errors import HubError, OptionError, OutputExistsError

if TYPE_CHECKING:
    from samerge.merging.merged_adapter import MergedAdapter

#: The options of `samerge.merge` that the command line and recipes take, by the same names.
OPTIONS = (
    "method",
    "recipe",
    "balance",
    "selection",
    "aggregation",
    "rank",
    "density",
    "iterations",
    "refresh",
    "basis",
    "scaling",
    "agreement",
    "scope",
    "connectivity",
    "residual",
    "precision",
    "svd_rank",
    "spectrum",
    "dtype",
    "device",
    "modules_to_save",
    "dora",
    "method_options",
)


@dataclass(frozen=True)
class Request:
    """One merge and where its result goes.

    Args:
        base: folder or hub id; None for methods that do not read it.
        adapters: what to merge.
        options: options of `samerge.merge` that were given.
        out: folder to write.
        overwrite: replace an adapter that is there already.
        push_to_hub: repository to push to.
        private: whether a new repository is private.
        weights: how to find the weights, instead of those of the adapters.

    Raises:
        OptionError: no adapter, a name twice, weights twice, or nowhere to put the result.
    """

    base: str | None
    adapters: tuple[AdapterSpec, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    out: str | None = None
    overwrite: bool = False
    push_to_hub: str | None = None
    private: bool = False
    weights: str | None = None

    def __post_init__(self) -> None:
        unique(self.adapters)
        if not self.out and not self.push_to_hub:
            raise OptionError("nowhere to put the merged adapter; give --out FOLDER, --push-to-hub USER/NAME, or both")
        if self.weights and any(adapter.weight != 1 for adapter in self.adapters):
            raise OptionError(
                f"weights={self.weights!r} and the weights of single adapters together: give one or the other"
            )
        if self.private and not self.push_to_hub:
            raise OptionError("--private is for a new repository on the Hub; give --push-to-hub USER/NAME, too")


def carry_out(request: Request, as_json: bool, quiet: bool) -> None:
    """Check where the result goes, merge, save, push, and say so.

    Under `accelerate launch` or `torchrun` all processes merge, the first one does the rest.

    Args:
        request: what to do.
        as_json: print a summary as JSON, and nothing else, on stdout.
        quiet: print no table and no progress; warnings and errors still come.
    """
    check_targets(request)
    from samerge.merging.merge_adapters import merge
    from samerge.parallel.processes import join, leave

    group = join()
    start = time.perf_counter()
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # what the user should know is in the report
        merged = merge(
            request.base,
            {adapter.name: adapter.source for adapter in request.adapters},
            weights=request.weights or {adapter.name: adapter.weight for adapter in request.adapters},
            progress=group.first and not quiet,
            **request.options,
        )
    if group.first:
        _hand_over(merged, request, as_json, quiet, time.perf_counter() - start)
    leave()


def _hand_over(merged: MergedAdapter, request: Request, as_json: bool, quiet: bool, seconds: float) -> None:
    show_warnings(merged.report.warnings)
    if request.out:
        merged.save(request.out, overwrite=request.overwrite)
        if not quiet:
            stderr().print(f"saved in {request.out}", markup=False)
    url = _push(merged, request, quiet) if request.push_to_hub else None
    if as_json:
        show_json(_summary(merged, request, url))
    elif not quiet:
        _show(merged, request, url, seconds)


def check_targets(request: Request) -> None:
    """Refuse, before any long work, a folder that may not be written and a repository id that cannot be.

    Raises:
        OutputExistsError: the folder is taken, or cannot be made.
        OptionError: the repository id is not valid.
    """
    if request.out:
        check_folder(request.out, request.overwrite)
    if request.push_to_hub:
        check_repository(request.push_to_hub)


def check_folder(out: str, overwrite: bool, marker: str | None = None) -> None:
    """Refuse a folder that may not be written.

    Args:
        out: the folder.
        overwrite: replace what is there already.
        marker: the file that shows that what is there may be replaced; that of an adapter by default.

    Raises:
        OutputExistsError: it is taken, or cannot be made.
    """
    from samerge.adapters.atomic import check_free
    from samerge.weights.hub import CONFIG_NAME

    target = Path(os.path.abspath(Path(out).expanduser()))
    check_free(target, overwrite, marker or CONFIG_NAME)
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        why = "cannot be written to" if parent.is_dir() else "is a file"
        raise OutputExistsError(f"writing {out}: {parent} {why}; choose another folder")


def check_repository(repository: str) -> None:
    """Refuse a repository id that cannot be.

    Raises:
        OptionError: it is not valid.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise OptionError(f"--push-to-hub {repository!r}: {error}. A repository id is 'name' or 'user/name'") from error


def _push(merged: MergedAdapter, request: Request, quiet: bool) -> str:
    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    try:
        return merged.push_to_hub(str(request.push_to_hub), private=True if request.private else None)
    except HubError as error:
        if request.out:
            raise
        kept = merged.save(Path(tempfile.mkdtemp(prefix="samerge-")) / "merged")
        raise HubError(f"{error}. The merge is not lost: it is in {kept}") from error


def _summary(merged: MergedAdapter, request: Request, url: str | None) -> dict[str, Any]:
    """What `--json` prints; the whole record is in `samerge.json`."""
    record = merged.report.record
    return {
        "out": request.out,
        "url": url,
        **{key: record[key] for key in ("samerge", "method", "base", "output", "options")},
        "experts": merged.report.experts(),
        "timings": record["timings"],
        "warnings": list(record["warnings"]),
    }


def _show(merged: MergedAdapter, request: Request, url: str | None, seconds: float) -> None:
    console = stdout()
    console.print(merged.report.table())
    console.print(f"{len(request.adapters)} adapters merged in {seconds:.1f} s.", markup=False)
    if request.out:
        console.print(f'Load it:   PeftModel.from_pretrained(base, "{request.out}")', markup=False, soft_wrap=True)
        console.print(f"Look in:   samerge inspect {request.out}", markup=False, soft_wrap=True)
    if url:
        console.print(f"Pushed to: {url}", markup=False, soft_wrap=True)
