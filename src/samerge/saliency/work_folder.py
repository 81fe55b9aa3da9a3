"""A folder for what is too large for memory: one for each run, removed when the run ends, or by the next one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import weakref
from pathlib import Path

from samerge.errors import OptionError

_NAME = "samerge-work"
_LOCK = "lock"


class WorkFolder:
    """A run's own folder inside `parent`. What killed runs left there is removed first; runs that live are left alone.

    A run holds a lock on a file of its folder. The system lets go of it when the process ends, however it ends.

    Args:
        parent: an existing folder, or one to be made.

    Raises:
        OptionError: nothing can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     work = WorkFolder(parent)
        ...     there = work.path.is_dir()
        ...     work.close()
        ...     there, work.path.exists()
        (True, False)
    """

    def __init__(self, parent: str | Path) -> None:
        home = Path(parent).expanduser() / _NAME
        try:
            home.mkdir(parents=True, exist_ok=True)
            _sweep(home)
            self.path = home / f"{os.getpid()}-{secrets.token_hex(4)}"
            self.path.mkdir()
            lock = _locked(self.path / _LOCK)
        except OSError as error:
            raise OptionError(
                f"work_dir={str(parent)!r} cannot be used: {error}; give a folder that can be written to"
            ) from error
        self._end = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove the folder; happens by itself when nobody holds this object any more, and at the end of Python."""
        self._end()


def _sweep(home: Path) -> None:
    """Remove the folders of runs that are no more."""
    for folder in home.iterdir():
        with contextlib.suppress(OSError):  # another run lives there, or removes it at this moment
            os.close(_locked(folder / _LOCK))
            shutil.rmtree(folder)


def _remove(folder: Path, lock: int | None) -> None:
    if lock is not None:
        with contextlib.suppress(OSError):
            os.close(lock)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty: other runs
        folder.parent.rmdir()


def _locked(file: Path) -> int:
    """Open and lock a file.

    Raises:
        OSError: somebody else holds the lock.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
