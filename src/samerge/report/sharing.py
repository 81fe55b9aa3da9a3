"""What must not be told to others: the folders of the machine that a merge was made on.

A source that can be a repository's id is told as it is, a local folder by its last part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from samerge.report.record import Record
from samerge.report.stored import Base, Input
from samerge.weights.hub_errors import is_repository_id


def on_hub(name: str, local: Collection[str] | None) -> bool:
    """Whether a source can be a repository id.

    Args:
        name: of the source.
        local: the names that were folders when it was read, which a repository of that name gives way to; None asks
            for a folder of that name now, as there is nothing better.
    """
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        return False  # without the import, which takes as long as a small merge
    if os.path.exists(name) if local is None else name in local:
        return False
    return is_repository_id(name)


def repository(one: Input | Base) -> str | None:
    """The repository on the Hub that something was read from, without revision and folder in it; None for local files.

    Example:
        >>> repository(Input("math", "ada/loras/math@v2", revision="4d5c" * 10))
        'ada/loras'
        >>> repository(Base("models/llama", local=("models/llama",)))
    """
    name, revision = (one.name, None) if isinstance(one, Base) else (one.source, one.revision)
    if name and revision:
        name = "/".join(name.partition("@")[0].split("/")[:2])
    return name if name and on_hub(name, one.local) else None


def known_local(record: Record) -> set[str] | None:
    """All names that were local when the record was made; None where an older version made it."""
    told = [record.base.local, *(one.local for one in record.inputs)]
    known = [names for names in told if names is not None]
    return {name for names in known for name in names} if known else None


def local_folders(record: Record) -> list[str]:
    """The local folders that the record names, as given and in full, the longest first."""
    known = known_local(record)
    sources = [one.source or "" for one in record.inputs if repository(one) is None]
    given = [record.base.name or "", *sources, *(one.base_model or "" for one in record.inputs)]
    local = {name for name in given if ("/" in name or "\\" in name) and not on_hub(name, known)}
    return sorted(local | {os.path.abspath(name) for name in local}, key=lambda name: (-len(name), name))


def last_part(name: Any) -> str:
    """The last part of a local path, of either kind of system."""
    return PurePosixPath(str(name).replace("\\", "/")).name or "folder"


def shortened(text: str, folders: Iterable[str]) -> str:
    """Text in which each of some folders keeps its last part only.

    Example:
        >>> shortened("of /home/ada/a, not /home/ada/a-b", ["/home/ada/a"])
        'of a, not /home/ada/a-b'
        >>> shortened("file:///home/ada/a, not other/loras/a", ["/home/ada/a", "loras/a"])
        'file://a, not other/loras/a'
    """
    for folder in folders:
        before = r"[\w.-]" if folder.startswith("/") else r"[\w./-]"
        text = last_part(folder).join(re.split(rf"(?<!{before}){re.escape(folder)}(?![\w-])", text))
    return text


def concealed(record: Record) -> Record:
    """The record with local folders by their last part, wherever words may name them."""
    folders = local_folders(record)

    def short(text: str) -> str:
        return shortened(text, folders)

    def option(text: str) -> str:
        return last_part(short(text)) if is_path(short(text)) else short(text)

    said = {name: _each(getattr(record, name), short) for name in ("notes", "warnings", "left_out", "tuning")}
    named = ("source", "base_model", "local")
    inputs = tuple(replace(one, **{key: _each(getattr(one, key), short) for key in named}) for one in record.inputs)
    base = replace(record.base, name=_each(record.base.name, short), local=_each(record.base.local, short))
    return replace(record, base=base, inputs=inputs, options=_each(record.options, option), **said)


def _each(value: Any, told: Callable[[str], str]) -> Any:
    """A value in which every text is told otherwise."""
    if isinstance(value, str):
        return told(value)
    if isinstance(value, Mapping):
        return {key: _each(item, told) for key, item in value.items()}
    return type(value)(_each(item, told) for item in value) if isinstance(value, (list, tuple)) else value


def is_path(value: Any) -> bool:
    """Whether a value among the options is a local path, which is never worth naming in full."""
    return isinstance(value, Path) or (isinstance(value, str) and (value[:1] in "/~." or "\\" in value) and value != "")
