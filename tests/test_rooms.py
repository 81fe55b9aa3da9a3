"""The house: rooms in one order, each importing only from those before it; no circle of files. Lazy imports count."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "samerge"
#: From the foundation up.
ORDER = (
    *("version", "errors", "linalg", "parallel", "graph", "options", "weights", "adapters", "saliency", "methods"),
    *("report", "merging", "full", "ui", "cli"),
)
FILES = sorted(file.relative_to(SOURCE).as_posix() for file in SOURCE.rglob("*.py"))


def files_of(module: str, names: list[str]) -> list[str]:
    """The files that `from module import names` reads."""
    place = SOURCE.joinpath(*module.split(".")[1:])
    found = [file for name in names for file in ((place / name).with_suffix(".py"), place / name / "__init__.py")]
    found = [file for file in found if file.is_file()]
    if len(found) < len(names):
        found += [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
    return [file.relative_to(SOURCE).as_posix() for file in found]


@cache
def imported(path: str) -> tuple[str, ...]:
    """The files of samerge that a file imports, wherever in it; not what only the type checker sees."""
    tree = ast.parse((SOURCE / path).read_text(encoding="utf-8"))
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "samerge":
            found += files_of(node.module or "", [alias.name for alias in node.names])
        if isinstance(node, ast.Import):
            found += [file for a in node.names if a.name.startswith("samerge.") for file in files_of(a.name, [])]
    return tuple(dict.fromkeys(file for file in found if file != path))


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) not in ("__init__", "__main__")])
def test_a_file_imports_from_rooms_before_its_own(path: str) -> None:
    above = ORDER[ORDER.index(room_of(path)) + 1 :]
    back = [other for other in imported(path) if room_of(other) in above]
    assert back == [], f"{path} imports from a room above its own"


def test_no_circle_of_imports() -> None:
    done: set[str] = set()

    def visit(path: str, way: tuple[str, ...]) -> None:
        assert path not in way, " -> ".join((*way[way.index(path) :], path))
        if path not in done:
            for other in imported(path):
                if other != "__init__.py":
                    visit(other, (*way, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


def test_every_room_says_in_one_sentence_what_belongs_in_it() -> None:
    for room in sorted({room_of(path) for path in FILES if "/" in path}):
        told = ast.get_docstring(ast.parse((SOURCE / room / "__init__.py").read_text(encoding="utf-8")))
        assert told, room
        assert told.split("\n\n")[0].rstrip().endswith("."), room


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) != "ui"])
def test_the_page_alone_imports_gradio(path: str) -> None:
    tree = ast.parse((SOURCE / path).read_text(encoding="utf-8"))
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in named if name.split(".")[0] in ("gradio", "gradio_client", "starlette")}
