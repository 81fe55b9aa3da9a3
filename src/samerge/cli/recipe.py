"""A merge as a YAML file: read, checked key by key, and turned into a `Request`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from samerge.cli.mergekit import as_recipe, is_mergekit
from samerge.cli.named_adapter import AdapterSpec, default_name
from samerge.cli.request import Request
from samerge.cli.target import AdapterTarget
from samerge.errors import OptionError
from samerge.options.kinds import check_number, flag
from samerge.options.option import meant

_TARGET = tuple(item.name for item in fields(AdapterTarget))
_FLAGS = ("overwrite", "private", "create_pr")
_KEYS = ("base", "adapters", "method", "weights", *_TARGET)
_ADAPTER_KEYS = ("name", "source", "model", "weight")


def read_recipe(file: str | Path, changes: Mapping[str, Any] | None = None) -> Request:
    """The merge that a YAML file asks for.

    Args:
        file: the recipe. Keys: `base`, `adapters` (a list of sources or of `name`, `source`, `weight`; or a mapping of
            name to source), `method`, `weights`, `out`, `overwrite`, `push_to_hub` and what belongs to it, and the
            options of `samerge.merge`. Or a configuration of mergekit (`samerge.cli.mergekit`).
        changes: values that win over the recipe's.

    Raises:
        OptionError: it cannot be read, is not YAML, or has an unknown key or a value of the wrong kind.
    """
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OptionError(f"reading the recipe {file}: {why}") from error
    return parse_recipe(text, str(file), changes)


def parse_recipe(text: str, origin: str, changes: Mapping[str, Any] | None = None) -> Request:
    """As `read_recipe`, from text; `origin` is what to call it in messages."""
    doing = f"reading the recipe {origin}"
    table = _load(text, doing)
    if not isinstance(table, Mapping):
        raise OptionError(f"{doing}: it holds no mapping of keys to values; it needs base, adapters and out")
    notes: list[str] = []
    if is_mergekit(table):
        table, notes = as_recipe(table, doing)
    values = {str(key).replace("-", "_"): value for key, value in table.items() if value is not None}
    values |= changes or {}
    adapters = _adapters(values.get("adapters"), doing)
    for key in set(values) & set(_FLAGS):
        values[key] = _read(flag().read, key, values[key], doing)
    for key in {"base", "method", *_TARGET} - set(_FLAGS):
        if not isinstance(values.get(key, ""), str):
            raise OptionError(f"{doing}: {key} is {values[key]!r}; it must be text")
    options = {key: value for key, value in values.items() if key not in _KEYS}
    _check_options(options, values.get("method"), doing)
    weights = values.get("weights")
    if weights is not None and any(adapter.weight != 1 for adapter in adapters):
        raise OptionError(f"{doing}: weights is {weights!r}, and adapters have a weight each; give one or the other")
    return Request(
        base=values.get("base"),
        adapters=adapters,
        method=values.get("method"),
        weights={adapter.name: adapter.weight for adapter in adapters} if weights is None else weights,
        options=options,
        target=AdapterTarget(**{key: values[key] for key in _TARGET if key in values}),
        notes=tuple(notes),
    )


def _check_options(options: Mapping[str, Any], method: str | None, doing: str) -> None:
    """Refuse keys and values that the merge would refuse, in the recipe's words."""
    from samerge.merging.plan import DEFAULT_METHOD, plan
    from samerge.methods.registry import find
    from samerge.options.common import CommonOptions
    from samerge.options.option import table

    try:
        own = [row.name for kind in (find(method or DEFAULT_METHOD).options, CommonOptions) for row in table(kind)]
        _known(options, [*own, "svd_rank"], doing, [*_KEYS, *own])
        plan(method, options)
    except OptionError as error:
        raise error if str(error).startswith(doing) else OptionError(f"{doing}: {error}") from error


def _adapters(value: Any, doing: str) -> tuple[AdapterSpec, ...]:
    if isinstance(value, Mapping):
        items: list[Mapping[Any, Any]] = [
            {"name": name, **entry} if isinstance(entry, Mapping) else {"name": name, "source": entry}
            for name, entry in value.items()
        ]
    elif isinstance(value, list):
        items = [entry if isinstance(entry, Mapping) else {"source": entry} for entry in value]
    else:
        raise OptionError(f"{doing}: adapters must be a list of sources, of mappings with a source, or a mapping")
    return tuple(_adapter(item, f"{doing}, adapter {number}") for number, item in enumerate(items, 1))


def _adapter(item: Mapping[Any, Any], doing: str) -> AdapterSpec:
    _known(item, _ADAPTER_KEYS, doing, _ADAPTER_KEYS)
    if ("source" in item) == ("model" in item):
        raise OptionError(f"{doing}: it has {sorted(item)}; it needs a source (or model, the same), and one of the two")
    source = item.get("source", item.get("model"))
    if not isinstance(source, str) or not source:
        raise OptionError(f"{doing}: its source is {source!r}; it must be a folder or a hub id")
    weight = _read(check_number, "weight", item.get("weight", 1.0), doing)
    return AdapterSpec(_name(item.get("name"), source, doing), source, weight)


def _name(value: Any, source: str, doing: str) -> str:
    """What an adapter is called; YAML reads `no`, a language among others, as false."""
    if value is None:
        return default_name(source)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise OptionError(
            f"{doing}: its name is {value!r}; it must be text, in quotes where YAML takes a word (no, yes, on) for "
            f"something else"
        )
    return str(value)


def _read(read: Any, key: str, value: Any, doing: str) -> Any:
    try:
        return read(key, value)
    except OptionError as error:
        raise OptionError(f"{doing}: {error}") from error


def _known(given: Collection[Any], known: Collection[str], doing: str, near: Collection[str]) -> None:
    for key in given:
        if key not in known:
            raise OptionError(
                f"{doing}: the key {key!r} is not known{meant(str(key), near)} It may have {', '.join(near)}"
            )


def _load(text: str, doing: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """YAML's own loader keeps the last of two equal keys without a word."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        table: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float) or key in table:
                where = f"line {key_node.start_mark.line + 1}"
                raise OptionError(f"{doing}: {where}: the key {key!r} stands there twice, or cannot be a key")
            table[key] = loader.construct_object(value_node, deep=True)
        return table

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise OptionError(f"{doing}: it is not valid YAML: {' '.join(str(error).split())}") from error
