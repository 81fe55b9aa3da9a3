"""`samerge methods`: the registry."""

from __future__ import annotations

from typing import Any

from samerge.cli.console import show_json, stdout
from samerge.cli.shared_options import Json


def methods(as_json: Json = False) -> None:
    """List the merge methods, whether they read the base model, and their own options."""
    from samerge.methods import REGISTRY
    from samerge.methods.parameters import defaults

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "summary": entry.summary,
            "needs_base": entry.needs_base,
            "options": sorted(entry.uses),
            "method_options": {} if entry.parameters is None else defaults(entry.parameters),
        }
        for name, entry in REGISTRY.items()
    ]
    if as_json:
        show_json(rows)
        return
    from rich.table import Table

    table = Table(show_lines=True)
    for column in ("method", "what it does", "reads the base", "options of its own"):
        table.add_column(column, no_wrap=column == "method")
    for row in rows:
        names = ", ".join(
            [
                *(f"--{option.replace('_', '-')}" for option in row["options"]),
                *(f"--method-option {name}={default}" for name, default in row["method_options"].items()),
            ]
        )
        table.add_row(row["name"], row["summary"], "yes" if row["needs_base"] else "no", names)
    stdout().print(table)
    stdout().print("Without a method: --recipe even, which is tsv of adapters of one norm, its spectrum made flat.")
