"""Whether an output could be made where it shall be, found out before the work that fills it."""

from __future__ import annotations

import secrets
from pathlib import Path

from samerge.adapters.atomic import absolute, check_free_file
from samerge.errors import OutputExistsError


def check_file(path: str | Path, overwrite: bool) -> Path:
    """The place of a file in full; refused, before any long work, where it could not be written.

    Args:
        path: the file to be.
        overwrite: replace it if it is there.

    Raises:
        OutputExistsError: it is taken, there is something else than a file, or its folder cannot be written to.
    """
    target = absolute(path)
    check_free_file(target, overwrite)
    check_parent(target)
    return target


def check_parent(target: Path) -> None:
    """Check that `target`, absolute, could be made: by making, and removing, a folder where it or its parents would be.

    Asking for the permission is not enough: root has it everywhere, and a disk or a special folder refuses even so.

    Raises:
        OutputExistsError: it could not.
    """
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir():
        raise OutputExistsError(f"writing {target}: {parent} is a file and cannot hold it; choose another place")
    probe = parent / f".samerge.{secrets.token_hex(6)}.tmp"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OutputExistsError(
            f"writing {target}: nothing can be written in {parent} ({error.strerror}); choose another place"
        ) from error
