"""The command line's way to name an adapter, `[NAME=]SOURCE[:WEIGHT]`, and its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samerge.errors import OptionError

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|nan)", re.IGNORECASE)
_COMMA = re.compile(r"[+-]?\d+,\d+")


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
    text: str, is_folder: Callable[[str], bool] = lambda path: Path(path).exists(), option: str = "--adapter"
) -> AdapterSpec:
    """An adapter from `[name=]source[:weight]`.

    A name ends at the first `=` and holds no slash; a weight is a number after the last colon. What names an existing
    folder as it stands is that folder, whatever `=` and `:` it has; the colon of a drive letter is not a weight's.

    Args:
        text: what the user wrote.
        is_folder: whether a path is an existing folder or file.
        option: where the user wrote it, for messages.

    Raises:
        OptionError: the name or the source is empty, or a weight is written in another way.

    Example:
        >>> parse_adapter("code=./code-lora:0.8")
        AdapterSpec(name='code', source='./code-lora', weight=0.8)
        >>> parse_adapter("ada/math-lora@v2")
        AdapterSpec(name='math-lora', source='ada/math-lora@v2', weight=1.0)
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
        elif colon and _COMMA.fullmatch(after):
            raise OptionError(
                f"{option} {text!r}: a weight is written with a point: {before}:{after.replace(',', '.')}"
            )
        elif colon and not drive and not set("/\\") & set(after):
            raise OptionError(
                f"{option} {text!r}: {after!r} is no number, and a weight stands behind the last colon, such as "
                f"{before or 'ada/math-lora'}:0.8; no folder here is called so"
            )
    if not source.strip() or name == "":
        raise OptionError(
            f"{option} {text!r}: the {'name' if name == '' else 'source'} is empty; write [name=]source[:weight], "
            "such as math=ada/math-lora:0.8"
        )
    if not is_folder(source):
        _weight_after_equals(text, option)
    return AdapterSpec(default_name(source) if name is None else name, source, weight)


def _weight_after_equals(text: str, option: str) -> None:
    """Refuse `./math=0.8`, which is no path and no name of anything."""
    before, _, after = text.rpartition("=")
    if before and "=" not in before and (_NUMBER.fullmatch(after) or _COMMA.fullmatch(after)):
        raise OptionError(
            f"{option} {text!r}: a weight stands behind a colon: {before}:{after.replace(',', '.')}; what stands "
            f"before an equals sign is a name"
        )


def default_name(source: str) -> str:
    """As `samerge.weights.hub.default_name`, which a command's help does not load."""
    from samerge.weights import hub

    return hub.default_name(source)


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


def given_adapters(*texts: Sequence[str] | None) -> tuple[AdapterSpec, ...]:
    """The adapters of all places where the user named some."""
    return unique([parse_adapter(text) for place in texts for text in place or ()])


def given_one(doing: str, *texts: Sequence[str] | None) -> AdapterSpec:
    """The only adapter, without a weight.

    Args:
        doing: the command.
        *texts: what the user named, place by place.

    Raises:
        OptionError: there are several, or it has a weight.
    """
    first, *others = given_adapters(*texts)
    if others or first.weight != 1:
        raise OptionError(f"{doing} takes one adapter, without a weight; samerge merge takes several")
    return first


def given_weights(text: str | None, adapters: Sequence[AdapterSpec]) -> dict[str, float] | str:
    """The weights: those behind the adapters, or those of `--weights`, numbers in order or by name, or a word.

    Raises:
        OptionError: both, or not one for each adapter.

    Example:
        >>> given_weights("0.5,1", [AdapterSpec("a", "x/a"), AdapterSpec("b", "x/b")])
        {'a': 0.5, 'b': 1.0}
    """
    if text is None:
        return {adapter.name: adapter.weight for adapter in adapters}
    if any(adapter.weight != 1 for adapter in adapters):
        raise OptionError(f"--weights {text} and weights behind single adapters together: give one or the other")
    names = [adapter.name for adapter in adapters]
    parts = [part.strip() for part in text.split(",")]
    if "=" in text:
        pairs = [part.partition("=") for part in parts]
        wrong = [name for name, _, _ in pairs if name.strip() not in names]
        if wrong:
            raise OptionError(f"--weights {text}: no adapter is called {wrong[0]!r}; there are {', '.join(names)}")
        return dict.fromkeys(names, 1.0) | {name.strip(): _number(value, text) for name, _, value in pairs}
    if len(parts) == 1 and not _NUMBER.fullmatch(text):
        return text
    if text.lower() == "nan":
        return "nan"
    if len(parts) != len(names):
        raise OptionError(f"--weights {text}: {len(parts)} weights for {len(names)} adapters; give one for each")
    return {name: _number(part, text) for name, part in zip(names, parts, strict=True)}


def _number(part: str, text: str) -> float:
    if not _NUMBER.fullmatch(part.strip()):
        raise OptionError(f"--weights {text}: {part!r} is no number; write 0.5,0.5 or math=0.5,code=1, or nan")
    return float(part)
