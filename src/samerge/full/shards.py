"""Writing tensors that come a few rows at a time: safetensors, in shards, with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from samerge.errors import OptionError
from samerge.weights.folder import STEM
from samerge.weights.tensorfile import dtype_names

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

#: A tensor's shape and dtype.
Spec = tuple[tuple[int, ...], torch.dtype]


def shard_bytes(size: int | str) -> int:
    """A size in bytes, from a number or from text such as "5GB", as transformers has it.

    Raises:
        OptionError: it is neither.

    Example:
        >>> shard_bytes("1.5GB"), shard_bytes(1000)
        (1500000000, 1000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B)?\s*", str(size).upper())
    unit = _UNITS.get(found[2] or "") if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise OptionError(f"max_shard_size={size!r} is no size; give bytes, or a text such as '5GB' or '200MB'")
    return int(float(found[1]) * unit)


def plan(specs: Mapping[str, Spec], limit: int, stem: str = STEM) -> dict[str, list[str]]:
    """Which tensors go into which file, in the order of their names; a tensor larger than a shard has one of its own.

    Args:
        specs: shape and dtype by name.
        limit: bytes of a shard.
        stem: what the files are called.

    Returns:
        Tensor names by file name.

    Example:
        >>> spec = ((2,), torch.float32)
        >>> plan({"a": spec, "b": spec, "c": spec}, 16)
        {'model-00001-of-00002.safetensors': ['a', 'b'], 'model-00002-of-00002.safetensors': ['c']}
    """
    groups: list[list[str]] = [[]]
    filled = 0
    for name in sorted(specs):
        size = _size(specs[name])
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def write_shards(
    folder: Path,
    specs: Mapping[str, Spec],
    tiles: Callable[[str], Iterable[Tensor]],
    limit: int,
    advance: Callable[[int], None],
    stem: str,
) -> None:
    """Write all tensors, never more than a tile in memory.

    Args:
        folder: where to.
        specs: shape and dtype by name.
        tiles: gives a tensor's values in order, in pieces.
        limit: bytes of a shard.
        advance: called with the number of entries written.
        stem: what the files are called.
    """
    files = plan(specs, limit, stem)
    for file, names in files.items():
        _write(folder / file, {name: specs[name] for name in names}, tiles, advance)
    if len(files) > 1:
        where = {name: file for file, names in files.items() for name in names}
        index = {
            "metadata": {"total_size": sum(_size(spec) for spec in specs.values())},
            "weight_map": dict(sorted(where.items())),
        }
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(
    path: Path, specs: Mapping[str, Spec], tiles: Callable[[str], Iterable[Tensor]], advance: Callable[[int], None]
) -> None:
    # the widest dtypes first, as the safetensors library has it, so that every tensor is aligned
    names = sorted(specs, key=lambda name: (-specs[name][1].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    kinds = dtype_names()
    offset = 0
    for name in names:
        shape, dtype = specs[name]
        end = offset + _size(specs[name])
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for name in names:
            written = 0
            for data in _bytes(tiles(name), specs[name][1]):
                stream.write(data)
                written += len(data)
                advance(len(data) // specs[name][1].itemsize)
            if written != _size(specs[name]):
                raise RuntimeError(f"writing {path}: {name} came as {written} bytes instead of {_size(specs[name])}")


def _bytes(tiles: Iterable[Tensor], dtype: torch.dtype) -> Iterator[memoryview]:
    for tile in tiles:
        if tile.dtype != dtype:
            raise RuntimeError(f"a tile came in {tile.dtype} instead of {dtype}")
        yield tile.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _size(spec: Spec) -> int:
    return torch.Size(spec[0]).numel() * spec[1].itemsize
