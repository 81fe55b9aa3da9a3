"""`compare`: the same adapters merged in several ways, and what each way is expected to leave of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from samerge.adapters import Adapter
from samerge.errors import OptionError, SamergeError
from samerge.merging.inputs import AdapterLike, dtype_of, open_adapters, open_base
from samerge.merging.merge_adapters import merge_opened
from samerge.merging.merged_adapter import MergedAdapter
from samerge.methods import entry
from samerge.methods.chain import Chain, Shared, chain
from samerge.methods.parameters import defaults
from samerge.options.merge_options import RECIPES, MergeOptions
from samerge.parallel.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table

#: Options of `merge` that say which links there are, and how to weigh; all others are options of the links.
_LINKS = ("method", "selection", "aggregation", "recipe")
#: Options of `merge` that the links check.
_OPTIONS = (
    *("balance", "rank", "density", "iterations", "refresh", "basis", "spectrum", "scaling", "agreement", "scope"),
    *("connectivity", "residual", "precision", "svd_rank", "dtype", "device", "modules_to_save", "dora"),
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

        `rank`, `norm`, `effective_rank`, `expected_retention` (the mean over the experts), `least` (the expert of whom
        least is left) and `least_retention`, `interference`, `sign_conflict` (of the merge with the experts, the mean),
        `sign_conflict_before` and `sign_conflict_after` (among the experts, and among what pruning left of them, None
        where the way prunes nothing) with `signs_left`, `lost` (the largest share of a layer's energy that a truncation
        lost), and `experts`, what is left of each.
        """
        return [self._row(name) for name in self.names]

    @property
    def note(self) -> str | None:
        """Which ways the expected retention makes too little or too much of beside others; None where it is fair."""
        kinds = {name: _bias(merged) for name, merged in self.merged.items()}
        if len(set(kinds.values())) < 2:
            return None
        told = [
            f"too {how} of {', '.join(name for name, kind in kinds.items() if kind == how)}"
            for how in ("little", "much")
            if how in kinds.values()
        ]
        return f"What is left is an estimate that makes {' and '.join(told)} (docs/diagnostics.md)."

    def table(self) -> Table:
        """One row for each way."""
        from rich.table import Table

        table = Table(title="Ways to merge", title_justify="left", caption=self.note, caption_justify="left")
        table.add_column("way", overflow="fold")
        rows = self.rows()
        pruned = any(row.get("sign_conflict_after") is not None for row in rows)
        columns = ["rank", "norm", "left", "least", "interference", "sign conflicts", "lost to SVD", "seconds"]
        if pruned:
            columns.insert(6, "among adapters, pruned")
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            if "failed" in row:
                table.add_row(row["name"], *[""] * (len(columns) - 1), f"{row['seconds']:.1f}", style="red")
                continue
            least = "" if row["least"] is None else f"{row['least']} {_percent(row['least_retention'])}"
            table.add_row(
                row["name"],
                str(row["rank"]),
                f"{row['norm']:.3g}",
                _percent(row["expected_retention"]),
                least,
                "" if row["interference"] is None else f"{row['interference']:.2f}",
                _percent(row["sign_conflict"]),
                *([_change(row["sign_conflict_before"], row["sign_conflict_after"])] if pruned else []),
                _percent(row["lost"]),
                f"{row['seconds']:.1f}",
            )
        return table

    def picture(self, path: str | Path) -> Path:
        """Draw what each way is expected to leave of each adapter, as bars.

        Args:
            path: the file to write; its ending says the kind (png, svg, pdf).

        Returns:
            The file.

        Raises:
            OptionError: matplotlib is not installed, the ending is none that it knows, or no merge succeeded.
        """
        from samerge.report.picture import grouped_bars

        rows = {row["name"]: row["experts"] for row in self.rows() if "failed" not in row}
        if not rows:
            raise OptionError(f"drawing {path}: no merge succeeded, so there is nothing to draw")
        adapters = list(dict.fromkeys(name for experts in rows.values() for name in experts))
        title = "Expected to be left of each adapter"
        return grouped_bars(path, rows, adapters, title, "expected retention", note=self.note)

    def _row(self, name: str) -> dict[str, Any]:
        told: dict[str, Any] = {"name": name, "seconds": self.seconds[name]}
        if name in self.failed:
            return {**told, "failed": self.failed[name]}
        report = self.merged[name].report
        found = report.diagnostics
        assert found is not None
        experts, least = found["experts"], found["least"]
        conflicts = [row["sign_conflict"] for row in experts.values() if row["sign_conflict"] is not None]
        return {
            **told,
            "rank": report.record["output"]["rank"],
            **{key: found[key] for key in ("norm", "effective_rank", "expected_retention", "interference", "least")},
            "least_retention": None if least is None else experts[least]["expected_retention"],
            "sign_conflict": sum(conflicts) / len(conflicts) if conflicts else None,
            "sign_conflict_before": found["sign_conflict"],
            **{key: found[key] for key in ("sign_conflict_after", "signs_left")},
            "lost": max(layer["lost"] for layer in report.record["layers"].values()),
            "experts": {expert: row["expected_retention"] for expert, row in experts.items()},
        }


def compare(
    base: str | Path | nn.Module | None,
    adapters: Mapping[str, AdapterLike] | Sequence[AdapterLike],
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    weights: Mapping[str, float] | Sequence[float] | str | None = None,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Comparison:
    """Merge the same adapters in several ways and compare, without data, what each leaves of them.

    Base and adapters are opened once, the adapters' factors are read once, DoRA adapters are converted once, and ways
    that select alike share the scoring, which is what reads the base. A way that fails does not keep the others from
    being merged.

    Args:
        base: as for `merge`; None where no way reads it.
        adapters: as for `merge`.
        methods: the ways. Each is "name" or "name:option=value,option=value", with the name of a method or recipe and
            options of `merge` or of the method; or a mapping of names of one's own to options of `merge`, {} for its
            default.
        weights: as for `merge`, for all ways; a way may have its own.
        options: options of `merge` for all ways, such as `dtype` or `modules_to_save`; a way's own win.
        progress: show progress bars when on a terminal.

    Returns:
        The merges, by way, with `.table()` and `.picture(path)`.

    Raises:
        OptionError: no way, one twice, or one that cannot be read.
        SamergeError: adapters or base cannot be read.

    Example:
        ```python
        found = samerge.compare(None, ["./math", "./code"], ["even", "linear:scaling=0.5", "tsv:scaling=0.7"])
        found.merged["tsv:scaling=0.7"].save("merged/")
        ```
    """
    ways = _ways(methods, options or {})
    bars = Progress(progress)
    with bars.task("reading", 1):
        experts = [_read_once(adapter) for adapter in open_adapters(base, adapters)]
        source = open_base(base, required=False)
    shared = Shared()
    merged: dict[str, MergedAdapter] = {}
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for number, (name, way) in enumerate(ways.items(), 1):
        start = time.perf_counter()
        bars = Progress(progress, f"{number}/{len(ways)} {name}")
        try:
            own = dict(way)
            weighing = own.pop("weights", weights)
            links, chosen = planned(own, weighing)
            if source is None and links.needs_base:
                open_base(None, required=True)
            merged[name] = merge_opened(experts, source, base, weighing, links, chosen, bars, shared)
        except SamergeError as error:
            failed[name] = str(error)
        seconds[name] = time.perf_counter() - start
    return Comparison(tuple(ways), merged, failed, seconds)


def parse_way(text: str) -> dict[str, Any]:
    """The options of `merge` that "name:option=value,option=value" means.

    Args:
        text: the name of a method or of a recipe, and options of `merge` or of the method itself.

    Raises:
        OptionError: the name is not known, or an option is not NAME=VALUE or given twice.

    Example:
        >>> parse_way("tsv:scaling=0.7"), parse_way("paper"), parse_way("wudi:mu=0.1")
        ({'method': 'tsv', 'scaling': 0.7}, {'recipe': 'paper'}, {'method': 'wudi', 'method_options': {'mu': '0.1'}})
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    found: dict[str, Any] = {"recipe": name} if name in RECIPES else {"method": name}
    own: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = key.replace("-", "_")
        if not key or not equals or not value or key in found or key in own:
            raise OptionError(
                f"reading {text!r}: {part!r} must be OPTION=VALUE, each option once, as in tsv:scaling=0.7"
            )
        if key in (*_LINKS, *_OPTIONS, "weights"):
            found[key] = _value(key, value)
        else:
            own[key] = value
    if "method" in found:
        line = entry(found["method"])
        if own and line.parameters is None:
            raise OptionError(f"reading {text!r}: method={name!r} has no option {next(iter(own))!r}; leave it out")
        known = {} if line.parameters is None else defaults(line.parameters)
        for key in own:
            if key not in known:
                raise OptionError(f"reading {text!r}: no option {key!r}; {name} has {', '.join(known)} of its own")
    return {**found, "method_options": own} if own else found


def _ways(methods: Sequence[str] | Mapping[str, Mapping[str, Any]], common: Mapping[str, Any]) -> dict[str, Any]:
    """The options of each way by its name, all known."""
    if isinstance(methods, str):
        raise OptionError(f"methods={methods!r} is a single one; give a list or a mapping")
    names = list(methods)
    double = sorted({name for name in names if names.count(name) > 1})
    if not names or double:
        raise OptionError(
            f"the way {double[0]!r} is given more than once" if double else "methods is empty; give at least one"
        )
    ways = dict(methods) if isinstance(methods, Mapping) else {name: parse_way(name) for name in names}
    for name, way in ways.items():
        for key in {**common, **way}:
            if key not in (*_LINKS, *_OPTIONS, "weights", "method_options"):
                raise OptionError(f"way {name!r}: merge has no option {key!r}")
    return {name: {**common, **way} for name, way in ways.items()}


def _bias(merged: MergedAdapter) -> str | None:
    """How the expected retention misjudges a merge (docs/diagnostics.md): "little", "much", or None."""
    options = merged.report.record["options"]
    if options["spectrum"] == "flat" or options["aggregation"] == "iso-c":
        return "little"
    return "much" if options["aggregation"] == "wudi" else None


def planned(way: Mapping[str, Any], weights: Any) -> tuple[Chain, MergeOptions]:
    """What a merge with some options will do, before anything is read.

    Args:
        way: options of `merge`, by name.
        weights: as `merge` takes them.

    Raises:
        OptionError: one is not known, is out of its range, or does not go with another.
    """
    links = chain(*(way.get(name) for name in _LINKS))
    given = {name: way.get(name) for name in _OPTIONS}
    given["dtype"] = dtype_of(given["dtype"])
    measured = isinstance(weights, str) and weights == "auto"
    return links, links.options(given, way.get("method_options"), measured=measured)


def _read_once(adapter: Adapter) -> Adapter:
    """The adapter with factors that are kept once they have been read."""
    return replace(
        adapter,
        modules={name: replace(module, load=cache(module.load)) for name, module in adapter.modules.items()},
    )


def _value(key: str, text: str) -> Any:
    """An option's value from text, by its name: a truth, a whole number, a number, or the word as it is."""
    if key == "residual":
        truths = {"true": True, "false": False}
        if text.lower() not in truths:
            raise OptionError(f"residual={text!r} must be true or false")
        return truths[text.lower()]
    if key in ("rank", "iterations", "refresh", "svd_rank"):
        try:
            return int(text)
        except ValueError:
            raise OptionError(f"{key}={text!r} must be a whole number") from None
    if key in ("density", "scaling"):
        try:
            return float(text)
        except ValueError:
            return text
    return text


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before:.1%} to {after:.1%}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
