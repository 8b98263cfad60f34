"""Trained CIFAR networks and real images, for the tests that need them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import skipway as sw

_NORMAL = {
    "akamaster": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "a-martyn": ((0.49187, 0.49186, 0.49186), (0.24697, 0.24697, 0.24697)),
}


def images_of(shared_data: Path, whose: str, n: int) -> tuple[Tensor, Tensor]:
    """The first n test images of CIFAR-10, as the trainer of the weights normalised them, and their classes."""
    import pandas
    from PIL import Image

    rows = pandas.read_parquet(shared_data / "cifar10" / "test-00000-of-00001.parquet").iloc[:n]
    pixels = np.stack([np.array(Image.open(io.BytesIO(row["bytes"]))) for row in rows["img"]])
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in _NORMAL[whose])
    return (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std, torch.tensor(rows["label"].to_numpy())


def akamaster(shared_data: Path, depth: int) -> nn.Module:
    skip = sw.Residual(shortcut=sw.ZeroPad(channels="split"))
    weights = shared_data / "weights" / f"akamaster-resnet{depth}.th"
    return sw.models.create(f"resnet{depth}", skip=skip, weights=weights, num_classes=10).eval()


def martyn(shared_data: Path, kind: str, depth: int) -> nn.Module:
    """`kind` is "plainnet" or "resnet"."""
    skip = "none" if kind == "plainnet" else sw.Residual(shortcut=sw.ZeroPad(channels="append"))
    weights = shared_data / "weights" / f"a-martyn-{kind}{depth}.pt"
    return sw.models.create(f"resnet{depth}", skip=skip, weights=weights, num_classes=10).eval()
