"""Two folders exchange their names in one step, so that neither name is ever without a folder."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are as they are for everybody else
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS

#: What a system or a file system says that knows no such step.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders of one file system.

    Returns:
        False where the system or the file system cannot; nothing was done then.

    Raises:
        OSError: it can, and failed; nothing was done.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     one, other = Path(parent, "one"), Path(parent, "other")
        ...     one.mkdir(), (other / "inside").mkdir(parents=True)
        ...     done = exchange(one, other)
        ...     (one / "inside").exists() is done
        (None, None)
        True
    """
    system = platform.system()
    if system not in ("Linux", "Darwin"):
        return False
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if system == "Linux":
            failed = library.renameat2(_HERE, first, _HERE, second, _EXCHANGE)
        else:
            failed = library.renamex_np(first, second, _EXCHANGE)
    except (OSError, AttributeError):  # a C library without the call
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(other))
