"""The model and the data of a measurement on the command line: SPEC with its weights, and images that it can take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from skipway import models
from skipway.cli.specs import find, is_file
from skipway.errors import SkipwayError, choose

if TYPE_CHECKING:
    from skipway.study import Images

PARTS = ("test", "train")


@dataclass(frozen=True)
class DataChoice:
    """Which images are measured on, and how they are normalised: by the set's own statistics unless told otherwise."""

    name: str
    part: str = "test"
    samples: int = 512
    batch_size: int = 128
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    deviation: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        choose("part of the data", self.part, PARTS)
        if self.samples < 1 or self.batch_size < 1:
            raise SkipwayError(f"--samples and --batch-size are at least 1, not {self.samples} and {self.batch_size}")
        if (self.mean is None) != (self.deviation is None):
            raise SkipwayError("--mean and --std go together: give both, one number for each channel, or neither")

    def images(self) -> Images:
        """The images to measure on; all of the set where its own statistics are to be known."""
        from skipway.study import load_images

        return load_images(self.name, None if self.mean is None else self.samples, self.image_size)


def model_for(
    spec: str,
    images: Images,
    skip: str | None,
    weights: Path | None,
    published: bool,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """The model that a SPEC means, built for the data as `skipway train` builds it, with its weights, in evaluation
    mode; one from a file, or that is published with its weights, as it is."""
    from skipway.study.training.building import build_network

    chosen = dict(options or {})
    if published or is_file(spec):
        return _loaded(_seeded(find(spec, skip, published, chosen).built, seed), weights).eval()
    if ":" not in spec:
        find(spec, skip, options=chosen)
    offered = {
        "num_classes": len(images.classes), "in_channels": images.channels, "image_size": images.size[0],
        "image_shape": [images.channels, *images.size],
    }  # fmt: skip
    # Weights may be for the channels of the data or for three, to which gray images are brought, and models of
    # torchvision are for three alone.
    counts = [3] if spec.startswith("torchvision:") else [images.channels]
    if weights is not None and counts != [3]:
        counts.append(3)
    failure: SkipwayError | None = None
    for channels in counts:
        settled = {**offered, "in_channels": channels, "image_shape": [channels, *images.size]}
        model = _seeded(lambda settled=settled: build_network(spec, "classification", settled, skip, chosen), seed)
        try:
            return _loaded(model, weights).eval()
        except SkipwayError as error:
            failure = failure or error
    assert failure is not None
    raise failure


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def _loaded(model: nn.Module, weights: Path | None) -> nn.Module:
    if weights is not None:
        models.load_weights(model, weights)
    return model


def image_batches(model: nn.Module, images: Images, choice: DataChoice) -> list[tuple[Tensor, Tensor]]:
    """The first images of a part of the data, normalised, in batches, with as many channels as the model takes.

    Raises SkipwayError where the model takes other channels, or tells fewer classes than the data has.
    """
    pixels, labels = images.test_images, images.test_labels
    if choice.part == "train":
        pixels, labels = images.train_images, images.train_labels
    # In an order drawn once, so that a set sorted by class gives every class.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[: choice.samples]
    mean, deviation = images.statistics
    if choice.mean is not None and choice.deviation is not None:
        mean, deviation = _per_channel(choice.mean, images), _per_channel(choice.deviation, images)
    inputs = (pixels[order].float() - mean) / deviation
    inputs = _with_channels(inputs, model)
    parts = zip(inputs.split(choice.batch_size), labels[order].split(choice.batch_size), strict=True)
    batches = list(parts)
    _check_classes(model, batches[0][0][:2], len(images.classes))
    return batches


def flat_features(images: Images, choice: DataChoice) -> dict[str, Tensor]:
    """The first images of a part of the data as rows of numbers, and their labels."""
    pixels, labels = images.test_images, images.test_labels
    if choice.part == "train":
        pixels, labels = images.train_images, images.train_labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[: choice.samples]
    return {"features": pixels[order].float().flatten(1) / 255, "labels": labels[order]}


def _per_channel(values: Sequence[float], images: Images) -> Tensor:
    if len(values) not in (1, images.channels):
        raise SkipwayError(f"--mean and --std take a number for each of {images.channels} channels, not {len(values)}")
    return 255 * torch.tensor(values).expand(images.channels)[:, None, None]


def _with_channels(inputs: Tensor, model: nn.Module) -> Tensor:
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.in_channels == inputs.shape[1]:
        return inputs
    if inputs.shape[1] == 1:
        return inputs.expand(-1, first.in_channels, -1, -1).contiguous()
    raise SkipwayError(f"the images have {inputs.shape[1]} channels and the model takes {first.in_channels}")


def _check_classes(model: nn.Module, inputs: Tensor, classes: int) -> None:
    try:
        with torch.no_grad():
            output = model(inputs)
    except Exception as error:
        raise SkipwayError(
            f"the model does not run on these images, {tuple(inputs.shape[1:])} each; --image-size brings them to "
            f"another size ({type(error).__name__}: {error})"
        ) from error
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] < classes:
        raise SkipwayError(f"the model tells {logits.shape[1]} classes apart and the data has {classes}")
