"""A base model in a folder: `config.json` and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samerge.errors import BaseModelError
from samerge.weights.quantised import dequantised
from samerge.weights.stored import InFile, Stored, StoredSource
from samerge.weights.tensorfile import TensorFile

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class FolderSource(StoredSource):
    """A folder with `config.json` and safetensors weights, in one file or sharded with an index.

    Weights in a known quantised format appear under the name and shape that they had before, and are dequantised as
    they are read.

    Args:
        folder: the folder.
        name: what to call the base in messages and in the record; the folder by default.

    Raises:
        BaseModelError: no config, no safetensors weights, a shard is missing or broken, or the weights are quantised in
            a format that cannot be read.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        name = name or str(folder)
        config_file = self.folder / "config.json"
        if not config_file.is_file():
            raise BaseModelError(
                f"reading the base model {name!r}: there is no config.json in {self.folder}; "
                f"give the folder that save_pretrained wrote, or a hub id"
            )
        config: Mapping[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
        super().__init__(name, config, dequantised(_open(self.folder, name), config, name))


def _open(folder: Path, name: str) -> dict[str, Stored]:
    index = folder / INDEX_NAME
    if index.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    elif (folder / SINGLE_NAME).is_file():
        files = [SINGLE_NAME]
    else:
        others = sorted(path.name for path in folder.glob("*.bin"))
        hint = (
            f"it has {others}; load it once with transformers and save_pretrained(...) to get safetensors"
            if others
            else f"expected {SINGLE_NAME} or {INDEX_NAME}"
        )
        raise BaseModelError(f"reading the base model {name!r}: no safetensors weights in {folder}; {hint}")
    opened: dict[str, Stored] = {}
    for file in files:
        try:
            shard = TensorFile(folder / file)
        except FileNotFoundError as error:
            raise BaseModelError(
                f"reading the base model {name!r}: the index names the shard {file}, which is not in "
                f"{folder}; fetch the missing file"
            ) from error
        except ValueError as error:
            raise BaseModelError(f"reading the base model {name!r}: {error}") from error
        opened.update((tensor, InFile(shard, tensor)) for tensor in shard.entries)
    return opened
