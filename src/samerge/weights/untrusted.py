"""A stranger's files, opened and parsed within bounds: every file that samerge did not just write is read through here.

Only regular files are opened, so that no pipe blocks and no device flows on for ever. What is read whole has a limit
that is checked before it is parsed, and JSON is parsed strictly: UTF-8, an object, no key twice, no value that other
readers would take otherwise.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from samerge.errors import BaseModelError, SamergeError

#: Bytes of a configuration, an index or a header; the largest that are known have a tenth of it.
MOST_BYTES = 32 * 2**20
#: Bytes of the record of a merge, which may list the kept components of many adapters in many layers.
MOST_RECORD_BYTES = 256 * 2**20
#: Values in one JSON text, counted by its commas and brackets: what bounds the memory of the parsed text.
MOST_VALUES = 8_000_000
#: How deep lists and objects may lie in each other.
MOST_DEPTH = 64
#: Digits of a whole number. More than any quantity has; few enough to become a float.
MOST_DIGITS = 40


@dataclass(frozen=True)
class Origin:
    """What is being read, so that every error about it says so.

    Args:
        doing: as in "reading adapter 'math'".
        error: the class of the errors.
    """

    doing: str
    error: type[SamergeError] = BaseModelError

    def refusal(self, problem: str) -> SamergeError:
        """The error to raise about a problem."""
        return self.error(f"{self.doing}: {problem}")


@dataclass(frozen=True)
class Identity:
    """What tells that a file is still the one that was opened: another file, or one written to, differs in it."""

    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, file: int | Path) -> Identity:
        """That of an open file by its descriptor, or of the file that a path leads to."""
        found = os.stat(file)
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


def open_regular(path: Path, origin: Origin) -> BinaryIO:
    """Open a regular file for reading, unbuffered.

    Raises:
        SamergeError: of the origin's class; it is none, or cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check_regular(os.stat(path).st_mode, path, origin)  # first: to open a device can do something already
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        if isinstance(error, SamergeError):
            raise
        told = getattr(error, "strerror", None) or str(error)
        raise origin.refusal(f"{path} cannot be opened: {told}") from error
    try:
        _check_regular(os.fstat(descriptor).st_mode, path, origin)
    except SamergeError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb", buffering=0)


def sha256(path: Path, origin: Origin) -> str:
    """The digest of a regular file, of any size.

    Raises:
        SamergeError: of the origin's class; it is no regular file, or cannot be opened.
    """
    with open_regular(path, origin) as file:
        return digest_of(file)


def digest_of(file: BinaryIO) -> str:
    """The digest of what an open file holds from here on."""
    found = hashlib.sha256()
    while chunk := file.read(1 << 20):
        found.update(chunk)
    return found.hexdigest()


def _check_regular(mode: int, path: Path, origin: Origin) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise origin.refusal(f"{path} is {kind}, and only regular files are opened; put the file itself there")


def read_bytes(path: Path, origin: Origin, most: int = MOST_BYTES) -> bytes:
    """All of a file that is no larger than `most` bytes.

    Raises:
        SamergeError: of the origin's class; it is larger, no regular file, or cannot be read.
    """
    parts: list[bytes] = []
    size = 0
    with open_regular(path, origin) as file:
        while size <= most:
            try:
                part = file.read(min(1 << 20, most + 1 - size))
            except OSError as error:
                raise origin.refusal(f"{path} cannot be read: {error.strerror or error}") from error
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
    raise origin.refusal(
        f"{path} is larger than {most} bytes, the most that is read of such a file; is it the right one?"
    )


def read_json(path: Path, origin: Origin, most: int = MOST_BYTES, infinite: bool = False) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.
        origin: what is being read, for errors.
        most: bytes that it may have.
        infinite: whether NaN and Infinity, which are no JSON, are taken. Python writes them.

    Raises:
        SamergeError: of the origin's class; it says what is wrong with the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "config.json")
        >>> _ = path.write_text('{"r": 4, "r": 8}')
        >>> read_json(path, Origin("reading adapter 'a'"))
        Traceback (most recent call last):
        ...
        samerge.errors.BaseModelError: reading adapter 'a': config.json is not valid JSON: the key 'r' stands there
        twice
    """
    return parse_json(read_bytes(path, origin, most), path.name, origin, infinite)


def parse_json(data: bytes, name: str, origin: Origin, infinite: bool = False) -> dict[str, Any]:
    """The object that the bytes of a JSON text hold; `name` is what to call it. Otherwise as `read_json`."""
    values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if values > MOST_VALUES:
        raise origin.refusal(f"{name} holds {values} values, more than the {MOST_VALUES} that are read of such a text")
    number = float if infinite else _finite
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=number,
            parse_constant=number,
        )
        _check(found)
    except UnicodeDecodeError as error:
        raise origin.refusal(f"{name} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except (ValueError, RecursionError) as error:
        told = f"nested deeper than {MOST_DEPTH}" if isinstance(error, RecursionError) else str(error)
        raise origin.refusal(f"{name} is not valid JSON: {told}") from error
    if not isinstance(found, dict):
        raise origin.refusal(f"{name} holds no object with fields, but a {type(found).__name__}; is it the right file?")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands there twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:MOST_DIGITS]} is not finite")
    return value


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"the number {text[:MOST_DIGITS]}... has {len(text)} digits")
    return int(text)


def _check(root: object) -> None:
    """Refuse what is too deep, and halves of surrogate pairs, which cannot be written again."""
    level: list[Any] = [root]
    for _ in range(MOST_DEPTH + 1):
        below: list[Any] = []
        for value in level:
            kind = type(value)
            if kind is str:
                _check_text(value)
            elif kind is dict:
                for key in value:
                    _check_text(key)
                below.extend(value.values())
            elif kind is list:
                below.extend(value)
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {MOST_DEPTH}")


def _check_text(text: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"the text {text[:60]!r} holds half of a surrogate pair")
