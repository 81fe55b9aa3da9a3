from __future__ import annotations

from typing import Annotated, get_args

from samerge.cli.spread import _hints


def test_what_stands_in_annotated_is_found_where_python_wraps_it() -> None:
    """Python 3.10 makes `Annotated[...] | None` of the annotation of a parameter whose default is None."""

    def command(one: Annotated[int | None, "told"] | None = None, two: Annotated[str, "said"] = "") -> None: ...

    found = _hints(command)
    assert get_args(found["one"]) == (int | None, "told")
    assert get_args(found["two"]) == (str, "said")
