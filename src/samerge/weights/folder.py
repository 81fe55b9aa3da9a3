"""A base model in a folder: `config.json` and safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from samerge.weights.fields import OBJECT, TEXT, check_fields, list_of, table_of
from samerge.weights.quantised import dequantised
from samerge.weights.stored import InFile, Stored, StoredSource
from samerge.weights.tensorfile import TensorFile
from samerge.weights.untrusted import Origin, read_json

CONFIG_NAME = "config.json"
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
        BaseModelError: no config, no safetensors weights, a shard is missing or broken, the configuration or the index
            is not what it must be, or the weights are quantised in a format that cannot be read.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        name = name or str(folder)
        origin = Origin(f"reading the base model {name!r}")
        config = _config(self.folder, origin)
        self.files = _files(self.folder, origin)
        stored: dict[str, Stored] = {tensor: InFile(file, tensor) for file in self.files for tensor in file.entries}
        super().__init__(name, config, dequantised(stored, config, name))

    def sha256(self) -> dict[str, str]:
        """The digest of every file of weights, by its name, of the bytes that are read."""
        return {file.path.name: file.sha256() for file in self.files}


def _config(folder: Path, origin: Origin) -> Mapping[str, Any]:
    if not os.path.lexists(folder / CONFIG_NAME):
        raise origin.refusal(
            f"there is no {CONFIG_NAME} in {folder}; give the folder that save_pretrained wrote, or a hub id"
        )
    # transformers writes Infinity into some configurations, such as Mamba's time_step_limit
    config = read_json(folder / CONFIG_NAME, origin, infinite=True)
    parts = {field: OBJECT for field in config if field.endswith("_config")}
    check_fields(config, {"model_type": TEXT, "architectures": list_of(TEXT), **parts}, CONFIG_NAME, origin)
    return config


def _files(folder: Path, origin: Origin) -> list[TensorFile]:
    """The files of weights, each opened; no tensor lies in two of them, and each of the index in one."""
    if not os.path.lexists(folder / INDEX_NAME):
        if not os.path.lexists(folder / SINGLE_NAME):
            raise origin.refusal(_without_weights(folder))
        return [TensorFile(folder / SINGLE_NAME, origin)]
    index = read_json(folder / INDEX_NAME, origin)
    check_fields(index, {"weight_map": table_of(TEXT)}, INDEX_NAME, origin, needed=("weight_map",))
    where: Mapping[str, str] = index["weight_map"]
    opened: dict[str, TensorFile] = {}
    holder: dict[str, str] = {}
    for shard in sorted(set(where.values())):
        opened[shard] = _shard(folder, shard, origin)
        for tensor in opened[shard].entries:
            if tensor in holder:
                raise origin.refusal(
                    f"the shards {holder[tensor]} and {shard} both hold {tensor!r}, so that it is not known which is "
                    f"meant; fetch the model again"
                )
            holder[tensor] = shard
    astray = next((tensor for tensor, shard in where.items() if holder.get(tensor) != shard), None)
    if astray is not None:
        raise origin.refusal(
            f"{INDEX_NAME} says that {astray!r} lies in {where[astray]}, which does not hold it; fetch the model again"
        )
    return list(opened.values())


def _shard(folder: Path, shard: str, origin: Origin) -> TensorFile:
    if not shard.endswith(".safetensors") or shard != PurePath(shard.replace("\\", "/")).name:
        raise origin.refusal(
            f"{INDEX_NAME} names {shard!r} as a shard; it must be the name of a .safetensors file in the same folder"
        )
    if not os.path.lexists(folder / shard):
        raise origin.refusal(f"the index names the shard {shard}, which is not in {folder}; fetch the missing file")
    return TensorFile(folder / shard, origin)


def _without_weights(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("*.bin"))
    hint = (
        f"it has {others}; load it once with transformers and save_pretrained(...) to get safetensors"
        if others
        else f"expected {SINGLE_NAME} or {INDEX_NAME}"
    )
    return f"no safetensors weights in {folder}; {hint}"
