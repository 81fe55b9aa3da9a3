"""A merge as a YAML file: read, checked key by key, and turned into a `Request`."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from samerge.cli.named_adapter import AdapterSpec, default_name
from samerge.cli.request import OPTIONS, Request
from samerge.cli.shared_options import number_or_word
from samerge.errors import OptionError

_KEYS = ("base", "adapters", "out", "overwrite", "push_to_hub", "private", "weights", *OPTIONS)
_ADAPTER_KEYS = ("name", "source", "model", "weight")
_FLAGS = ("overwrite", "private", "residual")
_NUMBERS = ("density", "scaling")


def read_recipe(file: str | Path, changes: Mapping[str, Any] | None = None) -> Request:
    """The merge that a YAML file asks for.

    Args:
        file: the recipe. Keys: `base`, `adapters` (a list of sources or of `name`, `source`, `weight`; or a mapping of
            name to source), `out`, `overwrite`, `push_to_hub`, `private`, and the options of `samerge.merge`.
        changes: values that win over the recipe's.

    Raises:
        OptionError: it cannot be read, is not YAML, or has an unknown key or a value of the wrong kind.
    """
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"reading the recipe {file}: {error}") from error
    return parse_recipe(text, str(file), changes)


def parse_recipe(text: str, origin: str, changes: Mapping[str, Any] | None = None) -> Request:
    """As `read_recipe`, from text; `origin` is what to call it in messages."""
    doing = f"reading the recipe {origin}"
    table = _load(text, doing)
    if not isinstance(table, Mapping):
        raise OptionError(f"{doing}: it holds no mapping of keys to values; it needs base, adapters and out")
    values = {str(key).replace("-", "_"): value for key, value in table.items()}
    _known(values, _KEYS, doing)
    values |= changes or {}
    for key in _FLAGS:
        if not isinstance(values.get(key, False), bool):
            raise OptionError(f"{doing}: {key} is {values[key]!r}; it must be true or false")
    if not isinstance(values.get("weights", ""), str | None):
        raise OptionError(
            f"{doing}: weights is {values['weights']!r}; it must be nan or auto. Numbers stand with the adapters: a "
            f"source and a weight each"
        )
    for key in ("base", "out", "push_to_hub"):
        if not isinstance(values.get(key, ""), str | None):
            raise OptionError(f"{doing}: {key} is {values[key]!r}; it must be text")
    for key in _NUMBERS:  # YAML 1.1 reads 1e-1 as text
        if isinstance(values.get(key), str):
            values[key] = number_or_word(values[key])
    return Request(
        base=values.get("base"),
        adapters=_adapters(values.get("adapters"), doing),
        options={key: values[key] for key in OPTIONS if values.get(key) is not None},
        out=values.get("out"),
        overwrite=values.get("overwrite", False),
        push_to_hub=values.get("push_to_hub"),
        private=values.get("private", False),
        weights=values.get("weights"),
    )


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
    _known(item, _ADAPTER_KEYS, doing)
    if ("source" in item) == ("model" in item):
        raise OptionError(f"{doing}: it has {sorted(item)}; it needs a source (or model, the same), and one of the two")
    source = item.get("source", item.get("model"))
    if not isinstance(source, str) or not source:
        raise OptionError(f"{doing}: its source is {source!r}; it must be a folder or a hub id")
    weight = item.get("weight", 1.0)
    weight = number_or_word(weight) if isinstance(weight, str) else weight
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise OptionError(f"{doing}: its weight is {weight!r}; it must be a number")
    return AdapterSpec(str(item.get("name", default_name(source))), source, float(weight))


def _known(given: Collection[Any], known: Collection[str], doing: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise OptionError(f"{doing}: the key {key!r} is not known{hint} (it may have {', '.join(known)})")


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
