"""A model that is not in memory: its tensors come a few rows at a time, to be saved or pushed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import Unpack

from samerge.errors import OptionError, OutputExistsError
from samerge.full.given_models import Opened
from samerge.parallel.progress import Progress
from samerge.report.report import Report
from samerge.weights.folder import file_stem
from samerge.weights.pushing import Upload

MARKER = "config.json"


class Tensors(Protocol):
    """A model's tensors, made when they are asked for."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by its name."""

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Dtype of every tensor."""

    def tiles(self, tensor: str) -> Iterator[Tensor]:
        """The tensor's values in order, in pieces, in its dtype, on the CPU."""

    def read(self, tensor: str) -> Tensor:
        """A whole tensor."""


@dataclass(frozen=True)
class StreamedModel:
    """A model and the files that its values are read from, which must stay where they are until it is saved.

    Args:
        report: what was done.
        assembly: its tensors, a few rows at a time.
        base: the base.
        read_from: folders that it reads from beside the base's, by what was given for them.
        dtype: of the output, None for the base's own.
        progress: show progress bars when on a terminal.
        settings: fields of `config.json` that are others than the base's.
    """

    report: Report
    assembly: Tensors = field(repr=False)
    base: Opened = field(repr=False)
    read_from: Mapping[str, Path] = field(repr=False)
    dtype: torch.dtype | None = None
    progress: bool = field(default=True, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by its name."""
        return self.assembly.shapes

    def _repr_html_(self) -> str:
        """The report, for notebooks."""
        return self.report._repr_html_()

    def tensor(self, name: str) -> Tensor:
        """A tensor as it will be saved. For checks.

        Raises:
            OptionError: there is no such tensor.
        """
        if name not in self.shapes:
            raise OptionError(f"the model has no tensor {name!r}; it has e.g. {list(self.shapes)[:3]}")
        return self.assembly.read(name)

    def save(
        self,
        path: str | Path,
        overwrite: bool = False,
        max_shard_size: int | str = "5GB",
        trust_remote_code: bool = False,
    ) -> Path:
        """Write the model as `from_pretrained` reads it, with `samerge.json` and a model card, all or nothing.

        One tile of a tensor is in memory at a time.

        Args:
            path: the folder to make.
            overwrite: replace a model that is there already.
            max_shard_size: of a file of weights, in bytes or as a text such as "5GB".
            trust_remote_code: copy the base's own code (`*.py`, and the fields that name it), too.

        Returns:
            The folder.

        Raises:
            OutputExistsError: the folder exists and `overwrite` is False, it is no model's folder, or it is one that
                the model is read from.
            OptionError: the size is none.
            BaseModelError: a merged value is not finite or too large for the dtype, or a file beside the base's weights
                cannot be read.
        """
        from samerge.adapters.atomic import atomic_folder
        from samerge.adapters.writer import write_text
        from samerge.full.companions import write_companions
        from samerge.full.shards import shard_bytes, write_shards
        from samerge.report.card import model_card

        limit = shard_bytes(max_shard_size)
        target = Path(path).expanduser()
        self._refuse_inputs(target)
        specs = {name: (tuple(shape), self.assembly.dtypes[name]) for name, shape in self.shapes.items()}
        entries = sum(torch.Size(shape).numel() for shape, _ in specs.values())
        with atomic_folder(target, overwrite=overwrite, marker=MARKER) as folder:
            notes = write_companions(folder, self.base, self.dtype, trust_remote_code, self.settings)
            with Progress(self.progress).task("writing", entries) as advance:
                write_shards(folder, specs, self.assembly.tiles, limit, advance, file_stem(self.base.source.config))
            record = replace(self.report.record, warnings=(*self.report.warnings, *notes))
            write_text(folder, record.json(), model_card(record))
        return target

    def push_to_hub(
        self,
        repo_id: str,
        *,
        max_shard_size: int | str = "5GB",
        trust_remote_code: bool = False,
        **how: Unpack[Upload],
    ) -> str:
        """Write the model to a temporary folder and upload it to the Hugging Face Hub.

        Args:
            repo_id: `user/name`; made if it is not there.
            max_shard_size: of a file of weights.
            trust_remote_code: upload the base's own code, too.
            **how: `token`, `private`, `revision`, `commit_message` and `create_pr`; see `Upload`.

        Returns:
            The URL of the repository or pull request.

        Raises:
            HubError: the Hub refused; says what to do.
        """
        from samerge.report.uploading import upload

        save = partial(self.save, max_shard_size=max_shard_size, trust_remote_code=trust_remote_code)
        how = {"commit_message": "Add model", **how}
        return upload(save, "model", repo_id, **how)

    def _refuse_inputs(self, target: Path) -> None:
        from samerge.adapters.atomic import is_at

        folders = {**self.read_from, **({} if self.base.folder is None else {self.base.name: self.base.folder})}
        for name, folder in folders.items():
            if is_at(folder, target):
                raise OutputExistsError(
                    f"writing {target}: it is the folder of {name!r}, which the merge reads from and which would "
                    f"be replaced; choose another folder"
                )
