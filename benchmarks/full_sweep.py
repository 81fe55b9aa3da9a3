"""The paper's sweeps of density p and iterations T (its figure 3) for full checkpoints, on MiniLM.

    python benchmarks/full_sweep.py                                 # some minutes on two cores
    python benchmarks/full_sweep.py --items items.jsonl             # accuracy on texts of your own

The experts are the adapters in examples/, merged into MiniLM and saved as full checkpoints. For each merge: how close
its embeddings are to each expert's own on that expert's sentences (mean cosine), beside those of the untouched base;
the accuracy on the sentences; and the share of the experts' energy that survives. The sentences are the demo's twelve,
too few for an accuracy that means much: `--items` takes a file of JSON lines with `task`, `label` (one of the task's
labels in examples/adapters/minilm/tasks.json) and `text`. Results go to benchmarks/results/full_sweep.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))

import torch  # noqa: E402
from demo import SENTENCES, SHORT  # noqa: E402
from minilm import ADAPTERS, TASKS, classify, embed, load_base, unpack_base  # noqa: E402

import samerge  # noqa: E402

RESULTS = HERE / "results" / "full_sweep.json"
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ITERATIONS = (1, 2, 5, 10, 20)

#: A task's name, the right label, a text.
Item = tuple[str, str, str]


def checkpoints(folder: Path) -> None:
    """MiniLM, and each adapter merged into it, as full checkpoints."""
    from peft import PeftModel

    unpack_base(folder / "base")
    for task in TASKS:
        _, model = load_base(folder / "base")
        PeftModel.from_pretrained(model, str(ADAPTERS / task)).merge_and_unload().save_pretrained(folder / task)


class Scores:
    """How a model does on every task, beside the experts and the base."""

    def __init__(self, folder: Path, items: Sequence[Item]) -> None:
        self.tokenizer, self.model = load_base(folder / "base")
        self.texts = {task: [item[2] for item in items if item[0] == task] for task in TASKS}
        self.right = {task: [item[1] for item in items if item[0] == task] for task in TASKS}
        self.labels = {task: embed(self.tokenizer, self.model, TASKS[task]) for task in TASKS}
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        base = {task: self.embedded(task) for task in TASKS}
        self.experts = {}
        for task in TASKS:
            _, expert = load_base(folder / task)
            self.experts[task] = embed(self.tokenizer, expert, self.texts[task])
        self.base = self.score(base)
        self.own = self.score(self.experts)

    def embedded(self, task: str) -> torch.Tensor:
        return embed(self.tokenizer, self.model, self.texts[task])

    def score(self, found: dict[str, torch.Tensor]) -> dict[str, Any]:
        cosine = (
            {task: float((found[task] * self.experts[task]).sum(1).mean()) for task in TASKS} if self.experts else {}
        )
        right = sum(
            told == label
            for task in TASKS
            for told, label in zip(classify(found[task], self.labels[task], TASKS[task]), self.right[task], strict=True)
        )
        return {
            "cosine": {task: round(value, 4) for task, value in cosine.items()},
            "mean_cosine": round(sum(cosine.values()) / len(TASKS), 4),
            "accuracy": round(right / sum(map(len, self.right.values())), 4),
        }

    def of(self, merged: samerge.MergedModel) -> dict[str, Any]:
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(merged.tensor(name))
        return self.score({task: self.embedded(task) for task in TASKS})


def measure(folder: Path, scores: Scores, **options: Any) -> dict[str, Any]:
    start = time.perf_counter()
    merged = samerge.merge_full(folder / "base", {task: folder / task for task in TASKS}, progress=False, **options)
    rows = merged.report.adapters.values()
    return {
        **options,
        **scores.of(merged),
        "energy_kept": round(sum(row.energy_kept or 0.0 for row in rows) / len(rows), 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


def read_items(file: Path | None) -> list[Item]:
    if file is None:
        words = {task: dict(zip(SHORT[task], TASKS[task], strict=True)) for task in TASKS}
        return [(task, words[task][label], text) for task, label, text in SENTENCES]
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(line["task"], line["label"], line["text"]) for line in lines]


def table(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# Sweeps of density and iterations", "", __doc__.split("\n\n")[2].replace("\n", " "), ""]
    lines += ["| method | p | T | mean cosine to the experts | accuracy | energy kept |", "|---|---|---|---|---|---|"]
    for name in ("base", "experts"):
        lines.append(f"| {name} | | | {result[name]['mean_cosine']:.3f} | {result[name]['accuracy']:.1%} | |")
    lines += [
        f"| {row['method']} | {row['density']} | {row['iterations']} | {row['mean_cosine']:.3f} | "
        f"{row['accuracy']:.1%} | {row['energy_kept']:.1%} |"
        for row in result["rows"]
    ]
    return "\n".join(lines) + f"\n\n{result['items']} sentences.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=Path, help="JSON lines with task, label and text")
    parser.add_argument("--methods", nargs="*", default=["elementwise", "paper"], choices=["elementwise", "paper"])
    parser.add_argument("--densities", type=float, nargs="*", default=DENSITIES)
    parser.add_argument("--iterations", type=int, nargs="*", default=ITERATIONS)
    given = parser.parse_args()
    items = read_items(given.items)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoints(folder)
        scores = Scores(folder, items)
        rows = []
        for method in given.methods:
            pairs = [(p, 10) for p in given.densities] + [(0.1, t) for t in given.iterations if t != 10]
            for density, iterations in pairs:
                rows.append(measure(folder, scores, method=method, density=density, iterations=iterations))
                print(json.dumps(rows[-1]), flush=True)
        result = {"items": len(items), "base": scores.base, "experts": scores.own, "rows": rows}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    RESULTS.with_suffix(".md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
