"""What a file format of adapters is: how it is known, read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from samerge.adapters.layouts import Layout
from samerge.adapters.model import Adapter
from samerge.errors import AdapterError
from samerge.linalg.factors import LoraFactors
from samerge.weights.tensorfile import TensorFile
from samerge.weights.untrusted import Origin


@dataclass(frozen=True)
class Place:
    """Where an adapter lies: its file of weights, and what stands beside it.

    Args:
        name: what the user calls the adapter.
        source: what the user gave.
        path: the file of its weights.
        config: what `adapter_config.json` beside it says; None where there is none.
        file: the file, its header read; None where it is no safetensors.
        folder: whether the user gave a folder, so that the files in it belong together.
    """

    name: str
    source: str
    path: Path
    config: Mapping[str, Any] | None = None
    file: TensorFile | None = None
    folder: bool = False

    @property
    def keys(self) -> list[str]:
        """The names of the tensors."""
        return [] if self.file is None else list(self.file.entries)

    @property
    def tensors(self) -> TensorFile:
        """The file, of a format that is safetensors."""
        assert self.file is not None
        return self.file

    def origin(self, title: str) -> Origin:
        """What is being read, for errors.

        Args:
            title: of the format.
        """
        return Origin(f"reading adapter {self.name!r} ({title})", AdapterError)


@dataclass(frozen=True)
class Content:
    """One adapter, to be written.

    Args:
        factors: by module.
        layouts: of each module.
        settings: what PEFT's `adapter_config.json` says.
        extras: what it carries beside its factors, by PEFT's key.
        metadata: fields of the sources' headers that hold for the result, too.
        record: what was done, as plain JSON values.
        card: the text of a model card.
        companions: files to copy beside it.
        base: the base model's configuration; empty where none was given.
        asked: whether somebody chose the format; else it is the sources', and so are their ways within it.
    """

    factors: Mapping[str, LoraFactors]
    layouts: Mapping[str, Layout]
    settings: Mapping[str, Any]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    companions: tuple[Path, ...] = ()
    base: Mapping[str, Any] = field(default_factory=dict)
    asked: bool = False


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        name: as in `--format`.
        title: what it is called in messages.
        reads: whether a file is of this format, by its keys and what stands beside it.
        open: reads the adapter, but for the values of its tensors.
        write: writes one at a path, whole or not at all; None where it is only read. It is given the content, the path,
            and whether to replace what is there.
        file: the name that its file has in a folder; None where what is written is a folder.
        use: how to load what was written; `{path}` stands for it.
        family: the format that an adapter of this one is written back in; itself, where it is written.
    """

    name: str
    title: str
    reads: Callable[[Place], bool]
    open: Callable[[Place], Adapter]
    write: Callable[[Content, Path, bool], Path] | None = None
    file: str | None = None
    use: str = ""
    family: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", self.family or self.name)

    def target(self, path: str | Path) -> Path:
        """What is written where the user says `path`: a file's name gets its ending, a folder gets the file.

        Example:
            >>> kohya = Format("kohya", "kohya", lambda place: True, lambda place: None, file="merged.safetensors")
            >>> kohya.target("out/style").name, kohya.target("style-1.5").name, kohya.target(".").name
            ('style.safetensors', 'style-1.5.safetensors', 'merged.safetensors')
        """
        path = Path(path).expanduser()
        if self.file is None:
            return path
        ending = Path(self.file).suffix
        if path.is_dir():
            return path / self.file
        return path if path.suffix == ending else path.with_name(path.name + ending)
