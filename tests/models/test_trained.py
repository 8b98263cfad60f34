"""Published weights of CIFAR-10 networks load and reach the error that their authors, and we, measured."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

import skipway as sw


@dataclass(frozen=True)
class Trained:
    """A file of ../shared/data/weights, how its net saw images, and its error on the 10,000 test images in percent."""

    file: str
    model: str
    skip: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    error: float


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MARTYN = ((0.49187, 0.49186, 0.49186), (0.24697, 0.24697, 0.24697))
# The errors are those that the data's README gives, measured on the same images.
NETS = [
    Trained("akamaster-resnet20.th", "resnet20", "zero-pad-split", *IMAGENET, 8.27),
    Trained("akamaster-resnet56.th", "resnet56", "zero-pad-split", *IMAGENET, 6.61),
    Trained("a-martyn-resnet20.pt", "resnet20", "residual", *MARTYN, 8.02),
    Trained("a-martyn-plainnet20.pt", "resnet20", "none", *MARTYN, 9.69),
    Trained("a-martyn-plainnet56.pt", "resnet56", "none", *MARTYN, 13.07),
    Trained("a-martyn-resnet56.pt", "resnet56", "residual", *MARTYN, 7.45),
]
BY_FILE = {net.file: net for net in NETS}


def first_images(shared_data: Path, n: int) -> tuple[Tensor, Tensor]:
    table = pd.read_parquet(shared_data / "cifar10" / "test-00000-of-00001.parquet")[:n]
    pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["img"]]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255, torch.tensor(np.asarray(table["label"]))


@functools.cache
def errors(shared_data: Path, net: Trained, n: int) -> float:
    """Percent of the first n test images that the trained net takes for something else."""
    images, labels = first_images(shared_data, n)
    weights = shared_data / "weights" / net.file
    model = sw.models.create(net.model, net.skip, weights=weights, num_classes=10).eval()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (net.mean, net.deviation))
    with torch.no_grad():
        found = torch.cat([model((part - mean) / deviation).argmax(1) for part in images.split(250)])
    return float((found != labels).float().mean()) * 100


@pytest.mark.parametrize("file", ["akamaster-resnet20.th", "a-martyn-plainnet20.pt"])
def test_the_first_500_images(shared_data: Path, file: str) -> None:
    net = BY_FILE[file]
    deviation = (net.error * (100 - net.error) / 500) ** 0.5
    assert abs(errors(shared_data, net, 500) - net.error) < 3 * deviation


@pytest.mark.slow
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.file)
def test_all_10000_images(shared_data: Path, net: Trained) -> None:
    assert errors(shared_data, net, 10_000) == pytest.approx(net.error, abs=0.02)


@pytest.mark.slow
def test_depth_hurts_the_plain_net_and_not_the_residual_one(shared_data: Path) -> None:
    """The degradation problem, from the four files of one author."""
    found = {net.file: errors(shared_data, net, 10_000) for net in NETS if net.file.startswith("a-martyn")}
    assert found["a-martyn-plainnet56.pt"] > found["a-martyn-plainnet20.pt"]
    assert found["a-martyn-resnet56.pt"] < found["a-martyn-resnet20.pt"]


@pytest.mark.parametrize(
    ("file", "skip", "right"),
    [
        ("akamaster-resnet20.th", "zero-pad", "zero-pad-split"),
        ("a-martyn-resnet20.pt", "zero-pad-split", "zero-pad"),
    ],
)
def test_the_other_layout_of_zero_padding_is_refused(shared_data: Path, file: str, skip: str, right: str) -> None:
    with pytest.raises(sw.SkipwayError, match=f"build the model with skip='{right}'$"):
        sw.models.create("resnet20", skip, weights=shared_data / "weights" / file)


def test_and_with_reason_for_it_would_be_wrong_in_most_images(shared_data: Path) -> None:
    net = BY_FILE["akamaster-resnet20.th"]
    right = sw.models.create("resnet20", "zero-pad-split", weights=shared_data / "weights" / net.file)
    wrong = sw.models.create("resnet20", "zero-pad")
    wrong.load_state_dict(right.state_dict())
    images, labels = first_images(shared_data, 100)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (net.mean, net.deviation))
    with torch.no_grad():
        found = wrong.eval()((images - mean) / deviation).argmax(1)
    assert (found != labels).float().mean() > 0.5


def test_weights_of_another_depth_are_refused(shared_data: Path) -> None:
    with pytest.raises(sw.SkipwayError, match=r"It seems to hold a ResNet-56 \(blocks 9-9-9\) for 10 classes"):
        sw.models.create("resnet20", "zero-pad-split", weights=shared_data / "weights" / "akamaster-resnet56.th")
