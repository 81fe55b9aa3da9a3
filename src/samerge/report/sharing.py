"""What must not be told to others: the folders of the machine that a merge was made on.

A source that can be a repository's id is told as it is, a local folder by its last part.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from samerge.report.report import RECORD_NAME


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
    """Shorten the local folders in a folder's `samerge.json` to their last part, as the card does; in place.

    Args:
        folder: made for uploading, and no user's own.
    """
    file = folder / RECORD_NAME
    text = file.read_text(encoding="utf-8")
    for name in local_folders(json.loads(text)):
        text = text.replace(json.dumps(name)[1:-1], json.dumps(last_part(name))[1:-1])
    file.write_text(text, encoding="utf-8")


def base_name(record: Mapping[str, Any]) -> str:
    """The base as the record names it; empty where it does not."""
    return str((record.get("base") or {}).get("name") or "")


def on_hub(name: str) -> bool:
    """Whether a source can be a repository id; a folder that exists is read first, so it is the folder."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def local_folders(record: Mapping[str, Any]) -> list[str]:
    """The local folders that the record names, as given and in full, the longest first."""
    given = [base_name(record), *(str(entry.get("source") or "") for entry in record.get("inputs") or ())]
    local = {name for name in given if ("/" in name or "\\" in name) and not on_hub(name)}
    return sorted(local | {os.path.abspath(name) for name in local}, key=lambda name: (-len(name), name))


def last_part(name: Any) -> str:
    """The last part of a local path, of either kind of system."""
    return PurePosixPath(str(name).replace("\\", "/")).name or "folder"
