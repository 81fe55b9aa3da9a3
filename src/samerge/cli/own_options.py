"""Options that a method alone has: known once the method is, so that `--help` needs no method's module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from samerge.errors import OptionError
from samerge.options.option import Option, meant

#: For commands that take them.
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def own_options(ctx: typer.Context, method: str | None) -> dict[str, str]:
    """The options that the command itself did not know, by name, as text.

    Args:
        ctx: of the command, with what is left of its words.
        method: whose options they are; None for the default.

    Raises:
        OptionError: the method has none of that name; says which was probably meant.
    """
    words = list(ctx.args)
    if not words:
        return {}
    from samerge.merging.plan import DEFAULT_METHOD
    from samerge.methods.registry import available_methods, find
    from samerge.options.option import table

    chosen = find(DEFAULT_METHOD if method is None else method)
    rows = {row.name: row for row in table(chosen.options)}
    known = {f"--{name.replace('_', '-')}" for name in rows}
    shell = {flag for parameter in ctx.command.params for flag in parameter.opts if flag.startswith("--")}
    found: dict[str, str] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            raise OptionError(f"{word!r} stands alone; an adapter is given with --adapter {word}")
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if _negated(name, rows):
            name, equals, value = name.removeprefix("no_"), "=", "false"
        elif name not in rows and name != "svd_rank":
            others = [
                other for other in available_methods() if name in {row.name for row in table(find(other).options)}
            ]
            near = f"; it is one of {', '.join(others)}." if others else meant(flag, [*known, *shell]).replace("'", "")
            raise OptionError(
                f"there is no option {flag}{near} Method {chosen.name} has {', '.join(sorted(known)) or 'none'} of "
                f"its own; what all have: samerge {ctx.command.name} --help"
            )
        elif not equals and rows.get(name) and rows[name].kind.annotation == "bool" and not _truth(words):
            value = "true"
        elif not equals:
            if not words:
                raise OptionError(f"{flag} needs a value: {rows[name].kind.metavar if name in rows else 'N'}")
            value = words.pop(0)
        if name in found:
            raise OptionError(f"{flag} is given twice; give it once")
        found[name] = value
    return found


def _negated(name: str, rows: Mapping[str, Option]) -> bool:
    row = rows.get(name.removeprefix("no_")) if name.startswith("no_") else None
    return row is not None and row.kind.annotation == "bool"


def _truth(words: list[str]) -> Any:
    """Whether the next word is the value of a flag."""
    return words and words[0].lower() in ("true", "false", "yes", "no", "on", "off", "1", "0")
