"""The merge's record: what went in, what was kept and lost, how long it took. `samerge.json` is this, as JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samerge.errors import AdapterError, OptionError
from samerge.report.sinks import console
from samerge.weights.untrusted import MOST_RECORD_BYTES, Origin, read_json

if TYPE_CHECKING:
    from rich.table import Table

RECORD_NAME = "samerge.json"
#: Losses by truncation above this share of a layer's energy are in the table's caption.
_TOLD_LOSS = 0.005

#: Diagnostics that the table shows, and what they are called there.
_FIGURES = {
    "expected_retention": "expected to be left",
    "cosine": "cosine",
    "interference": "interference",
    "sign_conflict": "sign conflicts",
}


@dataclass(frozen=True)
class Report:
    """What a merge did.

    Args:
        record: plain JSON values: `inputs` (with sha256), `options`, `versions`, `output`, `layers` (for each module
            and expert the kept components and the energy kept, the scale, the energy lost by truncation, the figures
            of docs/diagnostics.md), `diagnostics` of the whole, `log_connectivity`, `timings` in seconds, `warnings`.
    """

    record: Mapping[str, Any]

    @property
    def warnings(self) -> list[str]:
        """What the user should know."""
        return list(self.record["warnings"])

    @property
    def diagnostics(self) -> Mapping[str, Any] | None:
        """How the merge compares with each expert, from the weights alone; None where there is nothing to compare.

        `expected_retention` (the mean), `least`, `interference`, `sign_conflict`, `sign_conflict_after`, `signs_left`,
        `norm`, `effective_rank`, and `experts`; what they mean is in docs/diagnostics.md. Records of older versions
        have none, and those that say why they have none hold `diagnostics.absent`.
        """
        found = self.record.get("diagnostics") or {}
        return None if not found or "absent" in found else found

    @property
    def expected_retention(self) -> float | None:
        """What share of the experts' work is expected to be left, 0 to 1, on the mean; None without diagnostics."""
        return None if self.diagnostics is None else self.diagnostics["expected_retention"]

    @property
    def pruned_conflict(self) -> str | None:
        """In words, the sign conflicts among the experts before and after pruning; None where nothing was pruned."""
        found = self.diagnostics or {}
        before, after = found.get("sign_conflict"), found.get("sign_conflict_after")
        if before is None or after is None:
            return None
        left = f"{found['signs_left']:.1%} of the pairs of signs are left"
        return f"{before:.1%} before pruning, {after:.1%} after it; {left}"

    def picture(self, path: str | Path) -> Path:
        """Draw the sign conflicts among the experts, before and after pruning, block by block of the model, as bars.

        Args:
            path: the file to write; its ending says the kind (png, svg, pdf).

        Returns:
            The file.

        Raises:
            OptionError: matplotlib is not installed, the ending is none that it knows, or the record has no such
                figures, as those of one adapter.
        """
        from samerge.report.by_layer import conflicts_by_block
        from samerge.report.picture import grouped_bars

        blocks = conflicts_by_block(self.record["layers"])
        named = {"before pruning": "sign_conflict", "after": "sign_conflict_after"}
        series = {name: {block: row[key] for block, row in blocks.items()} for name, key in named.items()}
        known = {name: row for name, row in series.items() if any(value is not None for value in row.values())}
        if not known:
            raise OptionError(
                f"drawing {path}: this record tells no sign conflicts among its adapters; merge two or more anew"
            )
        return grouped_bars(path, known, list(blocks), "Sign conflicts among the adapters", "share of elements")

    def experts(self) -> list[dict[str, Any]]:
        """For each expert: name, weight, modules, components, kept, mean energy kept (weighted by its energy).

        With diagnostics also these of the expert.

        `elements` is how many elements were kept and of how many, None for methods that keep components.
        """
        rows = []
        diagnosed = self.diagnostics["experts"] if self.diagnostics else {}
        for item in self.record["inputs"]:
            shares = [
                layer["experts"][item["name"]]
                for layer in self.record["layers"].values()
                if item["name"] in layer["experts"]
            ]
            total = sum(share["norm"] ** 2 for share in shares)
            kept = sum(share["energy"] * share["norm"] ** 2 for share in shares)
            selected = [share["kept"] for share in shares]
            elements = [share["elements"] for share in shares if share.get("elements")]
            rows.append(
                {
                    "name": item["name"],
                    "weight": item["weight"],
                    "modules": len(shares),
                    "components": sum(share["components"] for share in shares),
                    "kept": None if any(k is None for k in selected) else sum(len(k) for k in selected),
                    "elements": [sum(pair) for pair in zip(*elements, strict=True)] if elements else None,
                    "energy": kept / total if total else 1.0,
                    "log_connectivity": self.record["log_connectivity"].get(item["name"]),
                    **(diagnosed.get(item["name"]) or {}),
                }
            )
        return rows

    def table(self) -> Table:
        """The experts as a rich table."""
        from rich.table import Table

        output = self.record["output"]
        size = f"{output['tensors']} tensors" if output.get("kind") == "model" else f"rank {output['rank']}"
        name = ", ".join(str(self.record[key]) for key in ("recipe", "method") if self.record.get(key))
        table = Table(title=f"{name}: {size}, {output['modules']} modules, {output['dtype']}")
        lost = [layer.get("lost") or 0.0 for layer in self.record["layers"].values()]
        notes = []
        if max(lost, default=0.0) > _TOLD_LOSS:
            mean = sum(lost) / len(lost)
            notes.append(f"the truncation lost {mean:.0%} of a layer's energy on the mean, {max(lost):.0%} at most")
        if self.pruned_conflict:
            notes.append(f"sign conflicts among the adapters: {self.pruned_conflict}")
        if notes:
            table.caption, table.caption_justify = "\n".join(notes), "left"
        rows = self.experts()
        what = "elements kept" if any(row["elements"] for row in rows) else "components kept"
        for column in (
            "adapter",
            "weight",
            "modules",
            what,
            "energy kept",
            "log R",
            *(_FIGURES.values() if self.diagnostics else ()),
        ):
            table.add_column(column, justify="left" if column == "adapter" else "right")
        for row in rows:
            kept = "all" if row["kept"] is None else str(row["kept"])
            share = f"{kept} of {row['components']}"
            if row["elements"]:
                share = f"{row['elements'][0] / max(1, row['elements'][1]):.1%}"
            flow = row["log_connectivity"]
            table.add_row(
                row["name"],
                f"{row['weight']:g}",
                str(row["modules"]),
                share,
                f"{row['energy']:.1%}",
                "" if flow is None else f"{flow:.2f}",
                *((_two(row.get(key)) for key in _FIGURES) if self.diagnostics else ()),
            )
        return table

    def show(self) -> None:
        """Print the table and the warnings."""
        out = console()
        out.print(self.table())
        for warning in self.warnings:
            out.print(f"warning: {warning}", style="yellow", markup=False)

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        from io import StringIO

        out = console(record=True, width=110, file=StringIO())
        out.print(self.table())
        return out.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def read_report(folder: str | Path) -> Report:
    """The report of a merged adapter from its folder.

    Raises:
        AdapterError: the folder has no readable record.
    """
    path = Path(folder) / RECORD_NAME
    if not os.path.lexists(path):
        raise AdapterError(f"there is no {RECORD_NAME} in {folder}; was this adapter merged by samerge?")
    origin = Origin(f"reading the record of {folder}", AdapterError)
    record = read_json(path, origin, MOST_RECORD_BYTES)
    return Report(record)
