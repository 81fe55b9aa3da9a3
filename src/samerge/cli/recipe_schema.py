"""The JSON schema of recipe files, made from the option tables: editors complete a recipe by it, and check it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import typer

from samerge.cli.shared_options import Base, MethodName, Weights
from samerge.cli.spread import default_of
from samerge.cli.target import AdapterTarget
from samerge.options.option import Option

_TEXT = {"type": "string", "minLength": 1}
_NUMBER = {"type": "number"}


def recipe_schema(methods: Iterable[str] | None = None) -> dict[str, Any]:
    """The schema, in the draft that editors know best.

    Args:
        methods: the methods that it shall have; by default all that are known here, those of other packages among them.
    """
    from samerge.merging.plan import DEFAULT_METHOD
    from samerge.methods.other_names import OTHER_NAMES
    from samerge.methods.registry import available_methods, find
    from samerge.options.common import CommonOptions
    from samerge.options.option import table

    names = list(available_methods() if methods is None else methods)
    called = {name: [name, *(other for other, (own, _) in OTHER_NAMES.items() if own == name)] for name in names}
    common = [*table(CommonOptions)]
    rank = next(row for row in common if row.name == "rank")
    properties: dict[str, Any] = {
        "base": _TEXT | {"description": _help(Base)},
        "adapters": _adapters(),
        "method": {"enum": [one for each in called.values() for one in each], "description": _help(MethodName)},
        "weights": {"anyOf": [_by_name(_NUMBER), {"type": "array", "items": _NUMBER}, {"const": "nan"}]}
        | {"description": "Instead of a weight in each adapter. " + _help(Weights)},
        **_target(),
        **{row.name: _schema(row) for row in common},
        "svd_rank": _schema(rank) | {"description": "The same as rank, by PEFT's name."},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A recipe of samerge",
        "description": "A merge of LoRA adapters, for `samerge run FILE`.",
        "type": "object",
        "required": ["adapters"],
        "properties": properties,
        "allOf": [
            _branch(called[name], name == DEFAULT_METHOD, table(find(name).options), [*properties]) for name in names
        ],
    }


def _branch(called: list[str], default: bool, own: Iterable[Option], always: list[str]) -> dict[str, Any]:
    """What else a recipe may have whose method is called so."""
    chosen: dict[str, Any] = {"properties": {"method": {"enum": called}}}
    if not default:
        chosen["required"] = ["method"]
    rows = {row.name: _schema(row) for row in own}
    return {"if": chosen, "then": {"properties": rows, "propertyNames": {"enum": [*always, *rows]}}}


def _schema(row: Option) -> dict[str, Any]:
    """Of one option; null is the default."""
    shape: Mapping[str, Any] = row.kind.schema
    told = f"{row.help} Default: {default_of(row)}."
    value = {"description": told} if row.default is None else {"description": told, "default": row.default}
    return {"anyOf": [dict(shape), {"type": "null"}], **value}


def _adapters() -> dict[str, Any]:
    source = _TEXT | {"description": "A folder, a file, or USER/NAME[/FOLDER@REVISION] on the Hub."}
    weight = _NUMBER | {"description": "Its strength: 1 (default) full, 0.5 half; negative subtracts; 0 leaves it out."}
    name = {"description": "What it is called in the report. Default: the last part of its source."}
    entry = {
        "type": "object",
        "properties": {"name": name, "source": source, "model": source, "weight": weight},
        "oneOf": [{"required": ["source"]}, {"required": ["model"]}],
        "additionalProperties": False,
    }
    either = {"anyOf": [source, entry]}
    listed = {"type": "array", "minItems": 1, "items": either}
    return {"description": "What to merge.", "anyOf": [listed, {"minProperties": 1, **_by_name(either)}]}


def _by_name(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": dict(value)}


def _target() -> dict[str, Any]:
    """Where the result goes."""
    hints = get_type_hints(AdapterTarget, include_extras=True)
    kinds = {item.name: "boolean" if item.default is False else "string" for item in fields(AdapterTarget)}
    return {name: {"type": kind, "description": _help(hints[name])} for name, kind in kinds.items()}


def _help(hint: Any) -> str:
    """What the shell says of an option."""
    [told] = [part.help for part in get_args(hint)[1:] if isinstance(part, typer.models.ParameterInfo)]
    return str(told)
