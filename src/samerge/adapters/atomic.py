"""A folder, or a file, that is there whole or not at all, whatever fails and whenever."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from samerge.adapters.exchange import exchange
from samerge.errors import OutputExistsError
from samerge.weights.hub import CONFIG_NAME

# What `hf download --local-dir` leaves in a folder; nothing of the user's is lost with it.
_DISPOSABLE_FOLDERS = frozenset({".cache"})

#: Letters of the target's name in that of the temporary folder: a name may have 255 bytes.
_LETTERS = 48

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_folder(target: str | Path, overwrite: bool = False, marker: str = CONFIG_NAME) -> Iterator[Path]:
    """Fill a folder under a temporary name; it gets its own name, complete and on the disk, when the block ends well.

    If the block or the renaming fails, whatever the exception, the temporary folder is removed and what was at
    `target` is there as before. With `overwrite` the two folders exchange their names in one step, where the system can
    do that (Linux, macOS). Elsewhere the old folder is moved aside between two renames: a machine that dies in between
    leaves it beside the target as `.<name>.<random>.old`, and the next run gives it its name back. The next run also
    removes the temporary folders of runs that were killed: a living run holds a lock on its own.

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
    final = absolute(target)
    aside = final.with_name(f"{_stem(final)}.{secrets.token_hex(6)}.old")
    with _temporary(final, lambda: check_free(final, overwrite, marker)) as (temporary, locks):
        try:
            yield temporary
            _sync(temporary)
            check_free(final, overwrite, marker)  # again: filling may have taken hours
            _swap(temporary, final, aside, overwrite and final.exists(), locks)
        finally:
            if final.exists():
                _remove(aside)
            if aside.exists():
                logger.warning("the old output is now in %s and could not be moved back or removed", aside)


@contextlib.contextmanager
def atomic_file(target: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Write a file in a temporary folder beside it; it gets its place, complete and on the disk, when the block ends.

    As `atomic_folder`: a failure leaves what was there, and the next run removes what killed runs have left.

    Args:
        target: the file to be. Its parents are created.
        overwrite: replace the file if it is there. Default: False.

    Yields:
        The file to write, in the temporary folder.

    Raises:
        OutputExistsError: the target is taken, or is no file that may be replaced.
    """
    final = absolute(target)
    with _temporary(final, lambda: check_free_file(final, overwrite)) as (temporary, _):
        yield temporary / final.name
        _sync(temporary)
        check_free_file(final, overwrite)  # again: writing may have taken hours
        os.replace(temporary / final.name, final)
        _sync_folder(final.parent)


@contextlib.contextmanager
def _temporary(final: Path, check: Callable[[], None]) -> Iterator[tuple[Path, contextlib.ExitStack]]:
    """A folder beside a target, and what locks it; it is removed again, and so are parents that were made in vain.

    Args:
        final: the target.
        check: refuses a target that is taken; called once what killed runs left beside it is cleared up.
    """
    _clear_up(final)
    check()
    temporary: Path | None = None
    created: list[Path] = []
    with contextlib.ExitStack() as locks:
        try:
            _make_parents(final, created)
            temporary = _made(final, locks)
            yield temporary, locks
        finally:
            if temporary is not None:
                _remove(temporary)
            for parent in reversed(created):
                with contextlib.suppress(OSError):  # not empty: the output is there, or someone else's files
                    parent.rmdir()


def absolute(target: str | Path) -> Path:
    """A place in full: abspath and not resolve, as a link at the target itself must be seen, not followed."""
    return Path(os.path.abspath(Path(target).expanduser()))


def is_at(source: Path, target: Path) -> bool:
    """Whether what is read would go with what is at a target: it is that folder or file, or a file in that folder."""
    place = source.parent if target.is_dir() and source.is_file() else source
    return target.exists() and place.exists() and os.path.samefile(place, target)


def refuse_sources(target: Path, sources: Iterable[str]) -> None:
    """Refuse a place that holds what is read, and which would be replaced.

    Args:
        target: the folder or file to be.
        sources: what is read, as the user named it; what is no path here is on the Hub.

    Raises:
        OutputExistsError: it is the place of one of them.
    """
    for source in sources:
        if is_at(Path(source).expanduser(), target):
            raise OutputExistsError(
                f"writing {target}: it is the place of {source!r}, which is read and would be replaced; choose another "
                f"one"
            )


def check_free_file(target: Path, overwrite: bool = False) -> None:
    """Check that the file `target` may be written: it is absent, or a file and may be replaced.

    Raises:
        OutputExistsError: it is taken, or is no file.
    """
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_file():
        raise OutputExistsError(f"writing {target}: it is there and no regular file; choose another name")
    if not overwrite:
        raise OutputExistsError(
            f"writing {target}: it exists already; choose another name, or replace it with overwrite=True"
        )


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
            f"writing {target}: it exists already; choose another folder, or replace it with overwrite=True"
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


def _remove(folder: Path) -> None:
    """Remove a folder, also where an interrupt comes meanwhile."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _stem(target: Path) -> str:
    """What the names of a target's temporary folders begin with: its own name, or enough to tell it."""
    name = target.name
    if len(name.encode()) <= _LETTERS:
        return f".{name}"
    return f".{name[: _LETTERS // 4]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _made(target: Path, locks: contextlib.ExitStack) -> Path:
    """A new, empty folder beside the target, locked until `locks` closes."""
    while True:
        folder = target.with_name(f"{_stem(target)}.{secrets.token_hex(6)}.tmp")
        try:
            folder.mkdir()  # not tempfile.mkdtemp, whose 0700 would stay with the output
            if _lock(folder, locks) is not False and folder.is_dir():
                return folder
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmdir()
            raise
        # another run took it for a killed one's, before the lock was on it, and removes it


def _lock(folder: Path, locks: contextlib.ExitStack) -> bool | None:
    """Lock a folder until `locks` closes: True; False, another run has it; None, this system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    locks.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _clear_up(target: Path) -> None:
    """Finish what killed runs left beside a target: give it back its old folder, remove what is no more of use."""
    pattern = re.compile(re.escape(_stem(target)) + r"\.[0-9a-f]{12}\.(tmp|old)")
    with contextlib.suppress(OSError), contextlib.ExitStack() as locks:
        left = sorted(path for path in target.parent.iterdir() if pattern.fullmatch(path.name))
        dead = [path for path in left if _lock(path, locks) is True]
        for path in dead:
            if path.suffix == ".old" and not os.path.lexists(target):
                os.rename(path, target)
                logger.warning("%s is back: a run that was to replace it had been killed", target)
            else:
                shutil.rmtree(path, ignore_errors=True)


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


def _swap(temporary: Path, target: Path, aside: Path, replace: bool, locks: contextlib.ExitStack) -> None:
    """Give `temporary` the name `target`.

    What had that name is then in `temporary` or `aside`, or has it back if anything fails.
    """
    try:
        if not (replace and exchange(temporary, target)):
            if replace:
                _lock(target, locks)  # it goes with the folder: another run must not take it for a killed one's
                os.rename(target, aside)
            os.rename(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise OutputExistsError(
            f"writing {target}: another process wrote it meanwhile; choose another folder, or run again with "
            "overwrite=True"
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
            _sync_one(os.path.join(root, name), os.O_RDWR)
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    if os.name != "nt":  # Windows opens no folders
        _sync_one(folder, os.O_RDONLY)


def _sync_one(path: str | Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
