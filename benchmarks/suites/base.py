"""What a suite is: a base model, tasks with labelled rows, one trained adapter for each, and who asks the model.

A suite is a frozen dataclass that names its tasks and says where the base and the adapters are; nothing is downloaded
or trained before it is asked for. Its evaluator holds the base model in memory once. A merge is put into the weights
in place (`LiveWeights`), so that one evaluation costs one forward pass over the rows, whatever the rank.
"""

from __future__ import annotations

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from samerge.adapters.layouts import Layout
from samerge.linalg.factors import LoraFactors

#: The environment variable that says what evaluators compute in.
DTYPE_VARIABLE = "SAMERGE_BENCHMARKS_DTYPE"

Row = TypeVar("Row")


@dataclass(frozen=True, eq=False)
class Update:
    """An update of the base: a merged adapter, or a single one.

    Two updates are the same only if they are one object; `LiveWeights` goes by that.

    Args:
        factors: module name in the base -> low-rank factors, their scale folded in.
        layouts: module name -> how its weight is stored.
    """

    factors: Mapping[str, LoraFactors]
    layouts: Mapping[str, Layout]

    def delta(self, module: str) -> Tensor:
        """The dense update of a module's weight in its own orientation, float32."""
        return self.layouts[module].delta(self.factors[module].to(dtype=torch.float32))


def single(folder: Path | str) -> Update:
    """One adapter by itself, as it was trained."""
    import samerge

    merged = samerge.merge(None, {"own": folder}, method="linear", scaling=1.0, dtype="float32", progress=False)
    return Update(merged.factors, merged.layouts)


class LiveWeights:
    """The weights of a model in memory, with at most one update on them.

    Args:
        model: the base; its parameters may be bfloat16.
        weights: the exact weights that updates are added to, by parameter name, where the model's own are rounded.
            By default the model's own.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> None:
        self._parameters = dict(model.named_parameters())
        self._exact = weights
        self._before: dict[str, Tensor] = {}
        self._update: Update | None = None

    def put(self, update: Update | None) -> None:
        """Have exactly this update on the base; None for the base alone. Nothing happens if it is there already."""
        if update is self._update:
            return
        with torch.no_grad():
            for name, value in self._before.items():
                self._parameters[name].copy_(value)
            self._before = {}
            self._update = None
            for module in update.factors if update is not None else ():
                assert update is not None
                name = module if module in self._parameters else f"{module}.weight"
                parameter = self._parameters[name]
                self._before[name] = parameter.detach().clone()
                exact = parameter if self._exact is None else self._exact[name]
                delta = update.delta(module).to(parameter.device)
                parameter.copy_(exact.float() + delta.reshape(parameter.shape))
        self._update = update

    @classmethod
    def rounded(cls, model: nn.Module, dtype: torch.dtype) -> LiveWeights:
        """The weights of a float32 model that from here on computes in `dtype`; they stay the exact ones.

        Args:
            model: the base, changed in place.
            dtype: of its parameters afterwards.
        """
        exact = None if dtype == torch.float32 else {name: p.detach().clone() for name, p in model.named_parameters()}
        return cls(model.to(dtype), exact)


@dataclass(frozen=True)
class Answered:
    """What a model made of rows of a task.

    Args:
        losses: (rows,), nats: minus the log likelihood of the right class, or the mean of that over a text's tokens.
        correct: (rows,), bool: whether the class was the right one; None where there are no classes.
        documents: (rows,): which document each row is of, where several are of one; None where each is its own.
        numbers: (2, rows): the number that was said and the right one, of a task that is scored by their correlation.
    """

    losses: Tensor
    correct: Tensor | None = None
    documents: Tensor | None = None
    numbers: Tensor | None = None


def judged(scores: Tensor, labels: Tensor, sharpness: float = 1.0) -> Answered:
    """What a classifier made of rows.

    Args:
        scores: (rows, classes).
        labels: (rows,), the right classes.
        sharpness: a factor of the scores in the loss, as in training.
    """
    losses = nn.functional.cross_entropy(sharpness * scores.float(), labels, reduction="none")
    return Answered(losses, scores.argmax(dim=1) == labels)


class Evaluator(Protocol):
    """Asks a model with a merge on it. The base model is in memory once, rows are prepared once."""

    #: How numbers are computed, for the records, e.g. "bfloat16 weights and activations".
    precision: str

    def answers(self, update: Update | None, task: str, count: int) -> Answered:
        """What the model makes of the first `count` held-out rows of a task, or of all if there are fewer.

        The order of the rows is always the same, so that two updates can be compared item by item.
        """


@dataclass(frozen=True)
class Part:
    """Tasks of a suite that are scored together.

    Args:
        name: on the page.
        tasks: which.
        judge: whether defaults were chosen without looking at them, so that they can judge these.
    """

    name: str
    tasks: tuple[str, ...]
    judge: bool


@dataclass(frozen=True, kw_only=True)
class Suite(ABC):
    """A base model and tasks with one trained adapter each.

    Args:
        cache: folder for downloads and trained adapters, shared by all suites; one's own is `cache / name`.
        ready: a folder that holds one ready-made adapter folder for each task; then nothing is trained.
        train: train the adapters again, also where the cache has them.
    """

    cache: Path
    ready: Path | None = None
    train: bool = False

    #: The suite's name, its tasks, what it is in one sentence for the page, and the rows a task used by default.
    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    about: ClassVar[str]
    items: ClassVar[int] = 250
    #: Whether defaults were chosen without looking at this suite, so that it can judge them.
    judge: ClassVar[bool] = True

    @classmethod
    def parts(cls) -> tuple[Part, ...]:
        """The parts that are scored apart: all tasks together, unless a suite says otherwise."""
        return (Part(cls.name, cls.tasks, cls.judge),)

    @abstractmethod
    def base(self) -> Path:
        """The folder of the base model, as `samerge.merge` takes it; downloaded if missing."""

    @abstractmethod
    def train_adapter(self, task: str, folder: Path) -> None:
        """Train a task's adapter into a folder."""

    def adapters(self) -> dict[str, Path]:
        """The folder of each task's adapter; trained and cached if missing."""
        if self.ready is not None:
            return {task: self.ready / task for task in self.tasks}
        folders = {task: self.folder() / "adapters" / task for task in self.tasks}
        for task, folder in folders.items():
            if self.train or not (folder / "adapter_model.safetensors").is_file():
                self.train_adapter(task, folder)
        return folders

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """The evaluator, with the base model loaded."""

    def folder(self) -> Path:
        """The suite's own folder in the cache."""
        own = self.cache / self.name
        own.mkdir(parents=True, exist_ok=True)
        return own


def mixed(held_out: Sequence[Row]) -> list[Row]:
    """Rows that no adapter was trained on, in an order of their own: the first of them are a fair sample.

    Example:
        >>> sorted(mixed(range(4)))
        [0, 1, 2, 3]
    """
    rows = list(held_out)
    random.Random(1).shuffle(rows)
    return rows


def default_cache() -> Path:
    """`$SAMERGE_BENCHMARKS_CACHE`, or ~/.cache/samerge-benchmarks."""
    return Path(os.environ.get("SAMERGE_BENCHMARKS_CACHE") or Path.home() / ".cache" / "samerge-benchmarks")


def computing_dtype(default: str = "bfloat16") -> torch.dtype:
    """What evaluators compute in: `$SAMERGE_BENCHMARKS_DTYPE`, bfloat16 or float32; `default` where it is not set."""
    name = os.environ.get(DTYPE_VARIABLE) or default
    if name not in ("bfloat16", "float32"):
        raise ValueError(f"{DTYPE_VARIABLE}={name!r} must be bfloat16 or float32")
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def precision_of(dtype: torch.dtype) -> str:
    """An evaluator's `precision`, for weights and activations in one dtype."""
    return f"{str(dtype).removeprefix('torch.')} weights and activations"
