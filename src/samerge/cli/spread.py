"""Commands whose parameters are made from dataclasses: the option tables, and groups that several commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from samerge.options.option import Option, Options, table

#: Options with a short form; the same in all commands.
_SHORT = {"rank": "-r", "energy": "-e"}


@dataclass(frozen=True)
class FromTable:
    """Marks a command's parameter that takes a mapping: an option of the shell for each row of a table.

    Args:
        kind: the dataclass of options.
        only: the rows; all of them by default.
        told: what to say of a row's default here, where that is another than in a merge.
    """

    kind: type[Options]
    only: tuple[str, ...] = ()
    told: tuple[tuple[str, str], ...] = ()

    def rows(self) -> list[Option]:
        """The rows."""
        own = dict(self.told)
        rows = [row for row in table(self.kind) if not self.only or row.name in self.only]
        return [replace(row, told=own.get(row.name, row.told)) for row in rows]


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which every parameter that is a dataclass, or `FromTable`, is spread out into options of the shell.

    What the user gave for rows of a table comes as a mapping of text, which the table reads.
    """
    hints = _hints(command)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}

    def add(name: str, annotation: Any, default: Any) -> None:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))

    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        marks = [mark for mark in get_args(hint)[1:] if isinstance(mark, FromTable)]
        if marks:
            rows = marks[0].rows()
            groups[parameter.name] = (_given, [row.name for row in rows])
            for row in rows:
                add(row.name, _annotation(row), None)
        elif is_dataclass(hint) and isinstance(hint, type):
            inner = _hints(hint)
            groups[parameter.name] = (hint, list(inner))
            for item in fields(hint):
                add(item.name, inner[item.name], inspect.Parameter.empty if item.default is MISSING else item.default)
        else:
            add(parameter.name, hint, parameter.default)

    def run(**given: Any) -> None:
        for name, (make, names) in groups.items():
            given[name] = make(**{each: given.pop(each) for each in names})
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _hints(of: Any) -> dict[str, Any]:
    """The annotations of a function or a class, with what stands in `Annotated`."""
    found = get_type_hints(of, include_extras=True)
    for name, hint in found.items():  # Python 3.10 wraps those of parameters whose default is None in one more `| None`
        marked = [one for one in get_args(hint) if get_origin(one) is Annotated]
        found[name] = marked[0] if marked else hint
    return found


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _annotation(row: Option) -> Any:
    """The option of the shell for a row of the table; its value is read by the table."""
    flag = "--" + (row.kind.flag or row.name.replace("_", "-"))
    told = f"{row.help} Default: {default_of(row)}."
    if row.kind.annotation == "bool":
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=told)]
    names = [flag, *([_SHORT[row.name]] if row.name in _SHORT else [])]
    if row.kind.many:
        return Annotated[list[str] | None, typer.Option(*names, metavar=row.kind.metavar, help=told)]
    offered = completion(*row.kind.choices) if row.kind.choices else None
    return Annotated[str | None, typer.Option(*names, metavar=row.kind.metavar, help=told, autocompletion=offered)]


def default_of(row: Option) -> str:
    """What to say of a row's default."""
    if row.told:
        return row.told
    if isinstance(row.default, bool):  # 1 equals True
        return "yes" if row.default else "no"
    return "none" if row.default is None else str(row.default)


def completion(*words: str) -> Callable[[str], list[str]]:
    """What a shell offers: those of the words that begin as what was typed."""

    def offered(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return offered


def methods_offered(incomplete: str) -> list[str]:
    """The methods that a shell offers."""
    from samerge.methods.registry import available_methods

    return [name for name in available_methods() if name.startswith(incomplete)]
