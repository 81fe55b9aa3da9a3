"""Language modelling on SmolLM2-135M: eight domains of text, one LoRA adapter of rank 16 on every projection each.

Nothing is right or wrong here: a row is a window of held-out text, and its loss is the mean over its tokens of the
negative log likelihood. Every token counts, so that small differences show that no count of right answers can.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suites.base import Answered, Part, Suite, Update
from suites.domains import DOMAINS, MOST_OF_ONE, windows
from suites.smollm2 import NAME, TARGETS, base_folder, loaded
from suites.training import shuffled, train_lora

TOKENS = 256
STEPS, BATCH, RATE = 160, 2, 1e-3
#: Tokens at the end of a window whose log-probabilities tell what a model makes of it.
TOLD = 32
#: Windows of one document to train on.
TRAINED_OF_ONE = 12


@dataclass(frozen=True, kw_only=True)
class Language(Suite):
    """Every adapter starts from an A of its own."""

    name: ClassVar[str] = "language"
    tasks: ClassVar[tuple[str, ...]] = tuple(sorted(DOMAINS))
    about: ClassVar[str] = f"{NAME} (Llama, 135 M, 4-bit rounded weights), text of eight domains, rank 16"
    items: ClassVar[int] = 80  # 20,480 tokens a domain

    @classmethod
    def parts(cls) -> tuple[Part, ...]:
        """Two halves, scored apart; merges are of all. Both were looked at when the default's strength was chosen."""
        return tuple(
            Part(name, tuple(task for task in cls.tasks if DOMAINS[task].first == first), judge=False)
            for name, first in (("language, first half", True), ("language, second half", False))
        )

    def base(self) -> Path:
        return base_folder(self.cache)

    def train_adapter(self, task: str, folder: Path) -> None:
        train(self.base(), task, self.cache, folder, seed=300 + self.tasks.index(task))

    def evaluator(self) -> LanguageEvaluator:
        return LanguageEvaluator(self.base(), self.cache)


@dataclass(frozen=True, kw_only=True)
class LanguageMixed(Language):
    """The same domains, trained once more: other seeds, so other A and another order of the texts, and mixed ranks."""

    name: ClassVar[str] = "language-mixed"
    about: ClassVar[str] = f"{NAME}, the same eight domains trained with other seeds, ranks 8 and 32 in turn"

    @classmethod
    def parts(cls) -> tuple[Part, ...]:
        """All tasks together; the limit on the default's strength at larger ranks was chosen by them."""
        return (Part(cls.name, cls.tasks, judge=False),)

    def train_adapter(self, task: str, folder: Path) -> None:
        number = self.tasks.index(task)
        train(self.base(), task, self.cache, folder, seed=400 + number, rank=(8, 32)[number % 2])


class LanguageEvaluator:
    """The base in memory, documents tokenised once."""

    def __init__(self, base: Path, cache: Path) -> None:
        self._cache = cache
        self._tokenize = tokenizer(base)
        self.model, self._live, self.precision = loaded(base)
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.inference_mode()
    def outputs(self, update: Update | None, task: str, count: int) -> Tensor:
        """Log-probabilities (count * TOLD, vocabulary) at the ends of the last windows of a domain."""
        self._live.put(update)
        ids, _ = self._windows(task)
        found = [self.model(input_ids=batch, use_cache=False).logits[:, -TOLD:] for batch in ids[-count:].split(4)]
        return torch.cat(found).flatten(0, 1).float().log_softmax(dim=-1).half()

    @staticmethod
    def apart(own: Tensor, other: Tensor) -> float:
        """How far outputs are from an adapter's own: the mean Kullback-Leibler divergence."""
        both = zip(own.split(64), other.split(64), strict=True)
        return sum(float((p.float().exp() * (p.float() - q.float())).sum()) for p, q in both) / len(own)

    def answers(self, update: Update | None, task: str, count: int) -> Answered:
        self._live.put(update)
        ids, documents = (one[:count] for one in self._windows(task))
        return Answered(torch.cat([losses(self.model, batch) for batch in ids.split(4)]), documents=documents)

    def _windows(self, task: str) -> tuple[Tensor, Tensor]:
        if task not in self._rows:
            self._rows[task] = rows(DOMAINS[task].split(self._cache)[1], self._tokenize)
        return self._rows[task]


def rows(texts: list[str], tokenize: Any) -> tuple[Tensor, Tensor]:
    """Windows (rows, tokens) and the number of each one's document: one of every document before the second of any."""
    turns: dict[int, int] = {}
    found = []
    for number, tokens in windows(texts, tokenize, TOKENS, MOST_OF_ONE):
        turns[number] = turns.get(number, -1) + 1
        found.append((turns[number], number, tokens))
    found.sort(key=lambda row: row[0])
    return torch.tensor([tokens for *_, tokens in found]), torch.tensor([number for _, number, _ in found])


@torch.inference_mode()
def losses(model: Any, ids: Tensor) -> Tensor:
    """Mean negative log likelihood of every row's tokens but its first, (rows,), float32, in nats.

    Args:
        model: a causal language model.
        ids: (rows, tokens).
    """
    scores = model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (rows, tokens - 1, vocabulary)
    each = nn.functional.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(dim=1)


def tokenizer(base: Path) -> Any:
    """From a text to its token numbers."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    own = AutoTokenizer.from_pretrained(base)
    logging.set_verbosity_error()  # documents are longer than the model's context; windows of them are not
    return lambda text: own(text, add_special_tokens=False)["input_ids"]


def train(base: Path, task: str, cache: Path, folder: Path, *, seed: int, rank: int = 16) -> None:
    """Train one adapter to foretell the next token; its scale is 2 at any rank."""
    from transformers import AutoModelForCausalLM

    # eager: on a CPU the fused attention's way back takes a quarter longer.
    model: nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="eager")
    texts = [tokens for _, tokens in windows(DOMAINS[task].split(cache)[0], tokenizer(base), TOKENS, TRAINED_OF_ONE)]
    batches = shuffled(texts, BATCH, seed)

    def loss(step: int) -> Tensor:
        ids = torch.tensor(next(batches))
        with torch.autocast("cpu", torch.bfloat16):
            value: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
        return value

    size = {"steps": STEPS, "rank": rank, "alpha": 2 * rank}
    train_lora(model, loss, folder, name=NAME, targets=TARGETS, seed=seed, rate=RATE, **size)
