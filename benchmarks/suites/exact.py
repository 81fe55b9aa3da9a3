"""Exact answers on SmolLM2-135M-Instruct: six tasks, right or wrong as a whole; rank 16 on every projection.

A row is right if greedy decoding writes the answer and ends the line. That is so exactly if every token of the answer
is the likeliest after what stands before it, so one pass over question and answer together tells, without decoding;
a test holds the two against each other. The row's loss is the mean over the answer's tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suites.base import Answered, Suite, Update, mixed
from suites.exact_tasks import EXACT_TASKS, Exchange
from suites.smollm2 import NAME, TARGETS, base_folder, loaded, padded
from suites.training import shuffled, train_lora

STEPS, BATCH, RATE = 100, 8, 1e-3
#: What an answer ends with.
END = "\n"

#: A question's and an answer's token numbers.
Tokens = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class Exact(Suite):
    """Every adapter starts from an A of its own."""

    name: ClassVar[str] = "exact"
    tasks: ClassVar[tuple[str, ...]] = tuple(EXACT_TASKS)
    about: ClassVar[str] = f"{NAME}, six tasks with exact answers (greedy decoding), rank 16 on every projection"
    items: ClassVar[int] = 100

    def base(self) -> Path:
        return base_folder(self.cache)

    def train_adapter(self, task: str, folder: Path) -> None:
        train(self.base(), task, self.cache, 500 + self.tasks.index(task), folder)

    def evaluator(self) -> ExactEvaluator:
        return ExactEvaluator(self.base(), self.cache)


class ExactEvaluator:
    """The base in memory, rows tokenised once."""

    def __init__(self, base: Path, cache: Path) -> None:
        from transformers import AutoTokenizer

        self._cache = cache
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model, self._live, self.precision = loaded(base)
        self._rows: dict[str, list[Tokens]] = {}

    @torch.inference_mode()
    def answers(self, update: Update | None, task: str, count: int) -> Answered:
        self._live.put(update)
        if task not in self._rows:
            self._rows[task] = encode(self._tokenizer, mixed(EXACT_TASKS[task].rows(self._cache)[1]))
        rows = self._rows[task][:count]
        found = [told(self._model, rows[start : start + 20]) for start in range(0, len(rows), 20)]
        return Answered(torch.cat([losses for losses, _ in found]), torch.cat([correct for _, correct in found]))


def encode(tokenizer: Any, rows: Sequence[Exchange]) -> list[Tokens]:
    """Questions and answers apart, so that the answer's tokens are those that follow when the question is given."""

    def tokens(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    return [(tokens(asked), tokens(answer + END)) for asked, answer in rows]


def told(model: Any, rows: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
    """(losses, whether greedy decoding writes the answer), both (rows,).

    Args:
        model: a causal language model with `model` (without its head) and `lm_head`.
        rows: questions and answers.
    """
    ids, _ = padded([[*asked, *answer] for asked, answer in rows])
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state  # (rows, tokens, width)
    # The state of the token before each of the answer's: the head is large, so it is asked there alone.
    places = [(i, len(asked) - 1 + k) for i, (asked, answer) in enumerate(rows) for k in range(len(answer))]
    row, place = (torch.tensor(numbers) for numbers in zip(*places, strict=True))
    scores = model.lm_head(states[row, place]).float()  # (answers' tokens, vocabulary)
    right = ids[row, place + 1]
    each = nn.functional.cross_entropy(scores, right, reduction="none")
    counts = torch.tensor([len(answer) for _, answer in rows])
    losses = torch.zeros(len(rows)).index_add(0, row, each) / counts
    wrong = torch.zeros(len(rows)).index_add(0, row, (scores.argmax(dim=1) != right).float())
    return losses, wrong == 0


def train(base: Path, task: str, cache: Path, seed: int, folder: Path) -> None:
    """Train one adapter: the mean loss of the answers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # eager: on a CPU the fused attention's way back takes a quarter longer.
    model: nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="eager")
    rows = encode(AutoTokenizer.from_pretrained(base), EXACT_TASKS[task].rows(cache)[0])
    batches = shuffled(rows, BATCH, seed)

    def loss(step: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return told(model, next(batches))[0].mean()

    train_lora(model, loss, folder, name=NAME, targets=TARGETS, seed=seed, steps=STEPS, rate=RATE)
