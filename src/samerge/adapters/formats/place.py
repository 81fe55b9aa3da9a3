"""From a folder or a file to the file that holds an adapter, its header read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from samerge.adapters.files import open_adapter
from samerge.adapters.formats.format import Place
from samerge.adapters.tensors import AdapterTensors
from samerge.errors import AdapterError
from samerge.weights.hub import ADAPTER_ENDINGS, CONFIG_NAME, USUAL_NAMES, only_adapter
from samerge.weights.untrusted import Origin, read_json

#: Sub-folders that are looked into for an adapter, and listed in a message.
_MOST_FOLDERS, _SHOWN = 1000, 6


def find(path: Path, name: str, source: str) -> Place:
    """Where an adapter lies.

    | what is given | what is read |
    |---|---|
    | a file | itself; as PEFT's, with the configuration beside it |
    | a folder with a configuration | the usual file of weights, else the only one |
    | a folder with one file of weights | that |
    | a folder with one sub-folder that has a configuration (an adapter not called "default", a checkpoint) | that |

    Args:
        path: a local folder or file.
        name: what the user calls the adapter.
        source: what the user gave.

    Raises:
        AdapterError: there is none, or there are several; lists them.
    """
    origin = Origin(f"reading adapter {name!r}", AdapterError)
    place = Place(name, source, path) if not path.is_dir() else _in_folder(Place(name, source, path), origin)
    if place.folder and (place.path.is_dir() or not os.path.lexists(place.path)):
        open_adapter(place.path if place.path.is_dir() else place.path.parent, name)  # which says what is missing
    if place.path.suffix == ".safetensors":
        place = replace(place, file=AdapterTensors(place.path, origin))
    beside = place.path.parent / CONFIG_NAME
    if os.path.lexists(beside):
        # metadata of other tools may hold NaN, which Python writes; the fields that count are checked later
        place = replace(place, config=read_json(beside, origin, infinite=True))
    return place


def _in_folder(place: Place, origin: Origin) -> Place:
    folder = place.path
    files = sorted(entry.name for entry in folder.iterdir() if not entry.is_dir())
    if os.path.lexists(folder / CONFIG_NAME) or any(name in files for name in USUAL_NAMES):
        usual = next((name for name in USUAL_NAMES if os.path.lexists(folder / name)), None)
        found = usual or only_adapter(files)
        return replace(place, path=folder / (found or USUAL_NAMES[0]), folder=True)
    weights = [name for name in files if name.endswith(ADAPTER_ENDINGS)]
    if len(weights) > 1:
        raise origin.refusal(f"{folder} holds several files of weights, {_listed(weights)}; give one of them")
    if weights:
        return replace(place, path=folder / weights[0])
    below = [entry for entry in sorted(folder.iterdir())[:_MOST_FOLDERS] if (entry / CONFIG_NAME).is_file()]
    if len(below) > 1:
        raise origin.refusal(
            f"there is no {CONFIG_NAME} in {folder}, but in several folders of it, "
            f"{_listed(entry.name for entry in below)}; give one of them"
        )
    return _in_folder(replace(place, path=below[0]), origin) if below else replace(place, path=folder, folder=True)


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
