"""Compiling a C file of the package with the system's compiler, once for each machine.

The shared library lies in the user's cache folder under a name that is a hash of the source, the flags, and all macros
that the compiler defines with these flags: its version and every feature of the processor that `native` stands for. So
another processor, compiler or release never meets a library that was not made for it. A second hash in the name is that
of the library itself: to load one that lost its end, in a full disk or a crash, would end the process.

To load a library is to run it. So the cache is used only where nobody else can have put one: the folder and the library
are the user's own, real ones and no links, and no other user may write to them. Anything else is not touched, and the
library is made in a private temporary folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from samerge.errors import KernelError

#: No flag may let the compiler assume that NaN and infinity do not occur: they must reach the flows.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")

_NATIVE = {"x86_64": "-march=native", "AMD64": "-march=native", "arm64": "-mcpu=native", "aarch64": "-mcpu=native"}
_SECONDS = 300


def compiled(source: Path) -> ctypes.CDLL:
    """The shared library of a C file, from the cache or compiled now.

    The compiler is `$CC`, or else `cc`. Several processes may come at once: each writes a file of its own and renames
    it. One in the cache that is damaged or cannot be loaded is compiled anew. Where the cache folder cannot be written,
    or others can write to it, the library is made in a temporary one for this process alone.

    Raises:
        KernelError: there is no compiler, it fails, or what it made cannot be loaded.
    """
    native = _NATIVE.get(platform.machine())
    command = [*_compiler(), *FLAGS, *([native] if native else [])]
    macros = _run([*command, "-dM", "-E", "-x", "c", os.devnull])
    key = hashlib.sha256(b"\0".join([source.read_bytes(), " ".join(command[1:]).encode(), macros])).hexdigest()
    name = f"{source.stem}-{key[:24]}"
    try:
        cache = cache_folder()
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_private(cache, stat.S_ISDIR)
        for cached in sorted(cache.glob(f"{name}-*.so")):
            with suppress(
                KernelError, PermissionError
            ):  # made for another C library, say; the next one tells its error
                _check_private(cached, stat.S_ISREG)
                if cached.stem == f"{name}-{_digest(cached)}":
                    return _load(cached)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = _compile(command, source, Path(folder) / f"{name}.so")
            cached = cache / f"{name}-{_digest(made)}.so"
            os.replace(made, cached)
    except OSError:  # a cache that cannot be read or written, or not by us alone, or a user without a home
        with tempfile.TemporaryDirectory() as folder:
            return _load(_compile(command, source, Path(folder) / f"{name}.so"))
    return _load(cached)


def cache_folder() -> Path:
    """Where compiled libraries are kept: `samerge` in the user's cache folder.

    Raises:
        OSError: the user has no home.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if given.is_absolute():  # a relative one is to be ignored, as its specification has it
        return given / "samerge"
    try:
        home = Path.home()
    except RuntimeError as error:  # as for a user of a container that has no entry in its passwd
        raise FileNotFoundError(str(error)) from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "samerge"


def _check_private(path: Path, is_kind: Callable[[int], bool]) -> None:
    """Check that a folder or a file is itself, and no link, of this user, and that nobody else may write to it.

    Raises:
        PermissionError: it is not.
    """
    found = os.lstat(path)
    if not hasattr(os, "getuid"):  # on Windows a user's cache folder is the user's
        return
    mode = stat.S_IMODE(found.st_mode)
    if not is_kind(found.st_mode) or found.st_uid != os.getuid() or mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} could be another user's (owner {found.st_uid}, mode {mode:o})")


def _compiler() -> list[str]:
    """`$CC`, or else `cc`, in words."""
    given = os.environ.get("CC", "")
    try:
        return shlex.split(given) or ["cc"]
    except ValueError as error:
        raise KernelError(f"CC={given!r} cannot be split into words ({error}); name a C compiler in it") from error


def _compile(command: list[str], source: Path, target: Path) -> Path:
    _run([*command, "-o", str(target), str(source)])
    return target


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24]


def _run(command: list[str]) -> bytes:
    shown = shlex.join(command)
    try:
        run = subprocess.run(command, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise KernelError(f"there is no C compiler {command[0]!r} ({error}); install one, or name one in CC") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"the C compiler took more than {_SECONDS} s: {shown}") from error
    if run.returncode:
        lines = run.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {run.returncode}"]
        raise KernelError(f"the C compiler failed: {lines[0]} (command: {shown})")
    return run.stdout


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(
            f"the compiled kernel cannot be loaded: {error}; name another C compiler in CC, or in XDG_CACHE_HOME a "
            f"folder that libraries can be loaded from"
        ) from error
