"""Images and their masks from a folder, held whole in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from skipway.errors import SkipwayError
from skipway.study.tasks.sources import SUFFIXES, first_line

HELD_OUT = 0.2
# More values than this in a mask are not classes but shades, as lossy compression and blurring make them.
_MOST_CLASSES = 64


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images of any sizes, the class of each of their pixels, and the mask values that the classes stand for."""

    names: tuple[str, ...]
    images: tuple[UInt8[Tensor, "c h w"], ...]
    masks: tuple[UInt8[Tensor, "h w"], ...]


@dataclass(frozen=True, eq=False)
class MaskedImages:
    """Pairs to train on and pairs held out, and the mask values that classes 0, 1, ... stand for."""

    name: str
    train: Pairs
    held_out: Pairs
    values: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.train.images[0].shape[0]

    @property
    def smallest(self) -> tuple[int, int]:
        """The least height and the least width among the training images."""
        return min(i.shape[1] for i in self.train.images), min(i.shape[2] for i in self.train.images)

    @cached_property
    def statistics(self) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
        """Mean and standard deviation of each channel over the pixels of the training images."""
        pixels = torch.cat([image.flatten(1) for image in self.train.images], dim=1).double()
        deviation, mean = torch.std_mean(pixels, dim=1, correction=0)
        # A channel that never changes is only centred.
        deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        return mean.float()[:, None, None], deviation.float()[:, None, None]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every pixel and mask, in order."""
        digest = hashlib.sha256()
        for pairs in (self.train, self.held_out):
            for part in (*pairs.images, *pairs.masks):
                digest.update(repr(tuple(part.shape)).encode())
                digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, object]:
        """What a record says of the data."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train": len(self.train.names),
            "held_out": list(self.held_out.names),
            "values": list(self.values),
            "channels": self.channels,
        }


def is_masked(folder: Path) -> bool:
    """Whether a folder holds images and masks, or train and test folders of such."""
    return any((place / "masks").is_dir() for place in (folder, folder / "train"))


def read_masked_images(folder: Path, held_out: float | int = HELD_OUT, limit: int | None = None) -> MaskedImages:
    """The pairs of `folder`: images/ and masks/ with files of the same names, or train/ and test/ folders of these.

    Of one folder, the last files by name are held out: a share of them below 1, or that many; numbers in names count
    as numbers. `limit` keeps that many of the training pairs. Every value in a mask is a class. Raises SkipwayError
    for what does not fit together.
    """
    values: set[int] = set()
    if (folder / "train" / "masks").is_dir():
        test = next(
            (folder / part for part in ("test", "validation", "valid", "val") if (folder / part).is_dir()), None
        )
        if test is None:
            raise SkipwayError(f"'{folder}' has train/ and no test/ beside it; hold images/ and masks/ in both")
        train, rest = _pairs(folder / "train", values), _pairs(test, values)
    else:
        pairs = _pairs(folder, values)
        count = len(pairs.names)
        last = round(held_out * count) if held_out < 1 else int(held_out)
        if held_out <= 0 or last < 1 or last >= count:
            raise SkipwayError(
                f"{held_out:g} of the {count} images of '{folder}' held out leave {count - last} to train on and "
                f"{last} to measure; hold out a share such as 0.2, or a number such as 6"
            )
        train, rest = _part(pairs, slice(None, count - last)), _part(pairs, slice(count - last, None))
    train = _part(train, slice(limit))
    if len(values) < 2:
        raise SkipwayError(
            f"the masks of '{folder}' hold one value, {min(values)}, alone: there is nothing to tell apart"
        )
    if len(values) > _MOST_CLASSES:
        raise SkipwayError(
            f"the masks of '{folder}' hold {len(values)} values, and each is a class; "
            "store masks without loss (PNG), one value a class"
        )
    known = sorted(values)
    table = torch.zeros(256, dtype=torch.uint8)
    table[known] = torch.arange(len(known), dtype=torch.uint8)
    channels = max(image.shape[0] for image in (*train.images, *rest.images))
    return MaskedImages(
        str(folder), _alike(train, table, channels), _alike(rest, table, channels), tuple(int(value) for value in known)
    )


def read_pixels(path: Path) -> UInt8[Tensor, "c h w"]:
    """The pixels of an image file: one channel where it is grey, three otherwise."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            grey = image.mode in ("1", "L", "I;16", "I", "F")
            if image.mode in ("I;16", "I", "F"):
                array = np.asarray(image, dtype=np.float64)
                array = (255 * array / max(1.0, array.max())).astype(np.uint8)
            else:
                array = np.asarray(image.convert("L" if grey else "RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise SkipwayError(f"'{path}' cannot be read as an image: {first_line(error)}") from error
    return torch.from_numpy(array.copy() if grey else np.moveaxis(array, 2, 0).copy())[(None,) * grey]


def _pairs(folder: Path, values: set[int]) -> Pairs:
    images, masks = _files(folder / "images"), _files(folder / "masks")
    if lone := sorted(set(images) ^ set(masks)):
        kind, other = ("image", "mask") if lone[0] in images else ("mask", "image")
        raise SkipwayError(
            f"'{folder}': {kind} '{lone[0]}' has no {other} of its name ({len(lone)} such in all); "
            "images/ and masks/ hold files of the same names"
        )
    if not images:
        raise SkipwayError(f"'{folder}' holds no images; it needs images/ and masks/ with files of the same names")
    names = sorted(images, key=_natural)
    pixels = [read_pixels(images[name]) for name in names]
    classes = [_read_mask(masks[name]) for name in names]
    for name, image, mask in zip(names, pixels, classes, strict=True):
        if image.shape[1:] != mask.shape:
            (h, w), (other_h, other_w) = image.shape[1:], mask.shape
            raise SkipwayError(f"'{folder}': image '{name}' is {h} x {w} and its mask {other_h} x {other_w}")
        values.update(mask.unique().tolist())
    return Pairs(tuple(names), tuple(pixels), tuple(classes))


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise SkipwayError(f"there is no folder '{folder}'; a set of masked images holds images/ and masks/")
    return {path.stem: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}


def _read_mask(path: Path) -> UInt8[Tensor, "h w"]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            # A palette's numbers are the classes, whatever colours they are shown in.
            array = np.asarray(image if image.mode in ("P", "L") else image.convert("L"))
    except (OSError, Image.DecompressionBombError) as error:
        raise SkipwayError(f"'{path}' cannot be read as an image: {first_line(error)}") from error
    return torch.from_numpy(array.copy())


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _part(pairs: Pairs, which: slice) -> Pairs:
    return Pairs(pairs.names[which], pairs.images[which], pairs.masks[which])


def _alike(pairs: Pairs, table: Tensor, channels: int) -> Pairs:
    images: Sequence[Tensor] = [
        image if image.shape[0] == channels else image.expand(channels, -1, -1) for image in pairs.images
    ]
    return Pairs(pairs.names, tuple(images), tuple(table[mask.long()] for mask in pairs.masks))
