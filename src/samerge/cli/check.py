"""`samerge check`: what adapters contain, whether they can be merged, and by whom they can be served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from samerge.cli.console import show_json, stdout
from samerge.cli.exit_codes import BAD_INPUT
from samerge.cli.shared_options import Adapters, Base, Json, Positional, Token
from samerge.cli.shell_words import in_shell_words, option_names
from samerge.errors import SamergeError

if TYPE_CHECKING:
    from rich.text import Text

    from samerge.merging.checking import AdapterReport
    from samerge.weights import WeightSource


def check(
    one: Positional = None,
    adapter: Adapters = None,
    base: Base = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Say for each adapter what it contains, whether it can be merged, and whether common servers can serve it.

    Nothing is merged. With --base also whether it fits this model. The exit code is 0 only if every adapter can be
    merged as it is, and 2 otherwise.
    """
    from samerge.cli.named_adapter import given_adapters

    specs = given_adapters(one, adapter)
    from samerge.merging.inputs import open_base

    opened = open_base(base, required=False)
    reports = [_checked(spec.source, spec.name, opened) for spec in specs]
    if as_json:
        show_json([report.to_dict() for report in reports])
    else:
        console = stdout()
        for number, report in enumerate(reports):
            if number:
                console.print()
            console.print(_told(report), soft_wrap=True)
    if not all(report.mergeable for report in reports):
        raise typer.Exit(BAD_INPUT)


def _checked(source: str, name: str, base: WeightSource | None) -> AdapterReport:
    """What is found of an adapter; that it cannot be had is a finding, too, and the others are looked at."""
    from samerge.merging.checking import AdapterReport, check_adapter

    try:
        return check_adapter(source, base, name)
    except SamergeError as error:
        return AdapterReport(name, source, problems=(str(error),))


def _told(report: AdapterReport) -> Text:
    """A report as lines: a word, and what is to be said."""
    from rich.text import Text

    from samerge.adapters.servers import VERSIONS

    lines: list[tuple[str, str, str]] = [("", report.name, "bold")]
    if report.source != report.name:
        lines.append(("source", report.source, ""))
    lines += [("contains", line, "") for line in report.contents()]
    if report.mergeable:
        lines.append(("merge", "yes", "green"))
    names = option_names() | {"base"}  # of a merge, which the line is about
    lines += [("merge", f"no: {in_shell_words(problem, names)}", "red") for problem in report.problems]
    for server, reasons in (report.serving or {}).items():
        read = f"({VERSIONS[server]})"
        lines += [(server, f"no: {reason} {read}", "yellow") for reason in reasons] or [
            (server, f"yes {read}", "green")
        ]
    lines += [("note", in_shell_words(note, names), "") for note in report.notes]
    text = Text()
    before = ""
    for word, said, style in lines:
        label = "" if word == before else word
        text.append(f"  {label:<10}" if word else "").append(f"{said}\n", style=style)
        before = word
    text.rstrip()
    return text
