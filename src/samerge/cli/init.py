"""`samerge init`: a recipe to begin with, every option in it explained."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samerge.cli.console import show_warnings, stderr
from samerge.cli.named_adapter import AdapterSpec, given_adapters
from samerge.cli.shared_options import Adapters, Base, MethodName, Overwrite, Positional
from samerge.errors import OptionError, OutputExistsError

if TYPE_CHECKING:
    from samerge.options.option import Option

_WIDTH = 100
_PROSE: dict[str, Any] = {"initial_indent": "## ", "subsequent_indent": "## "}


def init(
    *,
    one: Positional = None,
    adapter: Adapters = None,
    base: Base = None,
    method: MethodName = None,
    out: Annotated[
        str, typer.Option("--out", "--output", "-o", metavar="FILE", help="The recipe to write.")
    ] = "recipe.yaml",
    overwrite: Overwrite = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes instead, for editors; write nothing.")
    ] = False,
) -> None:
    """Write a recipe for `samerge run`: the adapters, and every option with what it means, to be filled in.

        samerge init ada/math-lora code=./code-lora:0.8 --base meta-llama/Llama-3.1-8B --out recipe.yaml

        samerge run recipe.yaml

    The adapters are not opened. Options stand in it as comments, with their defaults.

    A configuration of mergekit that merges adapters of one base becomes the recipe of the same merge:

        samerge init mergekit.yaml --out recipe.yaml

    An editor that knows JSON Schema completes and checks recipes whose first line names this file:

        samerge init --schema > recipe.schema.json
    """
    if schema:
        from samerge.cli.console import show_json
        from samerge.cli.recipe_schema import recipe_schema

        show_json(recipe_schema())
        return
    from samerge.adapters.atomic import atomic_file
    from samerge.cli.recipe import parse_recipe

    if one and not adapter and len(one) == 1 and one[0].endswith((".yaml", ".yml")):
        text = _converted(one[0], base, method)
    else:
        text = recipe_text(given_adapters(one, adapter), base, method)
    parse_recipe(text, out)
    try:
        with atomic_file(out, overwrite) as file:
            file.write_text(text, encoding="utf-8")
    except OutputExistsError:
        raise
    except OSError as error:
        raise OptionError(f"writing {out}: {error.strerror}") from error
    stderr().print(f"saved in {out}; next: samerge run {out}", markup=False)


def _converted(file: str, base: str | None, method: str | None) -> str:
    """The recipe of the merge that a configuration of mergekit asks for; what is given here wins."""
    from samerge.cli.recipe import read_recipe

    found = read_recipe(file, {key: value for key, value in (("base", base), ("method", method)) if value})
    if found.target.out or not isinstance(found.weights, Mapping):
        raise OptionError(f"{file} is a recipe already; samerge run {file} makes its merge")
    show_warnings(found.notes)
    adapters = [replace(one, weight=found.weights[one.name]) for one in found.adapters]
    return recipe_text(adapters, found.base, found.method, found.options)


def recipe_text(
    adapters: Sequence[AdapterSpec],
    base: str | None = None,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """A recipe, commented.

    Args:
        adapters: what it merges.
        base: the base model.
        method: of the merge; the default by default.
        options: values that it shall have; the others stand as comments.

    Raises:
        OptionError: there is no such method.
    """
    from samerge.merging.plan import DEFAULT_METHOD
    from samerge.methods.registry import find, summaries
    from samerge.options.common import CommonOptions
    from samerge.options.option import table

    name = method or DEFAULT_METHOD
    chosen = find(name)
    lines = [
        "## A merge of LoRA adapters; `samerge run FILE` makes it. Paths are taken from the current folder.",
        "## To set an option, take the # from its line. For an editor that completes and checks: run",
        "## samerge init --schema > recipe.schema.json, and let the first line of this file be",
        "## # yaml-language-server: $schema=recipe.schema.json",
        "",
        f"base: {_yaml(base)}" if base else "# base: meta-llama/Llama-3.1-8B",
        "",
        "## A weight is an adapter's strength: 1 full, 0.5 half, negative subtracts.",
        "adapters:",
    ]
    for one in adapters:
        lines += [
            f"  - name: {_yaml(one.name)}",
            f"    source: {_yaml(one.source)}",
            f"    weight: {_weight(one.weight)}",
        ]
    lines += ["", "out: merged/", "# push_to_hub: user/name", ""]
    lines += textwrap.wrap(f"{chosen.name}: {summaries()[chosen.name]}", _WIDTH, **_PROSE)
    lines += [f"method: {name}"]
    for title, kind in ((f"Of {chosen.name}", chosen.options), ("Of any method", CommonOptions)):
        rows = table(kind)
        lines += ["", f"## {title}:"] if rows else []
        for row in rows:
            lines += _lines(row, (options or {}).get(row.name))
    return "\n".join(lines) + "\n"


def _lines(row: Option, value: Any) -> Iterator[str]:
    yield ""
    told = f" (default: {row.told})" if row.told else ""
    yield from textwrap.wrap(f"{row.help}{told}", _WIDTH, **_PROSE)
    shown = row.default if row.default is not None else row.kind.metavar
    if value is None:
        yield f"# {row.name}: {_yaml(shown) if not isinstance(shown, str) else shown}"
    else:
        yield f"{row.name}: {_yaml(value)}"


def _weight(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _yaml(value: Any) -> str:
    """A value as YAML has it; JSON's text is YAML's."""
    return json.dumps(value, ensure_ascii=False)
