"""Training images changed at random, by kornia, and their masks along with them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Takes a seed and tensors of shape [n, c, h, w] that are changed alike: images, then masks where there are any.
Augment = Callable[..., tuple[Tensor, ...]]


# How smooth the shifts of elastic bending are, as a share of the shorter side; kornia's noise is uniform in [-1, 1].
_SMOOTHNESS = 1 / 12
_NOISE_DEVIATION = 1 / math.sqrt(3)


def images(size: tuple[int, int]) -> Augment:
    """The standard of small images: moved by up to 4 pixels, what comes in black, and mirrored half of the time.

    He et al. 2015, section 4.2 (arXiv:1512.03385).
    """
    from kornia.augmentation import AugmentationSequential, RandomCrop, RandomHorizontalFlip

    sequence = AugmentationSequential(RandomCrop(size, padding=4), RandomHorizontalFlip(), data_keys=["input"])
    return _seeded(lambda pixels: (sequence(pixels),))


def masked_images(size: tuple[int, int], elastic: float = 4.0) -> Augment:
    """The U-Net's: mirrored, turned by quarter turns, and bent by smooth random shifts, masks exactly as images.

    Half of the images are bent, each pixel of them by `elastic` pixels (one standard deviation), what lies outside
    being the mirror image. Masks take the nearest value, so that classes stay whole. Images that are not square are
    not turned. Ronneberger et al. 2015, section 3.1 (arXiv:1505.04597).
    """
    from kornia.augmentation import (
        AugmentationSequential,
        RandomElasticTransform,
        RandomHorizontalFlip,
        RandomRotation90,
        RandomVerticalFlip,
    )
    from kornia.constants import DataKey, Resample

    height, width = size
    steps: list[Any] = [RandomHorizontalFlip(), RandomVerticalFlip()]
    if height == width:
        steps.append(RandomRotation90((0, 3), p=1.0))
    if elastic > 0:
        sigma = max(1.0, _SMOOTHNESS * min(size))
        reach = 2 * math.ceil(3 * sigma) + 1
        # Smoothing by a Gaussian divides the deviation of the noise by 2 sigma sqrt(pi).
        unit = 2 * sigma * math.sqrt(math.pi) / _NOISE_DEVIATION
        # kornia counts shifts in half sides.
        shifts = (elastic * unit * 2 / width, elastic * unit * 2 / height)
        steps.append(RandomElasticTransform((reach, reach), (sigma, sigma), shifts, padding_mode="reflection", p=0.5))
    sequence = AugmentationSequential(
        *steps, data_keys=["input", "mask"], extra_args={DataKey.MASK: {"resample": Resample.NEAREST}}
    )
    return _seeded(lambda pixels, masks: tuple(sequence(pixels, masks)))


@contextlib.contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Inside: torch's global random numbers on the CPU come from a seed. Behind: they go on as if nothing happened."""
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(state)


def _seeded(apply: Callable[..., tuple[Tensor, ...]]) -> Augment:
    def augment(seed: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        with drawn_from(seed), torch.no_grad():
            return apply(*tensors)

    return augment
