"""`samerge.json`, or the header of a file, back into a record: ours, or a stranger's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samerge.adapters.formats.table import record_in
from samerge.errors import AdapterError
from samerge.report.decoding import decoded
from samerge.report.record import FORMAT, Record
from samerge.weights.hub import RECORD_NAME
from samerge.weights.untrusted import MOST_RECORD_BYTES, Origin, parse_json, read_json


def read_record(folder: str | Path) -> Record:
    """The record in a folder, or in the header of a file.

    Args:
        folder: of an adapter or a model that samerge wrote; or the file.

    Raises:
        AdapterError: there is none, or it cannot be read; says what is wrong and where.
    """
    doing = Origin(f"reading the record of {folder}", AdapterError)
    told = raw_record(Path(folder), doing)
    try:
        return record_from(told)
    except ValueError as error:
        if isinstance(error, AdapterError):
            raise
        raise doing.refusal(
            f"{RECORD_NAME} is no record as samerge writes it: {error}; merge again, or ask who made it"
        ) from error


def raw_record(path: Path, origin: Origin) -> dict[str, Any]:
    """The plain values of the record in a folder or in the header of a file, as they stand there.

    Raises:
        AdapterError: there is none.
    """
    if path.is_file():
        text = record_in(path, origin)
        if text is None:
            raise origin.refusal(f"there is none in the header of {path.name}; was this made by samerge?")
        return parse_json(text.encode(), f"the record in {path.name}", origin)
    if not os.path.lexists(path / RECORD_NAME):
        raise AdapterError(f"reading {path}: there is no {RECORD_NAME} in it; was this made by samerge?")
    return read_json(path / RECORD_NAME, origin, MOST_RECORD_BYTES)


def record_from(told: Mapping[str, Any]) -> Record:
    """A record from plain JSON values.

    Raises:
        ValueError: they are none; says where.
    """
    if "format" not in told:
        raise ValueError("format is missing")
    version = told["format"]
    if type(version) is not int or not 1 <= version <= FORMAT:
        raise ValueError(f"format is {str(version)[:20]}, and this version of samerge reads up to {FORMAT}; update it")
    adapters = told.get("adapters")
    flows = {
        name: one["log_connectivity"]
        for name, one in (adapters if isinstance(adapters, Mapping) else {}).items()
        if isinstance(one, Mapping) and "log_connectivity" in one
    }
    return decoded(Record, {"log_connectivity": flows, **told})
