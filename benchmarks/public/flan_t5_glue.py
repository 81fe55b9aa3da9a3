"""Flan-T5-base and eight GLUE adapters of rank 16 on q and v, asked as FusionBench asks them.

Source: github.com/tanganke/fusion_bench (arXiv 2406.03280), `docs/modelpool/flan-t5_generation.md` and
`fusion_bench/tasks/flan_t5_text_generation/`; prompts, splits, metrics and the Hub's names are from there.

- A row is a prompt and an answer, both text. Prompts are cut to 512 tokens. The answer is what greedy decoding writes
  within 10 tokens, the decoder's first one among them.
- Rows are GLUE's validation splits (of MNLI the matched one), all of them.
- The score is exact match; of STS-B it is Spearman's correlation of the numbers that were written (no number: 0) with
  the right ones to one decimal place. The mean is over the eight scores.
- Weights and activations are float32.

The smooth score (mean negative log likelihood of the answer's tokens) is this project's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from suites.base import Answered, LiveWeights, Update, computing_dtype, mixed, precision_of
from torch import Tensor, nn

from public import hub

BASE = "google/flan-t5-base"
DATA = "nyu-mll/glue"
TOKENS, WRITTEN, BATCH = 512, 10, 64
#: The task that is scored by the rank correlation of numbers.
NUMBERS = "stsb"


@dataclass(frozen=True)
class Prompt:
    """How a task is put.

    Args:
        asked: with the row's columns in braces.
        answers: by label; none where the label is the answer, a number.
        split: of the data set.
    """

    asked: str
    answers: tuple[str, ...] = ()
    split: str = "validation"

    def exchange(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """What is asked, and the right answer."""
        answer = self.answers[row["label"]] if self.answers else f"{row['label']:.1f}"
        return self.asked.format_map(row), answer


#: The spelling is the source's: the adapters were trained with it.
PROMPTS: dict[str, Prompt] = {
    "cola": Prompt(
        'Indicate if the following sentence is grammatically correct or not: "{sentence}". '
        "Answere 'acceptable' or 'unacceptable'.",
        ("unacceptable", "acceptable"),
    ),
    "mnli": Prompt(
        "Does the premise: '{premise}' logically imply, contradict, or is neutral to the hypothesis: '{hypothesis}'? "
        "Answere with 'entailment', 'contradiction', or 'neutral'.",
        ("entailment", "neutral", "contradiction"),
        "validation_matched",
    ),
    "mrpc": Prompt(
        "Are the following sentences '{sentence1}' and '{sentence2}' conveying the same meaning? "
        "Answere with 'yes' or 'no'.",
        ("no", "yes"),
    ),
    "qnli": Prompt(
        "Given the context: '{sentence}', does the question '{question}' have an answer based on the information "
        "provided? Answer with 'yes' or 'no'.",
        ("yes", "no"),
    ),
    "qqp": Prompt(
        "Do the questions '{question1}' and '{question2}' have the same intent? Answere with 'yes' or 'no'.",
        ("no", "yes"),
    ),
    "rte": Prompt(
        "Does the text: '{sentence1}' entail that '{sentence2}' is true? Provide 'yes' or 'no'.", ("yes", "no")
    ),
    "sst2": Prompt(
        "Given the sentence '{sentence}', determine the sentiment. Is it positive or negative?",
        ("negative", "positive"),
    ),
    NUMBERS: Prompt(
        "Consider the sentences '{sentence1}' and '{sentence2}'. On a scale from 1 (completely different) to 5 "
        "(completely similar), rate the similarity."
    ),
}


@dataclass(frozen=True, kw_only=True)
class FlanT5Glue(hub.PublicSuite):
    """The eight adapters as they are on the Hub."""

    name: ClassVar[str] = "flan-t5-glue"
    tasks: ClassVar[tuple[str, ...]] = tuple(PROMPTS)
    about: ClassVar[str] = (
        "Flan-T5-base (248 M), eight GLUE tasks as text, FusionBench's adapters of rank 16 on q and v"
    )
    adapter_id: ClassVar[str] = "tanganke/flan-t5-base_glue-{}_lora-16"
    normalised: ClassVar[bool] = False

    def base(self) -> Path:
        return hub.snapshot(BASE, "*.json", "*.safetensors", "spiece.model")

    def evaluator(self) -> FlanT5Evaluator:
        return FlanT5Evaluator(self.base())


class FlanT5Evaluator:
    """The base in memory."""

    def __init__(self, base: Path) -> None:
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        dtype = computing_dtype("float32")
        self._device = hub.device()
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = AutoModelForSeq2SeqLM.from_pretrained(base, dtype=torch.float32).eval().to(self._device)
        self._live = LiveWeights.rounded(self._model, dtype)
        self._rows: dict[str, list[tuple[str, str]]] = {}
        self.precision = precision_of(dtype)

    @torch.inference_mode()
    def answers(self, update: Update | None, task: str, count: int) -> Answered:
        self._live.put(update)
        if task not in self._rows:
            prompt = PROMPTS[task]
            self._rows[task] = [prompt.exchange(row) for row in mixed(hub.rows(DATA, task, prompt.split))]
        exchanges = self._rows[task][:count]
        losses: list[Tensor] = []
        written: list[str] = []
        right: list[str] = []
        for start in range(0, len(exchanges), BATCH):
            asked, answers = zip(*exchanges[start : start + BATCH], strict=True)
            inputs, targets = self._tokens(asked), self._tokens(answers)
            losses.append(mean_losses(self._model, inputs, targets))
            tokens = self._model.generate(**inputs, max_length=WRITTEN, do_sample=False, num_beams=1)
            written += self._tokenizer.batch_decode(tokens, skip_special_tokens=True)
            right += self._tokenizer.batch_decode(targets["input_ids"], skip_special_tokens=True)
        if task == NUMBERS:
            return Answered(
                torch.cat(losses), numbers=torch.tensor([[number(t) for t in written], [*map(number, right)]])
            )
        return Answered(torch.cat(losses), torch.tensor([a == b for a, b in zip(written, right, strict=True)]))

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        cut = {"padding": True, "truncation": True, "max_length": TOKENS}
        tokens = self._tokenizer(list(texts), **cut, return_tensors="pt").to(self._device)
        return {key: tokens[key] for key in ("input_ids", "attention_mask")}


def mean_losses(model: Any, inputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """(rows,): the mean over an answer's tokens, its end among them, of their negative log likelihood."""
    mask = targets["attention_mask"]
    labels = targets["input_ids"].masked_fill(mask == 0, -100)  # what the loss passes over
    scores = model(**inputs, labels=labels).logits.float()  # (rows, tokens, vocabulary)
    each = nn.functional.cross_entropy(scores.transpose(1, 2), labels, reduction="none")
    return (each.sum(dim=1) / mask.sum(dim=1)).cpu()


def number(text: str) -> float:
    """The number that a text is, 0 if it is none.

    Example:
        >>> number("3.8"), number("yes")
        (3.8, 0.0)
    """
    try:
        found = float(text)
    except ValueError:
        return 0.0
    return found if math.isfinite(found) else 0.0
