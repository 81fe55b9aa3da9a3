"""Write an adapter's folder, or its file, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from samerge.adapters.atomic import atomic_file, atomic_folder
from samerge.errors import AdapterError
from samerge.weights.hub import CONFIG_NAME, RECORD_NAME, WEIGHTS_NAME
from samerge.weights.untrusted import Origin, digest_of, open_regular, sha256

CARD_NAME = "README.md"
#: The field of a safetensors header with the digest of all that stands behind it.
HASH_FIELD = "sshs_model_hash"

_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False)


def write_adapter(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    card: str,
    overwrite: bool = False,
    beside: Iterable[Path] = (),
    weights_name: str = WEIGHTS_NAME,
) -> Path:
    """Write an adapter's folder, with its record and its card; the same tensors give the same bytes.

    Args:
        folder: where to; parents are created.
        tensors: by PEFT's key, `base_model.model.<module>.lora_A.weight` and so on; on any device.
        config: what goes into `adapter_config.json`; sets are written as sorted lists.
        record: what goes into `samerge.json`, with the digests of the other files; numbers that are not finite are
            written as null.
        card: the text of `README.md`.
        overwrite: replace an adapter folder that is already there. Default: False.
        beside: files to copy into the folder, as they are.
        weights_name: what the file of the tensors is called.

    Returns:
        The folder.

    Raises:
        OutputExistsError: the folder is taken, or is not one that may be replaced.
        AdapterError: there is no tensor, or one has no data.
        TypeError: `config` or `record` holds something that is no JSON.

    Example:
        >>> import tempfile, torch
        >>> key = "base_model.model.proj.lora_A.weight"
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     out = write_adapter(parent + "/merged", {key: torch.ones(2, 4)}, {"r": 2}, {}, "# merged")
        ...     sorted(path.name for path in out.iterdir())
        ['README.md', 'adapter_config.json', 'adapter_model.safetensors', 'samerge.json']
    """
    # All that can be wrong with the input is found before the disk is touched.
    settings, record = json_text(config, CONFIG_NAME), plain(record, RECORD_NAME)
    target = Path(folder).expanduser()
    with atomic_folder(target, overwrite=overwrite) as temporary:
        _save(_savable(tensors, target), temporary / weights_name, {})
        (temporary / CONFIG_NAME).write_text(settings, encoding="utf-8", newline="\n")
        for file in beside:
            shutil.copyfile(file, temporary / file.name)
        _write_plain(temporary, record, card)
    return target


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], overwrite: bool = False) -> Path:
    """Write one safetensors file, with a digest of its tensors in its header, as kohya's scripts do.

    Args:
        path: the file to be; parents are created.
        tensors: by key; on any device.
        metadata: fields of the header.
        overwrite: replace a file that is there already. Default: False.

    Returns:
        The file.

    Raises:
        OutputExistsError: the file is taken.
        AdapterError: there is no tensor, or one has no data.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     write_file(Path(parent, "style.safetensors"), {"w": torch.ones(2)}, {"ss_network_dim": "4"}).name
        'style.safetensors'
    """
    with atomic_file(path, overwrite) as temporary:
        found = _savable(tensors, path)
        _save(found, temporary, metadata)
        digest = tensors_digest(temporary, Origin(f"writing {path}", AdapterError))
        _save(found, temporary, {**metadata, HASH_FIELD: digest})
    return path


def tensors_digest(path: Path, origin: Origin) -> str:
    """sha256 of all that stands behind the header of a safetensors file."""
    with open_regular(path, origin) as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return digest_of(file)


def write_text(folder: Path, record: Mapping[str, Any], card: str) -> None:
    """Write the card and the record of what a folder holds; the record gets the digests of all that is there, `files`.

    Raises:
        TypeError: `record` holds something that is no JSON.
    """
    _write_plain(folder, plain(record, RECORD_NAME), card)


def _write_plain(folder: Path, record: Mapping[str, Any], card: str) -> None:
    """`write_text` of a record of plain values."""
    (folder / CARD_NAME).write_text(card, encoding="utf-8", newline="\n")
    origin = Origin(f"writing {folder}", AdapterError)
    files = {path.name: sha256(path, origin) for path in folder.iterdir() if path.name != RECORD_NAME}
    text = _text({**record, "files": files})
    (folder / RECORD_NAME).write_text(f"{text}\n", encoding="utf-8", newline="\n")


def _save(tensors: dict[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt", **metadata})
    except SafetensorError as error:  # says what the system said, in words of its own
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(file)) from error
    # safetensors may create its file readable by the owner only; the umask decides, as for the other files
    os.chmod(file, 0o666 & (file.parent.stat().st_mode & 0o777))


def _savable(tensors: Mapping[str, Tensor], target: Path) -> dict[str, Tensor]:
    """Sorted by name, on the CPU, contiguous, each with a storage of its own, as safetensors asks."""
    if not tensors:
        raise AdapterError(f"writing {target}: there is not one tensor to write; an adapter needs at least one module")
    out: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.is_meta:
            raise AdapterError(f"writing {target}: {name} is on the meta device and has no values; load it first")
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        storages.add(tensor.untyped_storage().data_ptr())
        out[name] = tensor
    return out


def json_text(data: Mapping[str, Any], name: str, lines: bool = True) -> str:
    """Plain values as JSON, sets as sorted lists, numbers that are not finite as null.

    Args:
        data: the values.
        name: of the file or field, for errors.
        lines: in lines, as the files have it; else all in one.

    Raises:
        TypeError: one is no plain value.
    """
    told = plain(data, name)
    return _text(told) + "\n" if lines else _ENCODER.encode(told)


def plain(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same with what JSON lacks replaced: sets by sorted lists, numbers that are not finite by None.

    Args:
        data: the values.
        name: of the file or field that they are for, for errors.

    Raises:
        TypeError: one is no plain value.
    """
    try:
        return {key: _plain(value) for key, value in data.items()}
    except TypeError as error:
        raise TypeError(f"writing {name}: {error}; give plain dicts, lists, strings and numbers") from error


def _text(value: Any, depth: int = 0) -> str:
    """JSON with a line for each entry of an object, down to objects that hold no others; fast, as these are many."""
    if depth and not (isinstance(value, dict) and any(isinstance(item, dict) for item in value.values())):
        return _ENCODER.encode(value)
    lines = [f"{'  ' * depth}  {_ENCODER.encode(key)}: {_text(value[key], depth + 1)}" for key in sorted(value)]
    return "{\n" + ",\n".join(lines) + f"\n{'  ' * depth}}}"


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (dict, Mapping)):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        if all(type(item) is int for item in value):  # the numbers of kept components, by far the most there is
            return list(value)
        return [_plain(item) for item in value]
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
