"""CLIP ViT-B/32 and eight image adapters of rank 16 on attention, asked as KnOTS asks them (its per-task setting).

Source: github.com/gstoica27/KnOTS (arXiv 2410.19735), `configs/vitB_r16_*.py`, `eval_scripts/8vision_pertask_*.py`,
`dataset/`; names of adapters, classes and the templates of the heads are from there.

- A picture is resized (shorter side to 224, bicubic), cropped in the middle and normalised as CLIP's processor does.
- A task's head is text: for each class the mean of the unit embeddings of its templates, made unit again. A picture
  belongs to the class with the largest cosine. Heads are of the base's text side, which no adapter changes.
- The score is accuracy; a merge's is told in per cent of what the task's own adapter reaches, mean over tasks.
- KnOTS computes in float32 with autocast to float16; here it is float32.

One difference, of sampling alone: for cars, gtsrb, mnist, sun397 and svhn KnOTS puts a random fifth of the test split
aside to choose strengths by, and tells the accuracy on the rest. Here it is on the whole test split of the Hub's
copies, those that FusionBench (arXiv 2406.03280) asks: the order of their rows is not known to be the one that KnOTS'
numbers of rows count. FusionBench's labels count the same classes in the same order (compared name by name).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy
import torch
from suites.base import Answered, LiveWeights, Update, computing_dtype, judged, mixed, precision_of
from torch import Tensor, nn

from public import hub

BASE = "openai/clip-vit-base-patch32"
BATCH = 128
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLASSES: dict[str, list[str]] = json.loads(Path(__file__).with_name("class_names.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Pictures:
    """Where a task's pictures are, and how its classes are put into words.

    Args:
        path: of the data set; its columns are `image` and `label`, its split is `test`.
        templates: {} for a class.
        name: of the data set's configuration.
    """

    path: str
    templates: Sequence[str]
    name: str | None = None


_NUMBER = ('a photo of the number: "{}".',)

DATA: dict[str, Pictures] = {
    "stanford_cars": Pictures(
        "tanganke/stanford_cars",
        (
            *("a photo of a {}.", "a photo of the {}.", "a photo of my {}.", "i love my {}!"),
            *(f"a photo of my {how} {{}}." for how in ("dirty", "clean", "new", "old")),
        ),
    ),
    "dtd": Pictures(
        "tanganke/dtd",
        [f"a photo of {a} {{}} {what}." for a in ("a", "the") for what in ("texture", "pattern", "thing", "object")],
    ),
    "eurosat": Pictures("tanganke/eurosat", [f"a centered satellite photo of {a}{{}}." for a in ("", "a ", "the ")]),
    "gtsrb": Pictures(
        "tanganke/gtsrb", [f'a {how} photo of a "{{}}" traffic sign.' for how in ("zoomed in", "centered", "close up")]
    ),
    "mnist": Pictures("ylecun/mnist", _NUMBER),
    "resisc45": Pictures(
        "tanganke/resisc45",
        [
            f"{how} {what} of {a}{{}}."
            for a in ("", "a ", "the ")
            for what in ("imagery", "photo", "view")
            for how in ("satellite", "aerial")
        ],
    ),
    "sun397": Pictures("tanganke/sun397", ("a photo of a {}.", "a photo of the {}.")),
    "svhn": Pictures("ufldl-stanford/svhn", _NUMBER, "cropped_digits"),
}


@dataclass(frozen=True, kw_only=True)
class KnotsVision(hub.PublicSuite):
    """The eight adapters as they are on the Hub."""

    name: ClassVar[str] = "knots-vision"
    tasks: ClassVar[tuple[str, ...]] = tuple(DATA)
    about: ClassVar[str] = "CLIP ViT-B/32 (88 M), eight image tasks, KnOTS' adapters of rank 16 on attention"
    adapter_id: ClassVar[str] = "hoffman-lab/KnOTS-ViT-B-32_lora_R16_{}"
    normalised: ClassVar[bool] = True

    def base(self) -> Path:
        """The vision side alone, under the names that the adapters know: text has modules of the same names."""
        folder = self.folder() / "vision"
        if not (folder / "model.safetensors").is_file():
            from safetensors.torch import save_file

            model = _clip()
            folder.mkdir(exist_ok=True)
            model.config.vision_config.save_pretrained(folder)
            tensors = {name: value.contiguous() for name, value in model.vision_model.named_parameters()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    def evaluator(self) -> KnotsVisionEvaluator:
        return KnotsVisionEvaluator(self.folder())


def _clip() -> Any:
    """The whole model, float32."""
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(_files(), dtype=torch.float32).eval()


def _files() -> Path:
    return hub.snapshot(BASE, "*.json", "*.safetensors", "merges.txt")


class KnotsVisionEvaluator:
    """The model in memory, pictures resized once into a file, heads made once.

    Args:
        folder: where the files of pictures go: 150 kB a picture, 13 GB for all.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        dtype = computing_dtype("float32")
        self._folder = folder
        self._device = hub.device()
        self._model = _clip().to(self._device)
        self._tokenizer = AutoTokenizer.from_pretrained(_files())
        self._heads: dict[str, Tensor] = {}
        self._live = LiveWeights.rounded(self._model.vision_model, dtype)
        self._dtype = dtype
        self.precision = precision_of(dtype)

    @torch.inference_mode()
    def answers(self, update: Update | None, task: str, count: int) -> Answered:
        self._live.put(update)
        if task not in self._heads:
            self._heads[task] = head(self._model, self._tokenizer, CLASSES[task], DATA[task].templates)
        pixels, labels = prepared(self._folder, task, count, self._model.config.vision_config.image_size)
        scores = [
            self._features(torch.from_numpy(pixels[start : start + BATCH].copy())) @ self._heads[task].T
            for start in range(0, len(pixels), BATCH)
        ]
        return judged(torch.cat(scores).cpu(), labels, float(self._model.logit_scale.exp()))

    def _features(self, pixels: Tensor) -> Tensor:
        """Unit embeddings (pictures, width) of (pictures, side, side, 3) bytes."""
        normal = (pixels.to(self._device).float() / 255 - torch.tensor(MEAN, device=self._device)) / torch.tensor(
            STD, device=self._device
        )
        states = self._model.vision_model(pixel_values=normal.permute(0, 3, 1, 2).to(self._dtype)).pooler_output
        return nn.functional.normalize(self._model.visual_projection(states.float()), dim=-1)


def head(model: Any, tokenizer: Any, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(classes, width), unit rows."""
    found = []
    for name in classes:
        tokens = tokenizer([template.format(name) for template in templates], padding=True, return_tensors="pt")
        given = {key: tokens[key].to(model.device) for key in ("input_ids", "attention_mask")}
        texts = model.text_projection(model.text_model(**given).pooler_output)  # (templates, width)
        found.append(nn.functional.normalize(texts, dim=-1).mean(dim=0))
    return nn.functional.normalize(torch.stack(found), dim=-1)


def prepared(folder: Path, task: str, count: int, side: int) -> tuple[numpy.ndarray, Tensor]:
    """A task's first pictures, (pictures, side, side, 3) bytes of a file that is made if missing, and their labels."""
    rows = hub.rows(DATA[task].path, DATA[task].name, "test")
    places = mixed(range(len(rows)))[:count]
    pixels, labels = (folder / "pictures" / f"{task}-{len(places)}-{what}.npy" for what in ("pixels", "labels"))
    if not labels.is_file():
        pixels.parent.mkdir(exist_ok=True)
        into = numpy.lib.format.open_memmap(pixels, "w+", numpy.uint8, (len(places), side, side, 3))
        right = numpy.empty(len(places), numpy.int64)
        for number, place in enumerate(places):
            row = rows[place]
            into[number], right[number] = resized(row["image"], side), row["label"]
        into.flush()
        numpy.save(labels, right)  # last, as its being there says that all is
    return numpy.load(pixels, mmap_mode="r"), torch.from_numpy(numpy.load(labels))


def resized(image: Any, side: int) -> numpy.ndarray:
    """(side, side, 3), bytes: the middle of a picture whose shorter side is `side`, as CLIP's processor has it."""
    from PIL import Image

    width, height = image.size
    short = min(width, height)
    size = (int(side * width / short), int(side * height / short))
    scaled = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return numpy.asarray(scaled.crop((left, top, left + side, top + side)))
