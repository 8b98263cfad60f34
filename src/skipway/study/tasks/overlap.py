"""How far two masks cover each other: Dice and intersection over union, exact and as a loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

# Keeps a class that is neither there nor seen from dividing by nothing; it then counts as found.
_SMOOTHING = 1.0


def soft_dice_loss(probabilities: Float[Tensor, "n k *space"], classes: Int64[Tensor, "n *space"]) -> Float[Tensor, ""]:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1), the sums over the pixels of an image, mean over images and classes.

    `probabilities` are of all k classes, or of class 1 alone where k = 1. Milletari et al. 2016 (arXiv:1606.04797),
    without their squares.

    >>> soft_dice_loss(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[1, 0]]))
    tensor(0.)
    """
    k = probabilities.shape[1]
    truth = classes[:, None] if k == 1 else F.one_hot(classes, k).movedim(-1, 1)
    p, t = probabilities.flatten(2), truth.flatten(2).to(probabilities.dtype)
    both = (p * t).sum(2)
    return 1 - ((2 * both + _SMOOTHING) / (p.sum(2) + t.sum(2) + _SMOOTHING)).mean()


def class_counts(
    predicted: Shaped[Tensor, "n *space"], truth: Shaped[Tensor, "n *space"], classes: int
) -> Float64[Tensor, "3 classes"]:
    """Pixels of each class in both, in the prediction and in the truth."""
    both = torch.bincount(truth[predicted == truth].flatten(), minlength=classes)
    return torch.stack(
        [both, *(torch.bincount(part.flatten(), minlength=classes) for part in (predicted, truth))]
    ).double()


def dice(counts: Float64[Tensor, "3 classes"]) -> Float64[Tensor, " classes"]:
    """2 |A and B| / (|A| + |B|) of each class, NaN for one that is nowhere."""
    return 2 * counts[0] / (counts[1] + counts[2])


def intersection_over_union(counts: Float64[Tensor, "3 classes"]) -> Float64[Tensor, " classes"]:
    """|A and B| / |A or B| of each class, NaN for one that is nowhere."""
    return counts[0] / (counts[1] + counts[2] - counts[0])
