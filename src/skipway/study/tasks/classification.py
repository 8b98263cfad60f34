"""Telling the classes of images apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from skipway.errors import SkipwayError
from skipway.study.tasks.augmentation import Augment
from skipway.study.tasks.images import Images
from skipway.study.tasks.task import Batch, Batches, InPieces, Network, Task, shown

_EVALUATION_BATCH = 512


class Classification(Task):
    """Images of one size in classes: trained by cross-entropy, measured by the share that is told wrong."""

    kind = "classification"
    judge = ("validation_error", "lowest")

    def __init__(self, images: Images, parts: Mapping[str, str] | None = None, augment: Augment | None = None) -> None:
        self.images, self.augment = images, augment
        # Which part of the images is measured under which name.
        self._parts = {"validation": "test"} if parts is None else parts

    @property
    def count(self) -> int:
        return len(self.images.train_labels)

    def batch(self, indices: Int64[Tensor, " n"], seeds: Int64[Tensor, " n"]) -> Batch:
        pixels = self.images.train_images[indices]
        if self.augment is not None:
            (pixels,) = self.augment(int(seeds[0]), pixels.float())
        return pixels, self.images.train_labels[indices]

    def loss(self, network: Network, batch: Batch) -> Float[Tensor, ""]:
        pixels, labels = batch
        return F.cross_entropy(network(self.normalise(pixels)), labels)

    def sums(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        pixels, labels = batch
        logits = network(self.normalise(pixels))
        wrong = (logits.argmax(dim=1) != labels).sum()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return {"wrong": wrong, "loss": loss, "count": torch.ones_like(labels).sum()}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        count = int(sums["count"])
        return {"error": int(sums["wrong"]) / count, "loss": float(sums["loss"]) / count}

    def check(self, network: Network) -> None:
        pixels = self.images.train_images[:2]
        logits = network(self.normalise(pixels))
        expected = (len(pixels), len(self.images.classes))
        if tuple(logits.shape) != expected:
            raise SkipwayError(
                f"the network gives {shown(logits.shape)} for {shown(pixels.shape)} images; "
                f"the {len(self.images.classes)} classes of {self.images.name} need logits of {shown(expected)}"
            )

    def parts(self) -> dict[str, Batches]:
        images = self.images
        tensors = {
            "train": (images.train_images, images.train_labels),
            "test": (images.test_images, images.test_labels),
        }
        return {name: InPieces(tensors[part], _EVALUATION_BATCH) for name, part in self._parts.items()}

    def normalise(self, pixels: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Pixels as the network takes them: each channel with mean 0 and deviation 1 over the training images."""
        mean, deviation = self.images.statistics
        return (pixels.float() - mean.to(pixels.device)) / deviation.to(pixels.device)
