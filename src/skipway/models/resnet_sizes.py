"""The named ResNets: ImageNet's five, CIFAR's 6n+2, and their pre-activation forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from skipway.connect import Kind
from skipway.errors import SkipwayError, choose
from skipway.models.family import Family, Input
from skipway.models.resnet import Block, ResNet, ResNetPlan

IMAGENET: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


def imagenet_resnet(
    depth: int,
    skip: str | Kind = "residual",
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 64,
    preactivation: bool = False,
    zero_init: bool = False,
) -> ResNet:
    """ResNet-18/34/50/101/152: four stages behind a 7x7 stem, projection shortcuts (option B).

    `preactivation` is the second form: norm and ReLU before each convolution, bare projections. Raises SkipwayError
    for another depth.

    >>> sum(p.numel() for p in imagenet_resnet(18).parameters())
    11689512
    """
    if depth not in IMAGENET:
        raise SkipwayError(f"no ImageNet ResNet of depth {depth}: allowed are {', '.join(map(str, IMAGENET))}")
    block, blocks = IMAGENET[depth]
    plan = ResNetPlan(blocks, width, block, placement="pre-activation" if preactivation else "original")
    return ResNet(plan, skip, num_classes, in_channels, zero_init)


def cifar_resnet(
    depth: int,
    skip: str | Kind = "residual",
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    block: Block | None = None,
    preactivation: bool = False,
    zero_init: bool = False,
) -> ResNet:
    """The ResNet of small images: three stages behind a 3x3 stem, of depth 6n+2, or 9n+2 with bottlenecks.

    Basic blocks pad with zeros (option A); bottlenecks project. `block` None means basic blocks, or bottlenecks for a
    pre-activation net of depth 9n+2 from 164 on, as published. Raises SkipwayError for a depth that no whole n gives.

    >>> sum(p.numel() for p in cifar_resnet(56, skip="none").parameters())
    853018
    """
    if block is None:
        block = "bottleneck" if preactivation and depth >= 164 and depth % 9 == 2 else "basic"
    choose("block", block, ("basic", "bottleneck"))
    unit = 6 if block == "basic" else 9
    n, rest = divmod(depth - 2, unit)
    if rest or n < 1:
        lower = max(1, n) * unit + 2
        raise SkipwayError(
            f"a CIFAR ResNet of {block} blocks has depth {unit}n+2, which {depth} is not: "
            + (f"the nearest are {lower} and {lower + unit}" if depth > lower else f"the smallest is {lower}")
        )
    plan = ResNetPlan(
        (n, n, n),
        width,
        block,
        stem="cifar",
        shortcut="zero-pad" if block == "basic" else "projection",
        placement="pre-activation" if preactivation else "original",
        first_strides=preactivation,
    )
    return ResNet(plan, skip, num_classes, in_channels, zero_init)


def _images(side: int) -> Callable[[ResNet], tuple[Input, ...]]:
    return lambda model: (Input((model.in_channels, side, side)),)


FAMILIES = (
    Family(
        partial(imagenet_resnet, preactivation=False),
        {f"resnet{depth}": {"depth": depth} for depth in IMAGENET},
        _images(224),
    ),
    Family(
        partial(cifar_resnet, preactivation=False),
        {f"resnet{depth}": {"depth": depth} for depth in (20, 32, 44, 56, 110, 1202)},
        _images(32),
        pattern=r"resnet(?P<depth>\d+)",
    ),
    Family(
        partial(imagenet_resnet, preactivation=True),
        {f"preresnet{depth}": {"depth": depth} for depth in IMAGENET},
        _images(224),
    ),
    Family(
        partial(cifar_resnet, preactivation=True),
        {f"preresnet{depth}": {"depth": depth} for depth in (110, 164, 1001)},
        _images(32),
        pattern=r"preresnet(?P<depth>\d+)",
    ),
)
