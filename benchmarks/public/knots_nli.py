"""Llama-3-8B and six adapters for inference between sentences, of rank 16 on attention, asked as KnOTS asks them.

Source: github.com/gstoica27/KnOTS (arXiv 2410.19735), `configs/llama8B_r16_*.py`,
`eval_scripts/nli_pertask_linearsearch.py`, `dataset/`; names, splits and labels are from there.

- Two sentences go to the tokeniser as a pair, cut to 2000 tokens (SciTail's to 1000). Rows without label are left out.
- The classes are entailment, neutral, contradiction. Tasks of two classes use two of them: what is not entailed is
  "contradiction" in QNLI and RTE and "neutral" in SciTail; the third class is out of the question.
- Rows: the test split of SNLI, SICK, SciTail; of MNLI the first four fifths of the validation split; of QNLI four
  fifths and of RTE half of it, as `Dataset.train_test_split` draws them from seed 42. KnOTS chooses strengths by the
  others.
- Every task's head (three rows of weights) is its own, in the source as here: heads are no part of a merge. KnOTS takes
  them from a file beside the adapters; here they are read from the adapters' files, and their absence is an error.
- The score is accuracy; a merge's is told in per cent of what the task's own adapter reaches, mean over tasks.

Weights are bfloat16, as the base is stored: 16 GB, and 3 GB for the weights that a merge changes. KnOTS computes in
float32 (SAMERGE_BENCHMARKS_DTYPE=float32: twice the memory).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from suites.base import Answered, LiveWeights, Update, computing_dtype, judged, mixed, precision_of
from torch import Tensor

from public import hub

BASE = "meta-llama/Meta-Llama-3-8B"
BATCH = 16

#: Two sentences and the number of their class.
Pair = tuple[str, str, int]


@dataclass(frozen=True)
class Source:
    """Where a task's rows are.

    Args:
        path: of the data set.
        columns: of the two sentences.
        split: of the data set.
        classes: label as the rows have it -> number of the class; rows with other labels are left out.
        aside: share of the split that is put aside.
        drawn: whether that is drawn, or the last rows.
        tokens: the most that a pair has.
        name: of the data set's configuration.
        revision: of the data set.
    """

    path: str
    columns: tuple[str, str]
    split: str = "test"
    classes: Mapping[Any, int] = field(default_factory=lambda: {0: 0, 1: 1, 2: 2})
    aside: float = 0.0
    drawn: bool = False
    tokens: int = 2000
    name: str | None = None
    revision: str | None = None

    def pairs(self, rows: hub.Rows) -> list[Pair]:
        """The rows that are asked, of those of the split."""
        known = [row for row in rows if row["label"] in self.classes]
        first, second = self.columns
        kept = asked(len(known), self.aside, self.drawn)
        return [(known[i][first], known[i][second], self.classes[known[i]["label"]]) for i in kept]


def asked(count: int, aside: float, drawn: bool) -> list[int]:
    """Which rows are asked: `train_test_split(test_size=aside, shuffle=drawn, seed=42)["train"]` of the `datasets`.

    Example:
        >>> asked(10, 0.25, drawn=False)
        [0, 1, 2, 3, 4, 5, 6]
    """
    held = math.ceil(aside * count)
    if not drawn:
        return list(range(count - held))
    return [int(i) for i in numpy.random.default_rng(42).permutation(count)[held:]]


_TWO = {0: 0, 1: 2}
_TEXTS = ("text1", "text2")

DATA: dict[str, Source] = {
    "snli": Source("stanfordnlp/snli", ("premise", "hypothesis")),
    "mnli": Source("SetFit/mnli", _TEXTS, "validation", aside=0.2),
    # The branch that the Hub makes of what was a script.
    "sick": Source("RobZamp/sick", ("sentence_A", "sentence_B"), revision="refs/convert/parquet"),
    "qnli": Source("SetFit/qnli", _TEXTS, "validation", _TWO, 0.2, drawn=True),
    "rte": Source("SetFit/rte", _TEXTS, "validation", _TWO, 0.5, drawn=True),
    "scitail": Source(
        "allenai/scitail",
        ("premise", "hypothesis"),
        classes={"entails": 0, "neutral": 1},
        tokens=1000,
        name="tsv_format",
    ),
}


@dataclass(frozen=True, kw_only=True)
class KnotsNli(hub.PublicSuite):
    """The six adapters as they are on the Hub."""

    name: ClassVar[str] = "knots-nli"
    tasks: ClassVar[tuple[str, ...]] = tuple(DATA)
    about: ClassVar[str] = (
        "Llama-3-8B, six tasks of inference between sentences, KnOTS' adapters of rank 16 on attention"
    )
    adapter_id: ClassVar[str] = "hoffman-lab/KnOTS-Llama3_8B_lora_R16_{}"
    normalised: ClassVar[bool] = True

    def base(self) -> Path:
        return hub.snapshot(BASE, "*.json", "model*.safetensors")

    def evaluator(self) -> KnotsNliEvaluator:
        return KnotsNliEvaluator(self.base(), self.adapters())


class KnotsNliEvaluator:
    """The base in memory with one head, which is every task's own in turn."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        dtype = computing_dtype()
        self._heads = {task: head(folder) for task, folder in adapters.items()}
        self._device = hub.device()
        self._tokenizer = AutoTokenizer.from_pretrained(base, padding_side="right")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=dtype)
        model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model = model.eval().to(self._device)
        self._live = LiveWeights(self._model)  # stored as bfloat16, so the model's own weights are the exact ones
        self._rows: dict[str, list[Pair]] = {}
        self.precision = precision_of(dtype)

    @torch.inference_mode()
    def answers(self, update: Update | None, task: str, count: int) -> Answered:
        self._live.put(update)
        self._model.score.weight.copy_(self._heads[task])
        source = DATA[task]
        if task not in self._rows:
            found = hub.rows(source.path, source.name, source.split, source.revision)
            self._rows[task] = mixed(source.pairs(found))
        pairs = self._rows[task][:count]
        scores = [self._scores(pairs[start : start + BATCH], source.tokens) for start in range(0, len(pairs), BATCH)]
        whole = torch.cat(scores)  # (rows, classes)
        whole[:, [number for number in range(3) if number not in source.classes.values()]] = -math.inf
        return judged(whole, torch.tensor([right for *_, right in pairs]))

    def _scores(self, pairs: Sequence[Pair], tokens: int) -> Tensor:
        first, second, _ = zip(*pairs, strict=True)
        cut = {"padding": True, "truncation": True, "max_length": tokens}
        given = self._tokenizer(list(first), list(second), **cut, return_tensors="pt").to(self._device)
        scores = self._model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
        return scores.float().cpu()


def head(folder: Path) -> Tensor:
    """The head (classes, width) of an adapter's copy."""
    from safetensors.torch import load_file

    file = hub.head_file(folder)
    tensors = load_file(file) if file.is_file() else {}
    found = [value for name, value in tensors.items() if name.endswith("score.weight")]
    if len(found) != 1:
        raise ValueError(
            f"{folder} holds {len(found)} heads, not one: its adapter was published without. KnOTS' heads.pt has all; "
            f"save the task's as {file} under the name score.weight"
        )
    return found[0]
