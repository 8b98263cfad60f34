"""Labelled images for a study, held whole in memory: digits, a folder, or a data set of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from skipway.errors import SkipwayError, choose

EMBEDDED = ("digits",)
TEST_SHARE = 0.2
# Every split and every sub-sample of every study is drawn with this seed, so that trial seeds vary the training alone.
SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled image set in two parts: integer pixels, and labels that index `classes`."""

    name: str
    train_images: UInt8[Tensor, "n c h w"]
    train_labels: Int64[Tensor, " n"]
    test_images: UInt8[Tensor, "m c h w"]
    test_labels: Int64[Tensor, " m"]
    classes: tuple[str, ...]

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_images.shape[2], self.train_images.shape[3]

    @cached_property
    def statistics(self) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        """Mean and standard deviation of each channel over the training images, in pixel units."""
        count = self.train_images.numel() // self.channels
        total = self.train_images.sum(dim=(0, 2, 3), dtype=torch.int64).double()
        # In pieces: a whole set in 64-bit numbers would be eight times its size.
        squares = sum(
            (piece.to(torch.int64) ** 2).sum(dim=(0, 2, 3)).double() for piece in self.train_images.split(4096)
        )
        mean = total / count
        deviation = (squares / count - mean**2).clamp_min(0).sqrt()
        # A channel that never changes is only centred.
        deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        return mean.float()[:, None, None], deviation.float()[:, None, None]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every pixel and label, in order: equal for equal data, wherever it came from."""
        digest = hashlib.sha256()
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(repr((tuple(part.shape), str(part.dtype))).encode())
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, object]:
        """What a record says of the data."""
        height, width = self.size
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train": len(self.train_labels),
            "test": len(self.test_labels),
            "classes": len(self.classes),
            "shape": [self.channels, height, width],
        }


def check_source(source: str | Path) -> None:
    """Raise SkipwayError if `source` can be no data set, before anything is read."""
    text = str(source)
    if text in EMBEDDED or Path(text).expanduser().exists():
        return
    if isinstance(source, str) and text.count("/") == 1 and not text.startswith((".", "/", "~")):
        return
    if "/" in text or isinstance(source, Path):
        raise SkipwayError(f"no data folder '{text}'; name one that exists, or 'digits'")
    try:
        choose("data set", text, EMBEDDED)
    except SkipwayError as error:
        raise SkipwayError(
            f"{error}, a folder of images or parquet files, or a Hugging Face name such as 'uoft-cs/cifar10'"
        ) from None


def load_images(source: str | Path, samples: int | None = None, image_size: int | None = None) -> Images:
    """Read a labelled image set: "digits", a folder, or "owner/name" of the Hugging Face Hub.

    A folder holds train*.parquet and test*.parquet, or train/<class>/*.png and test/<class>/*.png, or <class>/*.png
    alone, of which a fifth becomes the test set. `samples` keeps that many training images and as many test images at
    most; `image_size` brings images to that many pixels a side. Raises SkipwayError where the data cannot be used.

    >>> load_images("digits").train_images.shape
    torch.Size([1438, 1, 8, 8])
    """
    check_source(source)
    if str(source) in EMBEDDED:
        if image_size is not None:
            raise SkipwayError(f"image_size={image_size} is for images of a folder or the Hub; digits are 8 x 8")
        images = _digits()
        return images if samples is None else _sample(images, samples)
    from skipway.study.tasks.sources import read_source

    return read_source(source, samples, image_size)


def split(labels: Sequence[int], classes: Sequence[str], name: str) -> tuple[list[int], list[int]]:
    """Indices of the training and the test part, each class in its share, drawn with the split's seed."""
    from sklearn.model_selection import train_test_split

    counts = torch.bincount(torch.tensor(labels), minlength=len(classes))
    if int(counts.min()) < 2:
        rare = classes[int(counts.argmin())]
        raise SkipwayError(f"{name}: class '{rare}' has fewer than 2 images; a split into training and test needs 2")
    test_size = max(len(classes), round(TEST_SHARE * len(labels)))
    if test_size > len(labels) - len(classes):
        raise SkipwayError(f"{name}: {len(labels)} images of {len(classes)} classes are too few to split")
    train, test = train_test_split(range(len(labels)), test_size=test_size, random_state=SPLIT_SEED, stratify=labels)
    return sorted(train), sorted(test)


def pick(available: int, samples: int | None) -> list[int]:
    """Indices of at most `samples` of what is available, drawn with the split's seed, in their order."""
    if samples is None or samples >= available:
        return list(range(available))
    order = torch.randperm(available, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return sorted(order[:samples].tolist())


def _digits() -> Images:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = torch.from_numpy(digits.images).to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target).to(torch.int64)
    classes = tuple(str(name) for name in digits.target_names)
    train, test = split(labels.tolist(), classes, "digits")
    return Images("digits", pixels[train], labels[train], pixels[test], labels[test], classes)


def _sample(images: Images, samples: int) -> Images:
    train, test = pick(len(images.train_labels), samples), pick(len(images.test_labels), samples)
    return Images(
        images.name,
        images.train_images[train],
        images.train_labels[train],
        images.test_images[test],
        images.test_labels[test],
        images.classes,
    )
