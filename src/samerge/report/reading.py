"""`samerge.json` back into a record: ours, one of an older version, or whatever a stranger's file holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samerge.errors import AdapterError
from samerge.report.decoding import decoded
from samerge.report.old_record import renewed
from samerge.report.record import FORMAT, Record
from samerge.weights.hub import RECORD_NAME
from samerge.weights.untrusted import MOST_RECORD_BYTES, Origin, read_json


def read_record(folder: str | Path) -> Record:
    """The record in a folder.

    Args:
        folder: of an adapter or a model that samerge wrote.

    Raises:
        AdapterError: there is none, or it cannot be read; says what is wrong and where.
    """
    path = Path(folder) / RECORD_NAME
    if not os.path.lexists(path):
        raise AdapterError(f"reading {folder}: there is no {RECORD_NAME} in it; was this made by samerge?")
    doing = Origin(f"reading the record of {folder}", AdapterError)
    try:
        return record_from(read_json(path, doing, MOST_RECORD_BYTES))
    except ValueError as error:
        if isinstance(error, AdapterError):
            raise
        raise doing.refusal(
            f"{RECORD_NAME} is no record as samerge writes it: {error}; merge again, or ask who made it"
        ) from error


def record_from(told: Mapping[str, Any]) -> Record:
    """A record from plain JSON values, of this version or an older one.

    Raises:
        ValueError: they are none; says where.
    """
    if "format" not in told:
        told = {**renewed(told), "format": FORMAT}
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
