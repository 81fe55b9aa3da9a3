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


def merge_keywords() -> str:
    """`methods/keywords.py`."""
    rows = {row.name: [row] for row in table(CommonOptions)}
    had: dict[str, list[str]] = {}
    for name in available_methods():
        for row in table(find(name).options):
            rows.setdefault(row.name, []).append(row)
            had.setdefault(row.name, []).append(name)
    told = {name: ", ".join(names) for name, names in had.items()}
    more = ["    #: The same as `rank`, by PEFT's name.", "    svd_rank: int | None"]
    return _file("MergeKeywords", "Options of `samerge.merge`; which methods have one stands beside it.", rows, told, more)


def full_keywords() -> str:
    """`full/full_keywords.py`."""
    rows = {row.name: [row] for row in table(FullOptions)}
    return _file("FullKeywords", "Options of `samerge.merge_full`.", rows, {}, [])


def _file(name: str, what: str, rows: dict[str, list[Option]], told: dict[str, str], more: list[str]) -> str:
    lines = [
        '"""Keyword arguments, typed for editors. Rendered from the option table by tests/options/render_keywords.py."""',
        "",
        "from __future__ import annotations",
        "",
        "from typing import Literal, TypedDict",
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
        annotation = " | ".join(dict.fromkeys(part for row in kinds for part in row.kind.annotation.split(" | ")))
        if option in told:
            lines += textwrap.wrap(f"{told[option]}.", 112, initial_indent="    #: ", subsequent_indent="    #: ")
        lines.append(f"    {option}: {annotation} | None")
    text = "\n".join([*lines, *more]) + "\n"
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check", "--fix", "--quiet", "--select", "I,F,E501"], ["format", "--quiet"]):
        done = subprocess.run([*ruff, *command, "-"], input=text, capture_output=True, text=True, cwd=SOURCE)
        text = done.stdout or text
    return text


if __name__ == "__main__":
    (SOURCE / "methods" / "keywords.py").write_text(merge_keywords())
    (SOURCE / "full" / "full_keywords.py").write_text(full_keywords())
