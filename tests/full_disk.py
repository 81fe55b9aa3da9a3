"""A disk that fills while a file is written."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any


def filled(write: Callable[..., int]) -> Callable[..., int]:
    """`Path.write_text` or `Path.write_bytes` on such a disk: half of it comes there, and then an error."""

    def half(path: Path, data: Any, **how: Any) -> int:
        write(path, data[: len(data) // 2], **how)
        raise OSError(errno.ENOSPC, "No space left on device")

    return half
