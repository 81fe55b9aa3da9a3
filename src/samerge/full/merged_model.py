"""The result of a merge of checkpoints: a model that is not in memory, to save, to push, or to turn into an adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from samerge.errors import OptionError, OutputExistsError
from samerge.full.assembly import Assembly
from samerge.full.given_models import Opened
from samerge.parallel.progress import Progress
from samerge.report.report import Report
from samerge.saliency.work_folder import WorkFolder

if TYPE_CHECKING:
    from samerge.merging.merged_adapter import MergedAdapter

MARKER = "config.json"


@dataclass(frozen=True)
class MergedModel:
    """A merged model: which elements of which checkpoint survive, and the files that their values are read from.

    The checkpoints must stay where they are until the model is saved.

    Args:
        report: what the merge did.
        assembly: its tensors, a few rows at a time.
        base: the base.
        experts: the checkpoints.
        transposed: for each weight of the graph, whether it is stored (in, out).
        dtype: of the output, None for the base's own.
        progress: show progress bars when on a terminal.
        work: the folder that holds the masks, None when memory does.
    """

    report: Report
    assembly: Assembly = field(repr=False)
    base: Opened = field(repr=False)
    experts: tuple[Opened, ...] = field(repr=False)
    transposed: Mapping[str, bool] = field(repr=False)
    dtype: torch.dtype | None = None
    progress: bool = field(default=True, repr=False)
    work: WorkFolder | None = field(default=None, repr=False)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by its name."""
        return self.assembly.shapes

    def tensor(self, name: str) -> Tensor:
        """A merged tensor as it will be saved. For checks.

        Raises:
            OptionError: there is no such tensor.
        """
        if name not in self.shapes:
            raise OptionError(f"the merged model has no tensor {name!r}; it has e.g. {list(self.shapes)[:3]}")
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
            OutputExistsError: the folder exists and `overwrite` is False, it is no model's folder, or it is the base's
                or an expert's.
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
            notes = write_companions(folder, self.base, self.dtype, trust_remote_code)
            with Progress(self.progress).task("writing", entries) as advance:
                write_shards(folder, specs, self.assembly.tiles, limit, advance)
            record = replace(self.report.record, warnings=(*self.report.warnings, *notes))
            write_text(folder, record.json(), model_card(record))
        return target

    def as_lora(
        self, rank: int | None = None, energy: float | None = None, dtype: torch.dtype | None = None
    ) -> MergedAdapter:
        """The merged update as one LoRA adapter of the base: a truncated SVD of every weight of the graph, streamed.

        What the merge changed outside the graph (norms, biases, embeddings) is left out; the report says so.

        Args:
            rank: of every module.
            energy: pick each module's rank so that this share of its update's squared norm is kept, in (0, 1]; `rank`
                (128 by default) is then the most that is used. The adapter has one rank, the largest of them.
            dtype: of the adapter; the merged model's by default.

        Raises:
            OptionError: neither was given, or one is out of its range.
        """
        from samerge.full.as_lora import as_adapter

        with Progress(self.progress).task("truncating", len(self.transposed)) as advance:
            return as_adapter(
                self.assembly,
                self.transposed,
                self.report.record,
                rank,
                energy,
                dtype or self.dtype or self.base.dtype,
                advance,
            )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Add merged model",
        create_pr: bool = False,
        max_shard_size: int | str = "5GB",
        trust_remote_code: bool = False,
    ) -> str:
        """Write the model to a temporary folder and upload it to the Hugging Face Hub.

        Args:
            repo_id: `user/name`; made if it is not there.
            token: access token; the one of `hf auth login` by default.
            private: whether a new repository is private.
            revision: branch to commit to.
            commit_message: of the commit.
            create_pr: open a pull request instead of committing.
            max_shard_size: of a file of weights.
            trust_remote_code: upload the base's own code, too.

        Returns:
            The URL of the commit or pull request.

        Raises:
            HubError: the Hub refused; says what to do.
        """
        from samerge.report.sharing import shareable
        from samerge.weights.hub import push_folder

        save = partial(self.save, max_shard_size=max_shard_size, trust_remote_code=trust_remote_code)
        with shareable(save, "model") as saved:
            return push_folder(
                saved,
                repo_id,
                token=token,
                private=private,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )

    def close(self) -> None:
        """Remove the work folder, after which the model cannot be read any more; happens by itself in the end."""
        if self.work is not None:
            self.work.close()

    def _refuse_inputs(self, target: Path) -> None:
        for model in (self.base, *self.experts):
            if model.folder is not None and target.exists() and os.path.samefile(model.folder, target):
                raise OutputExistsError(
                    f"writing {target}: it is the folder of {model.name!r}, which the merge reads from and which would "
                    f"be replaced; choose another folder"
                )
