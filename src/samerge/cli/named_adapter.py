"""The command line's way to name an adapter: `[name=]source[:weight]`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from samerge.errors import OptionError

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter of a merge, as the user names it.

    Args:
        name: what to call it.
        source: folder or hub id.
        weight: its weight.
    """

    name: str
    source: str
    weight: float = 1.0


def parse_adapter(
    text: str, is_folder: Callable[[str], bool] = lambda path: Path(path).is_dir(), option: str = "--adapter"
) -> AdapterSpec:
    """An adapter from `[name=]source[:weight]`.

    A name ends at the first `=` and holds no slash; a weight is a number after the last colon. What names an existing
    folder as it stands is that folder, whatever `=` and `:` it has; the colon of a drive letter is not a weight's.

    Args:
        text: what the user wrote.
        is_folder: whether a path is an existing folder.
        option: where the user wrote it, for messages.

    Raises:
        OptionError: the name or the source is empty.

    Example:
        >>> parse_adapter("code=./code-lora:0.8")
        AdapterSpec(name='code', source='./code-lora', weight=0.8)
        >>> parse_adapter("ada/math-lora")
        AdapterSpec(name='math-lora', source='ada/math-lora', weight=1.0)
    """
    name, source, weight = None, text, 1.0
    if not is_folder(source):
        before, equals, after = source.partition("=")
        if equals and "/" not in before and "\\" not in before:
            name, source = before.strip(), after
    if not is_folder(source):
        before, colon, after = source.rpartition(":")
        drive = len(before) == 1 and before.isalpha() and not is_folder(before)
        if colon and not drive and _NUMBER.fullmatch(after.strip()):
            source, weight = before, float(after)
    if not source.strip() or name == "":
        raise OptionError(
            f"{option} {text!r}: the {'name' if name == '' else 'source'} is empty; write [name=]source[:weight], "
            "such as math=ada/math-lora:0.8"
        )
    return AdapterSpec(default_name(source) if name is None else name, source, weight)


def default_name(source: str) -> str:
    """The last part of a folder or hub id, of either kind of system.

    Example:
        >>> default_name("ada/math-lora"), default_name("runs/code/"), default_name("C:\\\\loras\\\\code")
        ('math-lora', 'code', 'code')
    """
    return PureWindowsPath(source).name or Path(source).resolve().name or source


def unique(adapters: Sequence[AdapterSpec], what: str = "adapter") -> tuple[AdapterSpec, ...]:
    """The adapters (or whatever `what` is), at least one, each of another name.

    Raises:
        OptionError: none, or a name twice.
    """
    if not adapters:
        raise OptionError(f"no {what} given; name at least one with --{what} [name=]source[:weight]")
    seen: dict[str, str] = {}
    for adapter in adapters:
        if adapter.name in seen:
            raise OptionError(
                f"two {what}s are called {adapter.name!r}: {seen[adapter.name]} and {adapter.source}; give them "
                f"different names, such as {adapter.name}-2={adapter.source}"
            )
        seen[adapter.name] = adapter.source
    return tuple(adapters)
