"""`samerge methods`: the registry, and what one method is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from samerge.cli.console import show_json, stdout
from samerge.cli.shared_options import Json
from samerge.cli.spread import default_of, methods_offered

if TYPE_CHECKING:
    from samerge.methods.method import Method


def methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", autocompletion=methods_offered, help="What it does, and its own options."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the merge methods; of one, its formula and the options that it alone has.

    samerge methods ties
    """
    from samerge.report.facts import Column, Facts

    if name is not None:
        _one(name, as_json)
        return
    from samerge.methods.registry import summaries

    found = summaries()
    if as_json:
        show_json([{"name": each, "summary": summary} for each, summary in found.items()])
        return
    columns = (Column("method", name=True), Column("what it does", name=True))
    note = "The first is the default. Of one, more: samerge methods NAME"
    stdout().print(Facts("", columns, list(found.items()), note))


def _one(name: str, as_json: bool) -> None:
    """The formula of a method, which stands over its file, and its options."""
    from inspect import cleandoc

    from samerge.methods.registry import found
    from samerge.options.option import table
    from samerge.report.facts import Column, Facts

    method, implied = found(name)
    rows: list[dict[str, Any]] = [
        {"name": row.name, "values": row.kind.metavar, "default": implied.get(row.name, row.default), "help": row.help}
        for row in table(method.options)
    ]
    if as_json:
        parts = {"name": method.name, "summary": method.summary, "base": method.base, "exact": method.exact}
        show_json({**parts, "scaling": method.scaling, "balance": method.balance, "options": rows})
        return
    console = stdout()
    console.print(cleandoc(_docstring(method.name) or method.summary), markup=False, soft_wrap=True)
    reads = {"needed": "read", "wanted": "read where there is one", "unused": "not read"}[method.base]
    console.print(
        f"\nBase: {reads}. Scaling: {method.scaling}. Balance: {method.balance}. Rank: {_rank(method)}.",
        markup=False,
        soft_wrap=True,
    )
    columns = (Column("option", name=True), Column("values", name=True), Column("default", name=True))
    cells = [
        [f"--{row.name.replace('_', '-')}", row.kind.metavar, str(implied.get(row.name, default_of(row))), row.help]
        for row in table(method.options)
    ]
    if cells:
        console.print(Facts("Options of its own", (*columns, Column("what it is", name=True)), cells))
    else:
        console.print("It has no options of its own.", markup=False)


def _rank(method: Method) -> str:
    """What is to be said of the rank of its merges."""
    from samerge.merging.plan import chooses_by_rank

    if method.exact and not chooses_by_rank(method):
        return "as it comes out, at most the sum of the adapters' ranks, unless --rank says less"
    other = "--rank or --density says" if chooses_by_rank(method) else "--rank says"
    return f"the largest of any adapter, unless {other} otherwise"


def _docstring(name: str) -> str | None:
    """What stands over the file of one of samerge's own methods."""
    from importlib import import_module

    try:
        return import_module(f"samerge.methods.{name.replace('-', '_')}").__doc__
    except ModuleNotFoundError:
        return None
