"""The result of a merge of checkpoints: a model that is not in memory, to save, to push, or to turn into an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from samerge.full.assembly import Assembly
from samerge.full.streamed_model import StreamedModel
from samerge.parallel.progress import Progress
from samerge.saliency.work_folder import WorkFolder

if TYPE_CHECKING:
    from samerge.merging.merged_adapter import MergedAdapter


@dataclass(frozen=True)
class MergedModel(StreamedModel):
    """A merged model: which elements of which checkpoint survive, and the files that their values are read from.

    The checkpoints must stay where they are until the model is saved.

    Args:
        transposed: for each weight of the graph, whether it is stored (in, out).
        work: the folder that holds the masks, None when memory does.
    """

    assembly: Assembly = field(repr=False)
    transposed: Mapping[str, bool] = field(default_factory=dict, repr=False)
    work: WorkFolder | None = field(default=None, repr=False)

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

    def close(self) -> None:
        """Remove the work folder, after which the model cannot be read any more; happens by itself in the end."""
        if self.work is not None:
            self.work.close()
