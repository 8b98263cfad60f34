"""Telling the class of every pixel of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from skipway.errors import SkipwayError, choose
from skipway.study.tasks.augmentation import Augment
from skipway.study.tasks.masks import MaskedImages, Pairs
from skipway.study.tasks.overlap import class_counts, dice, intersection_over_union, soft_dice_loss
from skipway.study.tasks.task import Batch, Batches, Network, Task, shown

# How many of the images held out are drawn.
_DRAWN = 3
LOSSES = ("cross-entropy", "dice", "both")


class Segmentation(Task):
    """Images with masks: trained on random crops, measured on whole images that were held out.

    Two classes are told by one logit, whose sigmoid is the probability of the second; more by one logit each. In one
    pass every image gives as many crops as cover it. Dice and intersection over union are over all pixels held out
    together, of the second class where there are two, and the mean over those that occur where there are more.
    """

    kind = "segmentation"
    judge = ("validation_dice", "highest")

    def __init__(
        self, images: MaskedImages, crop: int | None = None, loss: str = "both", augment: Augment | None = None
    ) -> None:
        choose("loss", loss, LOSSES)
        sizes = {tuple(image.shape[1:]) for image in images.train.images}
        if crop is None and len(sizes) > 1:
            (h, w), (other_h, other_w), *_ = sorted(sizes)
            raise SkipwayError(
                f"{images.name}: images differ in size, {h} x {w} and {other_h} x {other_w}; "
                f"train on crops of one size, such as {min(images.smallest)}"
            )
        if crop is not None and crop > min(images.smallest):
            h, w = images.smallest
            raise SkipwayError(f"{images.name}: a crop of {crop} x {crop} is larger than the smallest image, {h} x {w}")
        self.images, self.augment, self.losses = images, augment, loss
        self.crop = images.smallest if crop is None else (crop, crop)
        h, w = self.crop
        self._of_image = [
            number
            for number, image in enumerate(images.train.images)
            for _ in range(math.ceil(image.shape[1] * image.shape[2] / (h * w)))
        ]
        self.logits = 1 if len(images.values) == 2 else len(images.values)

    @property
    def count(self) -> int:
        return len(self._of_image)

    def batch(self, indices: Int64[Tensor, " n"], seeds: Int64[Tensor, " n"]) -> Batch:
        crops = [
            self._cut(self._of_image[index], seed) for index, seed in zip(indices.tolist(), seeds.tolist(), strict=True)
        ]
        pixels = torch.stack([image for image, _ in crops]).float()
        masks = torch.stack([mask for _, mask in crops])
        if self.augment is not None:
            pixels, moved = self.augment(int(seeds[0]), pixels, masks[:, None].float())
            masks = moved[:, 0].round().to(torch.uint8)
        return pixels, masks.long()

    def loss(self, network: Network, batch: Batch) -> Float[Tensor, ""]:
        pixels, masks = batch
        outputs = network(self.normalise(pixels))
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        # Outputs of deep supervision count for half of the one before, as the resolution halves.
        weights = [0.5**level for level in range(len(outputs))]
        losses = [weight * self._loss(output.float(), masks) for weight, output in zip(weights, outputs, strict=True)]
        return torch.stack(losses).sum() / sum(weights)

    def sums(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        pixels, masks = batch
        logits = self.told(network, pixels)
        masks = middle(masks, logits.shape[2:])
        if self.logits == 1:
            loss = F.binary_cross_entropy_with_logits(logits[:, 0], masks.to(logits.dtype), reduction="sum")
        else:
            loss = F.cross_entropy(logits, masks, reduction="sum")
        counts = class_counts(decide(logits), masks, len(self.images.values))
        return {"counts": counts, "loss": loss.double(), "pixels": torch.ones_like(masks).sum().double()}

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        counts, pixels = sums["counts"], float(sums["pixels"])
        scores = {"dice": dice(counts), "iou": intersection_over_union(counts)}
        named = {
            f"{name}_{value}": float(score)
            for name, each in scores.items()
            for value, score in zip(self.images.values, each, strict=True)
        }
        whole = {name: float(each[1] if self.logits == 1 else each.nanmean()) for name, each in scores.items()}
        return {
            **whole,
            "pixel_error": 1 - float(counts[0].sum()) / pixels,
            "loss": float(sums["loss"]) / pixels,
            **named,
        }

    def check(self, network: Network) -> None:
        sizes = {tuple(image.shape[1:]) for image in self.images.held_out.images} | {self.crop}
        for h, w in sorted(sizes):
            logits = network(torch.zeros(1, self.images.channels, h, w))
            if logits.ndim != 4 or logits.shape[1] != self.logits or logits.shape[2] > h or logits.shape[3] > w:
                raise SkipwayError(
                    f"the network gives {shown(logits.shape)} for an image of {h} x {w}; the "
                    f"{len(self.images.values)} classes of {self.images.name} need {self.logits} logits a pixel"
                )

    def parts(self) -> dict[str, Batches]:
        return {"validation": OneByOne(self.images.held_out)}

    def draw(self, network: Network, device: torch.device) -> Any:
        from matplotlib.figure import Figure

        pairs = self.images.held_out
        count = min(_DRAWN, len(pairs.names))
        figure = Figure(figsize=(9, 3 * count), layout="constrained")
        rows = figure.subplots(count, 3, squeeze=False)
        for row, name, image, mask in zip(rows, pairs.names, pairs.images, pairs.masks, strict=False):
            with torch.no_grad():
                told = decide(self.told(network, image[None].to(device)))[0].cpu()
            pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            row[0].imshow(pixels.numpy(), cmap="gray")
            for axes, classes in ((row[1], told), (row[2], mask)):
                axes.imshow(
                    classes.numpy(), vmin=0, vmax=len(self.images.values) - 1, cmap="viridis", interpolation="nearest"
                )
            for axes, title in zip(row, (name, "told", "mask"), strict=True):
                axes.set_title(title)
                axes.set_axis_off()
        return figure

    def normalise(self, pixels: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Pixels as the network takes them: each channel with mean 0 and deviation 1 over the training images."""
        mean, deviation = self.images.statistics
        return (pixels.float() - mean.to(pixels.device)) / deviation.to(pixels.device)

    def told(self, network: Network, pixels: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n k h2 w2"]:
        """The logits of whole images."""
        return network(self.normalise(pixels)).float()

    def _cut(self, number: int, seed: int) -> tuple[Tensor, Tensor]:
        image, mask = self.images.train.images[number], self.images.train.masks[number]
        h, w = self.crop
        generator = torch.Generator().manual_seed(seed)
        top = int(torch.randint(image.shape[1] - h + 1, (), generator=generator))
        left = int(torch.randint(image.shape[2] - w + 1, (), generator=generator))
        return image[:, top : top + h, left : left + w], mask[top : top + h, left : left + w]

    def _loss(self, logits: Float[Tensor, "n k *space"], masks: Int64[Tensor, "n h w"]) -> Float[Tensor, ""]:
        masks = _at(masks, logits.shape[2:])
        parts: list[Any] = []
        if self.losses != "dice":
            if self.logits == 1:
                parts.append(F.binary_cross_entropy_with_logits(logits[:, 0], masks.to(logits.dtype)))
            else:
                parts.append(F.cross_entropy(logits, masks))
        if self.losses != "cross-entropy":
            probabilities = logits.sigmoid() if self.logits == 1 else logits.softmax(dim=1)
            parts.append(soft_dice_loss(probabilities, masks))
        return torch.stack(parts).sum()


class OneByOne:
    """Whole images, each a batch of its own: they may differ in size."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs.names)

    def __getitem__(self, number: int) -> Batch:
        return self.pairs.images[number][None], self.pairs.masks[number][None].long()


def decide(logits: Float[Tensor, "n k *space"]) -> Int64[Tensor, "n *space"]:
    """The class that logits are for: of one logit, class 1 where it is above 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)


def middle(masks: Int64[Tensor, "n h w"], size: torch.Size) -> Int64[Tensor, "n h2 w2"]:
    """The middle of masks, for a network that tells no more: one of convolutions without padding."""
    (h, w), (height, width) = masks.shape[1:], size
    top, left = (h - height) // 2, (w - width) // 2
    return masks[:, top : top + height, left : left + width]


def _at(masks: Int64[Tensor, "n h w"], size: torch.Size) -> Int64[Tensor, "n h2 w2"]:
    # A side of at most half is a coarser output of deep supervision; one that lost a border is not coarser.
    if tuple(size) == tuple(masks.shape[1:]):
        return masks
    if size[0] * 2 > masks.shape[1]:
        return middle(masks, size)
    return F.interpolate(masks[:, None].float(), tuple(size), mode="nearest-exact")[:, 0].long()
