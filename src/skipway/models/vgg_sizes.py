"""The named VGGs: 11, 13, 16 and 19 layers, with and without batch norm, for ImageNet and for small images."""

from __future__ import annotations

from skipway.connect import Kind
from skipway.errors import SkipwayError
from skipway.models.family import Family, Input
from skipway.models.vgg import VGG, VGGPlan

CONVOLUTIONS: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def imagenet_vgg(
    depth: int,
    skip: str | Kind = "none",
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    batch_norm: bool = False,
    hidden: int = 4096,
    dropout: float = 0.5,
) -> VGG:
    """VGG-11/13/16/19: five stages of 3x3 convolutions, each twice as wide as the one before it up to 512.

    `hidden` are the units of the two layers before the last, each behind a `dropout`. Raises SkipwayError for another
    depth.

    >>> sum(p.numel() for p in imagenet_vgg(11, width=4, hidden=8).parameters())
    57904
    """
    plan = VGGPlan(_convolutions(depth), width, batch_norm, "imagenet", hidden, dropout)
    return VGG(plan, skip, num_classes, in_channels)


def cifar_vgg(
    depth: int,
    skip: str | Kind = "none",
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    batch_norm: bool = False,
) -> VGG:
    """VGG-11/13/16/19 for images of 32 x 32 pixels: a mean over space and one linear layer behind the convolutions.

    It has two weight layers fewer than its name says. Raises SkipwayError for another depth.

    >>> cifar_vgg(16).depth
    14
    """
    return VGG(VGGPlan(_convolutions(depth), width, batch_norm, "cifar"), skip, num_classes, in_channels)


def _convolutions(depth: int) -> tuple[int, ...]:
    if depth not in CONVOLUTIONS:
        raise SkipwayError(f"no VGG of depth {depth}: allowed are {', '.join(map(str, CONVOLUTIONS))}")
    return CONVOLUTIONS[depth]


FAMILIES = (
    Family(
        imagenet_vgg,
        {
            f"vgg{depth}{'_bn' if norm else ''}": {"depth": depth, "batch_norm": norm}
            for depth in CONVOLUTIONS
            for norm in (False, True)
        },
        lambda model: (Input((model.in_channels, 224, 224)),),
        skip="none",
    ),
    Family(
        cifar_vgg,
        {
            f"vgg{depth}{'_bn' if norm else ''}-cifar": {"depth": depth, "batch_norm": norm}
            for depth in CONVOLUTIONS
            for norm in (False, True)
        },
        lambda model: (Input((model.in_channels, 32, 32)),),
        skip="none",
    ),
)
