"""What must not be told to others: the folders of the machine that a merge was made on.

A source that can be a repository's id is told as it is, a local folder by its last part.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from samerge.report.reading import read_record
from samerge.report.record import Record
from samerge.report.stored import Input
from samerge.weights.hub import CONFIG_NAME, RECORD_NAME
from samerge.weights.untrusted import Origin, sha256


@contextmanager
def shareable(save: Callable[[Path], Path], name: str) -> Iterator[Path]:
    """A folder to upload, which is gone afterwards: what `save` writes, without the names of local folders.

    Args:
        save: writes a folder at a path that is free, and returns it.
        name: of the folder, as messages have it.
    """
    with tempfile.TemporaryDirectory() as parent:
        saved = save(Path(parent) / name)
        conceal(saved)
        yield saved


def conceal(folder: Path) -> None:
    """Shorten the local folders in a folder's files to their last part, as the card does; in place.

    Args:
        folder: made for uploading, and no user's own.
    """
    file = folder / RECORD_NAME
    text = file.read_text(encoding="utf-8")
    record = read_record(folder)
    for name in local_folders(record):
        for ascii_only in (True, False):
            text = text.replace(_inside(name, ascii_only), _inside(last_part(name), ascii_only))
    _conceal_base(folder / CONFIG_NAME)
    for name, digest in (record.files or {}).items():
        if (folder / name).is_file():  # that of the configuration may be another one now
            text = text.replace(digest, sha256(folder / name, Origin(f"sharing {folder.name}")))
    file.write_text(text, encoding="utf-8")


def _inside(name: str, ascii_only: bool) -> str:
    """A name as it stands between the quotes of JSON."""
    return json.dumps(name, ensure_ascii=ascii_only)[1:-1]


def _conceal_base(file: Path) -> None:
    """An adapter's configuration names a base on the machine of whoever trained it, which is of no use elsewhere."""
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if base and not on_hub(base):
        config["base_model_name_or_path"] = last_part(base)
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8", newline="\n")


def on_hub(name: str) -> bool:
    """Whether a source can be a repository id; a folder that exists is read first, so it is the folder."""
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or Path(name).exists():
        return False  # without the import, which takes as long as a small merge
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def repository(one: Input) -> str | None:
    """The repository on the Hub that an input was read from, without revision and folder in it; None for local files.

    Example:
        >>> repository(Input("math", "ada/loras/math@v2", revision="4d5c" * 10))
        'ada/loras'
    """
    name = one.source or ""
    if one.revision:
        name = "/".join(name.partition("@")[0].split("/")[:2])
    return name if name and on_hub(name) else None


def local_folders(record: Record) -> list[str]:
    """The local folders that the record names, as given and in full, the longest first."""
    sources = [one.source or "" for one in record.inputs if repository(one) is None]
    given = [record.base.name or "", *sources, *(one.base_model or "" for one in record.inputs)]
    local = {name for name in given if ("/" in name or "\\" in name) and not on_hub(name)}
    return sorted(local | {os.path.abspath(name) for name in local}, key=lambda name: (-len(name), name))


def last_part(name: Any) -> str:
    """The last part of a local path, of either kind of system."""
    return PurePosixPath(str(name).replace("\\", "/")).name or "folder"


def shortened(text: str, folders: Iterable[str]) -> str:
    """Text in which each of some folders keeps its last part only.

    Example:
        >>> shortened("of /home/ada/a, not /home/ada/a-b", ["/home/ada/a"])
        'of a, not /home/ada/a-b'
    """
    for folder in folders:
        text = last_part(folder).join(re.split(rf"(?<![\w./-]){re.escape(folder)}(?![\w-])", text))
    return text


def concealed(record: Record) -> Record:
    """The record with local folders by their last part: in names, options, notes and warnings."""
    folders = local_folders(record)

    def told(value: Any) -> Any:
        if isinstance(value, str):
            short = shortened(value, folders)
            return last_part(short) if is_path(short) else short
        if isinstance(value, Mapping):
            return {key: told(item) for key, item in value.items()}
        return [told(item) for item in value] if isinstance(value, (list, tuple)) else value

    def words(value: str | None) -> str | None:
        return None if value is None else shortened(value, folders)

    return replace(
        record,
        base=replace(record.base, name=words(record.base.name)),
        inputs=tuple(replace(one, source=words(one.source), base_model=words(one.base_model)) for one in record.inputs),
        options=told(record.options),
        notes=tuple(shortened(one, folders) for one in record.notes),
        warnings=tuple(shortened(one, folders) for one in record.warnings),
    )


def is_path(value: Any) -> bool:
    """Whether a value among the options is a local path, which is never worth naming in full."""
    return isinstance(value, Path) or (isinstance(value, str) and (value[:1] in "/~." or "\\" in value) and value != "")
