"""The option table: every option is a field of a frozen dataclass, with its kind and its help, and stands once.

The options that all methods have are `options.common.CommonOptions`; a method's own are a dataclass in the method's
file. Signatures, the command line, recipe files, `compare`, `tune` and the live face are made from these fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from samerge.errors import OptionError
from samerge.options.calibration import Calibration
from samerge.options.kinds import Kind
from samerge.options.module_weights import ModuleWeights

T = TypeVar("T", bound="Options")

_KEY = "samerge"
#: What a record says of a flow graph that the user made.
OWN_GRAPH = "custom graph"


@dataclass(frozen=True)
class Option:
    """A row of the table.

    Args:
        name: of the option.
        kind: what its value may be.
        default: its value where nothing is given.
        help: a sentence or two.
        told: what `--help` says of the default where the value itself does not say it.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    told: str = ""

    def read(self, value: Any) -> Any:
        """The value that the caller means; None is the default, and so is the text "none" where that says nothing else.

        Raises:
            OptionError: it is not of the option's kind.
        """
        if value is None or (self.default is None and value == "none" and "none" not in self.kind.choices):
            return self.default
        return self.kind.read(self.name, value)


def option(kind: Kind, default: Any, help: str, told: str = "") -> Any:
    """A field of an option dataclass.

    Args:
        kind: what its value may be.
        default: its value where nothing is given.
        help: a sentence or two, as `--help` shows it.
        told: what `--help` says of the default where the value itself does not say it.
    """
    return field(default=default, metadata={_KEY: (kind, help, told)})


@dataclass(frozen=True)
class Options:
    """A frozen dataclass of options; a method without any of its own has this one."""

    def __post_init__(self) -> None:
        for row in table(type(self)):
            object.__setattr__(self, row.name, row.read(getattr(self, row.name)))
        self.check()

    def check(self) -> None:
        """Refuse values that do not go together.

        Raises:
            OptionError: says which, and what to do.
        """

    def record(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return {row.name: _plain(getattr(self, row.name)) for row in table(type(self))}


def table(kind: type[Options]) -> tuple[Option, ...]:
    """The rows of an option dataclass, in order.

    Example:
        >>> from samerge.options.common import CommonOptions
        >>> [row.name for row in table(CommonOptions)][:3]
        ['rank', 'scaling', 'balance']
    """
    return tuple(_row(item) for item in fields(kind) if _KEY in item.metadata)


def filled(kind: type[T], given: Mapping[str, Any]) -> T:
    """The options with what was given filled in; None means not given."""
    return kind(**{name: value for name, value in given.items() if value is not None})


def unknown(name: str, known: Iterable[str], where: str) -> OptionError:
    """The error for an option that there is not, with the one that was probably meant.

    Args:
        name: as it was given.
        known: the options that there are.
        where: what has none of that name, such as "method 'ties'".

    Example:
        >>> print(unknown("densitty", ["density", "rank"], "method 'ties'"))
        method 'ties' has no option 'densitty'; did you mean 'density'? It has density, rank
    """
    names = list(known)
    return OptionError(f"{where} has no option {name!r}{meant(name, names)} It has {', '.join(names) or 'none'}")


def meant(name: str, known: Iterable[str]) -> str:
    """The near miss as a question, which ends a sentence; without one its full stop. Capitals count for nothing.

    Example:
        >>> meant("dare_tie", ["dare_ties", "ties"]), meant("TIES", ["ties"]), meant("x", ["ties"])
        ("; did you mean 'dare_ties'?", "; did you mean 'ties'?", '.')
    """
    written = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), written, 1)
    return f"; did you mean {written[near[0]]!r}?" if near else "."


def _row(item: Field[Any]) -> Option:
    kind, help_, told = item.metadata[_KEY]
    return Option(item.name, kind, item.default, help_, told)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.plain() if isinstance(value, (ModuleWeights, Calibration)) else OWN_GRAPH
