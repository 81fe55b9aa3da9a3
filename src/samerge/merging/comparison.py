"""`compare`: the same adapters merged in several ways, and what can be measured of each merge without data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samerge.errors import OptionError, SamergeError
from samerge.merging.inputs import AdapterLike, BaseLike
from samerge.merging.merged_adapter import MergedAdapter
from samerge.merging.plan import Plan, Weights, plan
from samerge.merging.same_inputs import SameInputs
from samerge.parallel.progress import Progress
from samerge.report.facts import Column, Facts, number
from samerge.report.picture import Heat

_COLUMNS = (
    Column("way", name=True),
    Column("rank", "of the merged adapter."),
    Column("norm", "of the whole merged update (Frobenius)."),
    Column("cosine", "between the merged update and an adapter's own, the mean over the adapters; 1 is the same way."),
    Column("best cosine", "the largest mean cosine that any update of this rank can have."),
    Column("least cosine", "the same of the adapter for which it is least.", name=True),
    Column("inter\u00adference", "what the merge does on an adapter's inputs beside it, relative to it; the mean."),
    Column("energy lost", "to truncation, in the layer that lost most."),
    Column("seconds", "that the merge took; what it has in common with one before is not in it."),
)
_TITLE = "The merged update beside each adapter's own"
_HOW_TO_READ = (
    "1: the merge goes the adapter's own way; 0: they have nothing in common. A taller bar is no promise of a better "
    "answer: measure on your task."
)


@dataclass(frozen=True)
class Comparison:
    """Several merges of the same adapters.

    Args:
        names: the ways to merge, as they were named, in order.
        merged: the merge of each that succeeded.
        failed: why the others did not.
        seconds: how long each took; what it took from one before it is not in it.
    """

    names: tuple[str, ...]
    merged: Mapping[str, MergedAdapter] = field(repr=False)
    failed: Mapping[str, str]
    seconds: Mapping[str, float]

    def rows(self) -> list[dict[str, Any]]:
        """For each way: `name`, `seconds`, and either `failed`, or these.

        `rank`, `norm`, `cosine` (of the merge with the adapters, the mean), `best_cosine` (the largest that any update
        of this rank can have), `least` (the adapter with the least), `least_cosine`, `interference` (the mean), `lost`
        (the largest share of a layer's energy that a truncation lost), and `cosines`, by adapter. None is what does
        not exist, as the cosine with an adapter that is zero.
        """
        return [self._row(name) for name in self.names]

    def table(self) -> Facts:
        """One row for each way, for `rich.print` or a notebook."""
        cells = []
        for row in self.rows():
            if "failed" in row:
                cells.append([row["name"], *["failed", *[""] * 6], f"{row['seconds']:.1f}"])
                continue
            cells.append(
                [
                    row["name"],
                    str(row["rank"]),
                    f"{row['norm']:.3g}",
                    number(row["cosine"]),
                    number(row["best_cosine"]),
                    "-" if row["least"] is None else f"{number(row['least_cosine'])} {row['least']}",
                    number(row["interference"]),
                    f"{row['lost']:.0%}",
                    f"{row['seconds']:.1f}",
                ]
            )
        return Facts("Ways to merge", _COLUMNS, cells)

    def _repr_html_(self) -> str:
        """The table, and each way's cosines, for notebooks."""
        from samerge.report.page.frame import Section, fragment_of
        from samerge.report.page.pieces import heat_map

        found = self.heat()
        maps = [] if found is None else [Section("cosines", "Who goes whose way", heat_map(found, "way"))]
        return fragment_of(self.table().html(), maps)

    def heat(self) -> Heat | None:
        """The cosine of each way's merge with each adapter; None where no merge succeeded."""
        rows, adapters = self._cosines()
        values = [[cosines.get(name) for name in adapters] for cosines in rows.values()]
        most = max((abs(value) for row in values for value in row if value is not None), default=0.0)
        how = f"A row is a way to merge, a column an adapter. {_HOW_TO_READ.replace('A taller bar', 'More')}"
        return Heat(_TITLE, list(rows), adapters, values, -most or -1.0, most or 1.0, how) if rows else None

    def picture(self, path: str | Path) -> Path:
        """Draw the cosine of each way's merge with each adapter, as bars.

        Args:
            path: the file to write; its ending says the kind (png, svg, pdf).

        Returns:
            The file.

        Raises:
            OptionError: matplotlib is not installed, the ending is none that it knows, or no merge succeeded.
        """
        from samerge.report.picture import grouped_bars

        rows, adapters = self._cosines()
        if not rows:
            raise OptionError(f"drawing {path}: no merge succeeded, so there is nothing to draw")
        return grouped_bars(path, rows, adapters, _TITLE, "cosine", _HOW_TO_READ)

    def _cosines(self) -> tuple[dict[str, Mapping[str, float | None]], list[str]]:
        """The cosines of each way that succeeded, and all adapters that have one."""
        rows = {row["name"]: row["cosines"] for row in self.rows() if "failed" not in row}
        return rows, list(dict.fromkeys(name for cosines in rows.values() for name in cosines))

    def _row(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = {"name": name, "seconds": self.seconds[name]}
        if name in self.failed:
            return {**told, "failed": self.failed[name]}
        report = self.merged[name].report
        whole = report.whole
        cosines = {adapter: row.cosine for adapter, row in report.adapters.items() if row.weight}
        known = {adapter: cosine for adapter, cosine in cosines.items() if cosine is not None}
        least = min(known, key=lambda adapter: known[adapter]) if known else None
        return {
            **told,
            "rank": report.record.output.rank,
            "norm": whole.norm,
            "cosine": whole.cosine,
            "best_cosine": whole.best_cosine,
            "least": least,
            "least_cosine": None if least is None else known[least],
            "interference": whole.interference,
            "lost": whole.most_lost,
            "cosines": cosines,
        }


def compare(
    base: BaseLike | None,
    adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike],
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    weights: Weights = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Comparison:
    """Merge the same adapters in several ways and measure each merge, without data.

    Base and adapters are opened once, the adapters' factors are read once, DoRA adapters are converted once. A way that
    fails does not keep the others from being merged.

    Args:
        base: as for `merge`; None where no way reads it.
        adapters: as for `merge`.
        methods: the ways. Each is "method" or "method:option=value,option=value", with options of `merge`; or a mapping
            of names of one's own to keyword arguments of `merge`, {} for its default.
        weights: as for `merge`, for all ways; a way of a mapping may have its own.
        options: options of `merge` for all ways, such as `dtype` or `modules_to_save`; a way's own win.
        progress: show progress bars when on a terminal.

    Returns:
        The merges, by way, with `.table()` and `.picture(path)`.

    Raises:
        OptionError: no way, one twice, or one whose method or options are not right; before anything is read.
        SamergeError: adapters or base cannot be read.

    Example:
        ```python
        found = samerge.compare(None, ["./math", "./code"], ["even", "linear:scaling=0.5", "tsv:scaling=0.7"])
        found.merged["tsv:scaling=0.7"].save("merged/")
        ```
    """
    ways = {name: _plan(name, {**(options or {}), **way}, weights) for name, way in _ways(methods).items()}
    with Progress(progress).task("reading", 1):
        inputs = SameInputs(base, adapters)
    merged: dict[str, MergedAdapter] = {}
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for count, (name, way) in enumerate(ways.items(), 1):
        start = time.perf_counter()
        try:
            merged[name] = inputs.merged(way, Progress(progress, f"{count}/{len(ways)} {name}"))
        except SamergeError as error:
            failed[name] = str(error)
        seconds[name] = time.perf_counter() - start
    return Comparison(tuple(ways), merged, failed, seconds)


def parse_way(text: str) -> dict[str, str]:
    """The keyword arguments of `merge` that "method:option=value,option=value" means, values as text.

    Args:
        text: the name of a method, and options of `merge`.

    Raises:
        OptionError: an option is not OPTION=VALUE, or is given twice.

    Example:
        >>> parse_way("tsv:scaling=0.7,svd-rank=8"), parse_way("even")
        ({'method': 'tsv', 'scaling': '0.7', 'svd_rank': '8'}, {'method': 'even'})
    """
    name, _, rest = text.partition(":")
    found = {"method": name.strip()}
    for part in rest.split(",") if rest else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = key.replace("-", "_")
        if not key or not equals or not value or key in found:
            raise OptionError(
                f"reading {text!r}: {part!r} must be OPTION=VALUE, each option once, as in tsv:scaling=0.7"
            )
        found[key] = value
    return found


def _ways(methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The keyword arguments of each way by its name."""
    if isinstance(methods, str):
        raise OptionError(f"methods={methods!r} is a single one; give a list or a mapping")
    names = list(methods)
    double = sorted({name for name in names if names.count(name) > 1})
    if not names or double:
        raise OptionError(
            f"the way {double[0]!r} is given more than once" if double else "methods is empty; give at least one"
        )
    if isinstance(methods, Mapping):
        return dict(methods)
    return {name: parse_way(name) for name in names}


def _plan(name: str, way: Mapping[str, Any], weights: Weights) -> Plan:
    rest = {option: value for option, value in way.items() if option not in ("method", "weights")}
    try:
        return plan(way.get("method"), rest, way.get("weights", weights))
    except OptionError as error:
        raise OptionError(f"the way {name!r}: {error}") from error
