"""The keyword arguments of `merge` and `merge_full` as TypedDicts, rendered from the option tables.

`python tests/options/render_keywords.py` writes them anew after an option has changed.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import samerge
from samerge.full.full_options import FullOptions
from samerge.methods.registry import available_methods, find
from samerge.options.common import CommonOptions
from samerge.options.option import Option, table

SOURCE = Path(samerge.__file__).parent
#: Those that are arguments of PEFT's own `add_weighted_adapter`.
PEFTS_OWN = ("density", "majority_sign_method")


def merge_keywords() -> str:
    """`methods/keywords.py`."""
    rows = {row.name: [row] for row in table(CommonOptions)}
    had: dict[str, list[str]] = {}
    for name in available_methods():
        for row in table(find(name).options):
            rows.setdefault(row.name, []).append(row)
            had.setdefault(row.name, []).append(name)
    told = {name: ", ".join(names) for name, names in had.items()}
    live = {name: row for name, row in rows.items() if name not in PEFTS_OWN}
    what = "Options of `samerge.add_weighted_adapter` beside PEFT's own; which methods have one stands beside it."
    own = ["", "", "class MergeKeywords(LiveKeywords, total=False):", '    """Options of `samerge.merge`."""', ""]
    own += [line for name in PEFTS_OWN if name in rows for line in _option(name, rows[name], told)]
    own += ["    #: The same as `rank`, by PEFT's name.", "    svd_rank: int | None"]
    return _file("LiveKeywords", what, live, told, own)


def full_keywords() -> str:
    """`full/full_keywords.py`."""
    rows = {row.name: [row] for row in table(FullOptions)}
    return _file("FullKeywords", "Options of `samerge.merge_full`.", rows, {}, [])


def _option(name: str, kinds: list[Option], told: dict[str, str]) -> list[str]:
    annotation = " | ".join(dict.fromkeys(part for row in kinds for part in row.kind.annotation.split(" | ")))
    which = f"{told[name]}." if name in told else ""
    wrapped = textwrap.wrap(which, 112, initial_indent="    #: ", subsequent_indent="    #: ")
    return [*wrapped, f"    {name}: {annotation} | None"]


def _file(name: str, what: str, rows: dict[str, list[Option]], told: dict[str, str], more: list[str]) -> str:
    lines = [
        '"""Keyword arguments, typed. Rendered from the option table by tests/options/render_keywords.py."""',
        "",
        "from __future__ import annotations",
        "",
        "import os",
        "from collections.abc import Callable, Mapping, Sequence",
        "from typing import Any, Literal, TypedDict",
        "",
        "import torch",
        "",
        "from samerge.graph import FlowGraph",
        "",
        "",
        f"class {name}(TypedDict, total=False):",
        f'    """{what}"""',
        "",
    ]
    for option, kinds in rows.items():
        lines += _option(option, kinds, told)
    text = "\n".join([*lines, *more]) + "\n"
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--fix", "--quiet", "--select", "I,F,E501"], ["format", "--quiet"]):
        done = subprocess.run([*ruff, *command, "-"], input=text, capture_output=True, text=True, cwd=SOURCE)
        text = done.stdout or text
    return text


if __name__ == "__main__":
    (SOURCE / "methods" / "keywords.py").write_text(merge_keywords())
    (SOURCE / "full" / "full_keywords.py").write_text(full_keywords())
