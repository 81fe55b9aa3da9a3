"""The method that a visitor chose, and what is said of it."""

from __future__ import annotations

from samerge.merging.plan import DEFAULT_METHOD, WITHOUT_BASE
from samerge.methods.method import Method
from samerge.methods.registry import available_methods, find, summaries
from samerge.options.option import table

#: What stands for naming none: then another method steps in where there is no base.
DEFAULT = ""


def offered() -> list[tuple[str, str]]:
    """The methods to choose from: what to show, and what stands for it."""
    first = f"default ({DEFAULT_METHOD}; without a base {WITHOUT_BASE})"
    return [(first, DEFAULT), *((name, name) for name in available_methods())]


def named(choice: str) -> str | None:
    """What `samerge.merge` takes as the method."""
    return choice or None


def summary_of(choice: str) -> str:
    """A sentence on what it does, and whether it reads the base."""
    method = _method(choice)
    reads = {"needed": "reads the base", "wanted": "reads the base where there is one", "unused": "reads no base"}
    told = summaries()[method.name]
    return f"{told[:1].upper()}{told[1:]}. It {reads[method.base]}."


def density_of(choice: str) -> str:
    """What density means to it; nothing where it has none."""
    found = [row for row in table(_method(choice).options) if row.name == "density"]
    return f"{found[0].help} Empty: {found[0].told or found[0].default or 'not used'}." if found else ""


def _method(choice: str) -> Method:
    return find(choice or DEFAULT_METHOD)
