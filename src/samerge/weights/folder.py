"""A base model in a folder: `config.json` and safetensors, of transformers or diffusers, or a pipeline of several."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from samerge.options.module_names import joined
from samerge.weights.fields import OBJECT, TEXT, check_fields, list_of, table_of
from samerge.weights.hub import PIPELINE_NAME
from samerge.weights.quantised import dequantised
from samerge.weights.stored import InFile, Stored, StoredSource
from samerge.weights.tensorfile import TensorFile
from samerge.weights.untrusted import Origin, read_json

CONFIG_NAME = "config.json"
#: What files of weights are called by transformers, and by diffusers.
STEM, DIFFUSERS_STEM = "model", "diffusion_pytorch_model"
_ENDING, _INDEX_ENDING = ".safetensors", ".safetensors.index.json"


class FolderSource(StoredSource):
    """A folder with `config.json` and safetensors weights, in one file or sharded with an index.

    A folder with `model_index.json` is a pipeline of diffusers: its models' weights have the model's name in front, as
    in `unet.down_blocks...`, which is how adapters for the whole of it name them.

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
        if os.path.lexists(self.folder / PIPELINE_NAME) and not os.path.lexists(self.folder / CONFIG_NAME):
            config, parts = _pipeline(self.folder, origin)
        else:
            config, parts = _config(self.folder, origin), {"": self.folder}
        self.files: list[TensorFile] = []
        found: dict[str, Stored] = {}
        for part, inner in parts.items():
            files = _files(inner, origin)
            stored: dict[str, Stored] = {tensor: InFile(file, tensor) for file in files for tensor in file.entries}
            own = dequantised(stored, _config(inner, origin) if part else config, name)
            found |= {joined(part, tensor): weight for tensor, weight in own.items()}
            self.files += files
        super().__init__(name, config, found)

    def sha256(self) -> dict[str, str]:
        """The digest of every file of weights, by its name, of the bytes that are read."""
        return {file.path.relative_to(self.folder).as_posix(): file.sha256() for file in self.files}


def file_stem(config: Mapping[str, Any]) -> str:
    """What the files of weights beside a configuration are called, without their ending.

    Example:
        >>> file_stem({"model_type": "llama"}), file_stem({"_class_name": "UNet2DConditionModel"})
        ('model', 'diffusion_pytorch_model')
    """
    return DIFFUSERS_STEM if "_class_name" in config else STEM


def _pipeline(folder: Path, origin: Origin) -> tuple[Mapping[str, Any], dict[str, Path]]:
    """What a pipeline's index says of it, and the folders of its models that have weights, by name."""
    index = read_json(folder / PIPELINE_NAME, origin)
    check_fields(index, {"_class_name": TEXT}, PIPELINE_NAME, origin, needed=("_class_name",))
    parts = {
        name: folder / name
        for name in sorted(index)
        if name == PurePath(name.replace("\\", "/")).name and os.path.lexists(folder / name / CONFIG_NAME)
    }
    having = {name: inner for name, inner in parts.items() if _stem(inner) is not None}
    if not having:
        raise origin.refusal(f"none of the models that {PIPELINE_NAME} names has safetensors weights in {folder}")
    return {"_class_name": index["_class_name"]}, having


def _stem(folder: Path) -> str | None:
    """What its files of weights are called; the plain ones before those of half precision."""
    stems = (STEM, DIFFUSERS_STEM, f"{DIFFUSERS_STEM}.fp16", f"{STEM}.fp16")
    there = (stem for stem in stems for end in (_INDEX_ENDING, _ENDING) if os.path.lexists(folder / f"{stem}{end}"))
    return next(there, None)


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
    stem = _stem(folder)
    if stem is None:
        raise origin.refusal(_without_weights(folder))
    index_name = f"{stem}{_INDEX_ENDING}"
    if not os.path.lexists(folder / index_name):
        return [TensorFile(folder / f"{stem}{_ENDING}", origin)]
    index = read_json(folder / index_name, origin)
    check_fields(index, {"weight_map": table_of(TEXT)}, index_name, origin, needed=("weight_map",))
    where: Mapping[str, str] = index["weight_map"]
    opened: dict[str, TensorFile] = {}
    holder: dict[str, str] = {}
    for shard in sorted(set(where.values())):
        opened[shard] = _shard(folder, shard, index_name, origin)
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
            f"{index_name} says that {astray!r} lies in {where[astray]}, which does not hold it; fetch the model again"
        )
    return list(opened.values())


def _shard(folder: Path, shard: str, index_name: str, origin: Origin) -> TensorFile:
    if not shard.endswith(".safetensors") or shard != PurePath(shard.replace("\\", "/")).name:
        raise origin.refusal(
            f"{index_name} names {shard!r} as a shard; it must be the name of a .safetensors file in the same folder"
        )
    if not os.path.lexists(folder / shard):
        raise origin.refusal(f"the index names the shard {shard}, which is not in {folder}; fetch the missing file")
    return TensorFile(folder / shard, origin)


def _without_weights(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("*.bin"))
    hint = (
        f"it has {others}; load it once with transformers and save_pretrained(...) to get safetensors"
        if others
        else f"expected {STEM}{_ENDING} or {STEM}{_INDEX_ENDING}, or {DIFFUSERS_STEM}{_ENDING}"
    )
    return f"no safetensors weights in {folder}; {hint}"
