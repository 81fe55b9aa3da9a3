"""The table of formats. To add one: a file beside this one, and a line below."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from samerge.adapters.formats import adalora, diffusers, gguf, kohya, lycoris, mlx, peft
from samerge.adapters.formats.format import Content, Format, Place
from samerge.adapters.formats.header import RECORD_FIELD
from samerge.adapters.formats.place import find
from samerge.adapters.model import Adapter
from samerge.errors import AdapterError, OptionError
from samerge.weights.tensorfile import TensorFile
from samerge.weights.untrusted import Origin

#: In the order in which they are asked whether a file is theirs.
FORMATS: tuple[Format, ...] = (
    gguf.FORMAT,
    mlx.FORMAT,
    kohya.FORMAT,
    adalora.FORMAT,
    lycoris.FORMAT,
    diffusers.FORMAT,
    peft.FORMAT,
)
DEFAULT = peft.FORMAT
#: Keys that a message shows.
_SHOWN = 2
_INTO_ITS_BASE = "merge it into its base model, and turn the result into a LoRA with samerge extract"
#: What else is shared as if it were a LoRA: the end of a key -> what it is, and the way out.
_OTHERS: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r".*\.[ab][12]\.weight"), "GLoRA of LyCORIS", _INTO_ITS_BASE),
    (re.compile(r".*\.on_input"), "(IA)^3 of LyCORIS, which scales outputs and adds nothing", _INTO_ITS_BASE),
    (re.compile(r".*\.oft_(?:blocks|diag)"), "OFT or BOFT, which turns the base's weights", _INTO_ITS_BASE),
    (re.compile(r".*\.(?:diff(?:_b)?|[wb]_norm)"), "whole weights' changes, none of them a LoRA", _INTO_ITS_BASE),
    (
        re.compile(r".*\.processor\.(?:proj|qkv)_lora\d?\.(?:down|up)\.weight"),
        "XLabs' LoRA of Flux",
        "diffusers reads it: pipe.load_lora_weights, and merge it on the pipeline, under its name there",
    ),
    (
        re.compile(r"emb_params|clip_[lg]|string_to_param.*"),
        "a textual inversion, an embedding of a word",
        "it changes no weight: use it beside a merged LoRA",
    ),
)


def read_any(path: str | Path, name: str, source: str | None = None) -> Adapter:
    """An adapter of any format, but for the values of its tensors.

    Args:
        path: a local folder or file.
        name: what to call it in messages and in the record.
        source: where it came from, for the record; the path by default.

    Raises:
        AdapterError: it is broken, of no known format, or of a kind that cannot be merged; names the format.
    """
    path = Path(path)
    return read_place(find(path, name, source or str(path)))


def read_place(place: Place) -> Adapter:
    """As `read_any`, of a place that is known.

    Raises:
        AdapterError: as there.
    """
    format = format_of(place)
    try:
        return format.open(place)
    except AdapterError as error:
        if format is DEFAULT or format.title in str(error):
            raise
        raise AdapterError(f"{error} (it was read as {format.title})") from error


def format_of(place: Place) -> Format:
    """The format of a file.

    Raises:
        AdapterError: it is of none.
    """
    found = next((format for format in FORMATS if format.reads(place)), None)
    if found is not None:
        return found
    keys = sorted(place.keys)
    for pattern, what, way in _OTHERS:
        if any(map(pattern.fullmatch, keys)):
            raise AdapterError(f"reading adapter {place.name!r}: {place.path} is {what}; {way}")
    shown = ", ".join(map(repr, keys[:_SHOWN])) + (", ..." if len(keys) > _SHOWN else "")
    raise AdapterError(
        f"reading adapter {place.name!r}: {place.path} is of no format that is read here "
        f"({', '.join(format.name for format in FORMATS)}); "
        + (f"its tensors are called {shown}. Is it a LoRA? Of a whole model samerge extract makes one" if keys else "")
        + ("" if keys else "it holds no tensors")
    )


def record_in(path: Path, origin: Origin) -> str | None:
    """The record of a merge in the header of a file, as text; None where there is none.

    Raises:
        SamergeError: of the origin's class; the file is broken.
    """
    if path.suffix == ".gguf":
        return gguf.recorded(path, origin)
    return TensorFile(path, origin).metadata.get(RECORD_FIELD)


def writable() -> list[str]:
    """The names that `format` may be."""
    return [format.name for format in FORMATS if format.write is not None]


def named(name: str) -> Format:
    """The format of a name.

    Raises:
        OptionError: there is none, or it is only read.
    """
    found = next((format for format in FORMATS if format.name == name and format.write is not None), None)
    if found is None:
        raise OptionError(f"format={name!r} is not known; choose one of {', '.join(sorted(writable()))}")
    return found


def common(formats: Iterable[str]) -> str:
    """The format that a merge of adapters is written in: their own where all have one, PEFT's otherwise.

    Of kohya's and diffusers' files together it is diffusers', under whose names they are merged.

    Example:
        >>> common(["kohya", "kohya"]), common(["kohya", "peft"]), common(["kohya", "diffusers"])
        ('kohya', 'peft', 'diffusers')
    """
    found = set(formats)
    if found == {kohya.FORMAT.name, diffusers.FORMAT.name}:
        return diffusers.FORMAT.name
    return found.pop() if len(found) == 1 else DEFAULT.name


def write(content: Content, name: str, path: str | Path, overwrite: bool = False) -> Path:
    """Write an adapter in a format, whole or not at all.

    Args:
        content: what.
        name: of the format.
        path: where; a file gets its ending, a folder that is there gets a file.
        overwrite: replace what is there.

    Returns:
        What was written.

    Raises:
        OptionError: there is no such format.
        AdapterError: it has no place for what is to be written.
        OutputExistsError: the place is taken.
    """
    format = named(name)
    assert format.write is not None
    return format.write(content, format.target(path), overwrite)
