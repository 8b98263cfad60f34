"""The named ResNets: ImageNet's five, CIFAR's 6n+2, their pre-activation forms, and those with other branches."""

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
    groups: int = 1,
    inner: int | None = None,
    squeeze: int | None = None,
) -> ResNet:
    """ResNet-18/34/50/101/152: four stages behind a 7x7 stem, projection shortcuts (option B).

    `preactivation` is the second form: norm and ReLU before each convolution, bare projections. `inner` is the width
    of the first stage's bottlenecks, None for `width`, and `groups` cuts them into groups: 32 groups of 4 make a
    ResNeXt (Xie et al. 2016, arXiv:1611.05431), 128 in one a Wide ResNet. `squeeze` reweights the channels of each
    branch by a net `squeeze` times as narrow: 16 makes an SE-ResNet (Hu et al. 2017, arXiv:1709.01507). Raises
    SkipwayError for another depth.

    >>> sum(p.numel() for p in imagenet_resnet(18).parameters())
    11689512
    """
    if depth not in IMAGENET:
        raise SkipwayError(f"no ImageNet ResNet of depth {depth}: allowed are {', '.join(map(str, IMAGENET))}")
    block, blocks = IMAGENET[depth]
    placement = "pre-activation" if preactivation else "original"
    plan = ResNetPlan(blocks, width, block, placement=placement, inner=inner, groups=groups, squeeze=squeeze)
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
    groups: int = 1,
    inner: int | None = None,
    squeeze: int | None = None,
) -> ResNet:
    """The ResNet of small images: three stages behind a 3x3 stem, of depth 6n+2, or 9n+2 with bottlenecks.

    Basic blocks pad with zeros (option A); bottlenecks project. `block` None means basic blocks, or bottlenecks for a
    pre-activation net of depth 9n+2 from 164 on, as published. `inner` and `groups` shape bottlenecks as in a ResNeXt,
    `squeeze` reweights channels as in an SE-ResNet. Raises SkipwayError for a depth that no whole n gives.

    >>> sum(p.numel() for p in cifar_resnet(56, skip="none").parameters())
    853018
    """
    if block is None:
        block = "bottleneck" if preactivation and depth >= 164 and depth % 9 == 2 else "basic"
    choose("block", block, ("basic", "bottleneck"))
    unit = 6 if block == "basic" else 9
    n, rest = divmod(depth - 2, unit)
    if rest or n < 1:
        raise _no_such_depth(f"a CIFAR ResNet of {block} blocks", depth, unit, 2)
    plan = ResNetPlan(
        (n, n, n),
        width,
        block,
        stem="cifar",
        shortcut="zero-pad" if block == "basic" else "projection",
        placement="pre-activation" if preactivation else "original",
        first_strides=preactivation,
        inner=inner,
        groups=groups,
        squeeze=squeeze,
    )
    return ResNet(plan, skip, num_classes, in_channels, zero_init)


def wide_resnet(
    depth: int,
    widening: int,
    skip: str | Kind = "residual",
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    dropout: float = 0.0,
) -> ResNet:
    """WRN-depth-widening of small images: fewer and wider pre-activation blocks, of 6n+4 layers.

    The published depth counts the three projections and not the classifier: the longest path of a WRN-28 holds 26
    weight layers. `dropout` lies between a branch's convolutions. Zagoruyko and Komodakis 2016 (arXiv:1605.07146).
    Raises SkipwayError for a depth that no whole n gives.

    >>> sum(p.numel() for p in wide_resnet(16, 8).parameters())
    10961370
    """
    n, rest = divmod(depth - 4, 6)
    if widening < 1:
        raise SkipwayError(f"a Wide ResNet is at least 1 times as wide, not {widening}")
    if rest or n < 1:
        raise _no_such_depth("a Wide ResNet", depth, 6, 4)
    blocks, wide = (n, n, n), width * widening
    plan = ResNetPlan(blocks, wide, stem="cifar", placement="pre-activation", stem_width=width, dropout=dropout)
    return ResNet(plan, skip, num_classes, in_channels)


def cifar_resnext(
    depth: int,
    groups: int,
    group_width: int,
    skip: str | Kind = "residual",
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    zero_init: bool = False,
) -> ResNet:
    """The ResNeXt of small images, as ResNeXt-29, 8x64d: bottlenecks of `groups` times `group_width` channels.

    Three stages of n blocks make depth 9n+2. Xie, Girshick, Dollar, Tu, He 2016 (arXiv:1611.05431). Raises
    SkipwayError for a depth that no whole n gives.

    >>> cifar_resnext(29, groups=4, group_width=2, width=8).plan.bottleneck
    8
    """
    return cifar_resnet(
        depth,
        skip,
        num_classes,
        in_channels,
        width,
        block="bottleneck",
        zero_init=zero_init,
        groups=groups,
        inner=groups * group_width,
    )


def _no_such_depth(model: str, depth: int, unit: int, more: int) -> SkipwayError:
    lower = max(1, (depth - more) // unit) * unit + more
    return SkipwayError(
        f"{model} has depth {unit}n+{more}, which {depth} is not: "
        + (f"the nearest are {lower} and {lower + unit}" if depth > lower else f"the smallest is {lower}")
    )


def _images(side: int) -> Callable[[ResNet], tuple[Input, ...]]:
    return lambda model: (Input((model.in_channels, side, side)),)


FAMILIES = (
    Family(
        partial(imagenet_resnet, preactivation=False),
        {f"resnet{depth}": {"depth": depth} for depth in IMAGENET}
        | {f"wide_resnet{depth}_2": {"depth": depth, "inner": 128} for depth in (50, 101)}
        | {
            f"resnext{depth}_{groups}x{channels}d": {"depth": depth, "groups": groups, "inner": groups * channels}
            for depth, groups, channels in ((50, 32, 4), (101, 32, 8), (101, 64, 4))
        },
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
    Family(
        partial(imagenet_resnet, preactivation=False, squeeze=16),
        {f"se_resnet{depth}": {"depth": depth} for depth in IMAGENET},
        _images(224),
    ),
    Family(
        partial(cifar_resnet, preactivation=False, squeeze=16),
        {f"se_resnet{depth}": {"depth": depth} for depth in (20, 32, 44, 56, 110)},
        _images(32),
        pattern=r"se_resnet(?P<depth>\d+)",
    ),
    Family(
        wide_resnet,
        {f"wrn-{depth}-{times}": {"depth": depth, "widening": times} for depth, times in ((28, 10), (16, 8), (40, 4))},
        _images(32),
        pattern=r"wrn-(?P<depth>\d+)-(?P<widening>\d+)",
    ),
    Family(
        cifar_resnext,
        {f"resnext-29-{groups}x64": {"depth": 29, "groups": groups, "group_width": 64} for groups in (8, 16)},
        _images(32),
        pattern=r"resnext-(?P<depth>\d+)-(?P<groups>\d+)x(?P<group_width>\d+)",
    ),
)
