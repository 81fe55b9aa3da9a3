"""Write an adapter folder whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from samerge.errors import AdapterError, OutputExistsError
from samerge.weights.hub import CONFIG_NAME, WEIGHTS_NAME

RECORD_NAME = "samerge.json"
CARD_NAME = "README.md"

# What `hf download --local-dir` leaves in a folder; nothing of the user's is lost with it.
_DISPOSABLE_FOLDERS = frozenset({".cache"})

logger = logging.getLogger(__name__)


def write_adapter(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    card: str,
    overwrite: bool = False,
) -> Path:
    """Write an adapter in PEFT's layout, with its record and its card; the same input gives the same bytes.

    Args:
        folder: where to; parents are created.
        tensors: by PEFT's key, `base_model.model.<module>.lora_A.weight` and so on; on any device.
        config: what goes into `adapter_config.json`; sets are written as sorted lists.
        record: what goes into `samerge.json`; numbers that are not finite are written as null.
        card: the text of `README.md`.
        overwrite: replace an adapter folder that is already there. Default: False.

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
    texts = {CONFIG_NAME: _json(config, CONFIG_NAME), RECORD_NAME: _json(record, RECORD_NAME), CARD_NAME: card}
    target = Path(folder).expanduser()
    with atomic_folder(target, overwrite=overwrite) as temporary:
        save_file(_savable(tensors, target), temporary / WEIGHTS_NAME, metadata={"format": "pt"})
        # safetensors may create its file readable by the owner only; the umask decides, as for the other files
        os.chmod(temporary / WEIGHTS_NAME, 0o666 & (temporary.stat().st_mode & 0o777))
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8", newline="\n")
    return target


def write_text(folder: Path, record: Mapping[str, Any], card: str) -> None:
    """Write the record and the card of a model into a folder.

    Raises:
        TypeError: `record` holds something that is no JSON.
    """
    for name, text in ((RECORD_NAME, _json(record, RECORD_NAME)), (CARD_NAME, card)):
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def atomic_folder(target: str | Path, overwrite: bool = False, marker: str = CONFIG_NAME) -> Iterator[Path]:
    """Fill a folder under a temporary name; it gets its own name, complete and on the disk, when the block ends well.

    If the block or the renaming fails, whatever the exception, the temporary folder is removed and what was at
    `target` is there as before. With `overwrite` the old folder is moved aside between two renames: a machine that
    dies in between leaves it beside the target as `.<name>.<random>.old`.

    Args:
        target: the folder to be. Its parents are created.
        overwrite: replace the folder if it is there. Default: False.
        marker: the file that shows that an existing folder is one of the kind that may be replaced; an empty folder
            may be replaced too. Default: `adapter_config.json`.

    Yields:
        The temporary folder to fill, beside the target.

    Raises:
        OutputExistsError: the target is taken, or is not a folder that may be replaced.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with atomic_folder(parent + "/out") as temporary:
        ...         _ = (temporary / "a.txt").write_text("a")
        ...     [path.name for path in Path(parent, "out").iterdir()]
        ['a.txt']
    """
    # abspath and not resolve: a link at the target itself must be seen, not followed
    final = Path(os.path.abspath(Path(target).expanduser()))
    check_free(final, overwrite, marker)
    stem = f".{final.name[:60]}.{secrets.token_hex(6)}"
    temporary, aside = final.with_name(stem + ".tmp"), final.with_name(stem + ".old")
    created: list[Path] = []
    try:
        _make_parents(final, created)
        temporary.mkdir()  # not tempfile.mkdtemp, whose 0700 would stay with the output
        yield temporary
        _sync(temporary)
        check_free(final, overwrite, marker)  # again: filling may have taken hours
        _swap(temporary, final, aside, replace=overwrite and final.exists())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        if aside.exists():
            logger.warning("the old output is now in %s and could not be moved back or removed", aside)
        for parent in reversed(created):
            with contextlib.suppress(OSError):  # not empty: the output is there, or someone else's files
                parent.rmdir()


def check_free(target: Path, overwrite: bool = False, marker: str = CONFIG_NAME) -> None:
    """Check that `target` may be written, before the work that fills it: it is absent, or may be replaced.

    Args:
        target: the folder to be.
        overwrite: replace it if it is there. Default: False.
        marker: the file that shows that an existing folder is one of the kind that may be replaced.

    Raises:
        OutputExistsError: it is taken, or is not a folder that may be replaced.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise OutputExistsError(
            f"writing {target}: it exists already; choose another folder, or replace it with overwrite=True "
            "(--overwrite on the command line)"
        )
    if target.is_symlink():
        raise OutputExistsError(
            f"writing {target}: it is a symbolic link, and only real folders are replaced; give the folder that it "
            f"points to ({os.path.realpath(target)}), or remove the link"
        )
    if not target.is_dir():
        raise OutputExistsError(f"writing {target}: it is a file, not a folder; choose another name, or remove it")
    here = Path.cwd()
    if target.resolve() in (here, *here.parents):
        raise OutputExistsError(
            f"writing {target}: it is, or holds, the current folder, and would be replaced as a whole; choose a "
            "folder inside it"
        )
    found = sorted(target.iterdir())
    if found and not (target / marker).is_file():
        raise OutputExistsError(
            f"writing {target}: it is not empty and holds no {marker}, so it is left alone (it holds "
            f"{found[0].name!r}); choose another folder, or empty this one first"
        )
    for path in found:
        if path.is_dir() and path.name not in _DISPOSABLE_FOLDERS:
            raise OutputExistsError(
                f"writing {target}: it holds the folder {path.name!r}, which would be lost; choose another folder, "
                "or move that one away first"
            )


def _make_parents(target: Path, created: list[Path]) -> None:
    """Create the missing parents of `target`, outermost first, noting each in `created`."""
    missing = [parent for parent in target.parents if not parent.exists()]
    first = target.parents[len(missing)]
    if not first.is_dir():
        raise OutputExistsError(
            f"writing {target}: {first} is a file and cannot hold folders; choose another folder, or remove the file"
        )
    for parent in reversed(missing):
        created.append(parent)  # first: an interrupt may come right after the folder is made
        parent.mkdir(exist_ok=True)


def _swap(temporary: Path, target: Path, aside: Path, replace: bool) -> None:
    """Give `temporary` the name `target`; what had that name is left in `aside`, or has it back if anything fails."""
    try:
        if replace:
            os.rename(target, aside)
        os.rename(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise OutputExistsError(
            f"writing {target}: another process wrote it meanwhile; choose another folder, or run again with "
            "overwrite=True (--overwrite on the command line)"
        ) from error
    finally:
        # Judged by what is on the disk: an interrupt can come between a rename and the next line.
        if aside.exists() and not target.exists():
            os.rename(aside, target)
    _sync_folder(target.parent)


def _sync(folder: Path) -> None:
    """Bring every file and folder below `folder` to the disk, and `folder` itself."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(os.path.join(root, name), os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _json(data: Mapping[str, Any], name: str) -> str:
    try:
        return json.dumps(_plain(data), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    except TypeError as error:
        raise TypeError(f"writing {name}: {error}; give plain dicts, lists, strings and numbers") from error


def _plain(value: Any) -> Any:
    """The same with what JSON lacks replaced: sets by sorted lists, numbers that are not finite by None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [_plain(item) for item in sorted(value)]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
