"""A file that stays open between reads, for as long as its object lives and a process may have it open."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import BinaryIO
from weakref import ref

#: Files that are open between reads; a process may have as few as 256, and there may be a thousand adapters.
MOST_OPEN = 128

_LOCK = threading.Lock()
_OPEN: deque[ref[OpenFile]] = deque()


class OpenFile:
    """Reads at any place of a file, from several threads at once.

    Beyond `MOST_OPEN` such files, the one that was opened first is closed; its next read opens it again.
    """

    def __init__(self) -> None:
        self._descriptor: _Descriptor | None = None

    def read(self, into: memoryview, offset: int, opened: Callable[[], BinaryIO]) -> int:
        """Fill a buffer from a place in the file.

        Args:
            into: the buffer, of bytes.
            offset: of the first byte.
            opened: opens the file; what it raises is raised.

        Returns:
            How many bytes came: fewer than the buffer has where the file ends.
        """
        descriptor = self._descriptor or self._open(opened)  # held here: another thread may let go of it meanwhile
        done = 0
        while done < len(into):
            count = descriptor.read(into[done:], offset + done)
            if not count:
                break
            done += count
        return done

    def _open(self, opened: Callable[[], BinaryIO]) -> _Descriptor:
        with opened() as file:
            descriptor = _Descriptor(os.dup(file.fileno()))
        with _LOCK:
            self._descriptor = descriptor
            _OPEN.append(ref(self))
            while len(_OPEN) > MOST_OPEN:
                if (oldest := _OPEN.popleft()()) is not None:
                    oldest._descriptor = None
        return descriptor


class _Descriptor:
    """A descriptor, closed when nothing refers to it any more."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = threading.Lock()

    def read(self, into: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.number, [into], offset)
        with self._lock:  # Windows: a seek and a read
            os.lseek(self.number, offset, os.SEEK_SET)
            data = os.read(self.number, len(into))
        into[: len(data)] = data
        return len(data)

    def __del__(self) -> None:
        os.close(self.number)
