"""The DenseNets by name: ImageNet 121 to 201, and those of small images by depth and growth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from skipway.connect import Kind
from skipway.errors import SkipwayError
from skipway.models.densenet import DenseNet, DenseNetPlan
from skipway.models.densenet_routes import Memory
from skipway.models.family import Family, Input

IMAGENET: dict[int, DenseNetPlan] = {
    121: DenseNetPlan((6, 12, 24, 16), growth=32, width=64),
    161: DenseNetPlan((6, 12, 36, 24), growth=48, width=96),
    169: DenseNetPlan((6, 12, 32, 32), growth=32, width=64),
    201: DenseNetPlan((6, 12, 48, 32), growth=32, width=64),
}


def imagenet_densenet(
    depth: int,
    skip: str | Kind = "dense",
    num_classes: int = 1000,
    in_channels: int = 3,
    dropout: float = 0.0,
    memory: Memory = "shared",
) -> DenseNet:
    """DenseNet-121/161/169/201: four blocks with bottlenecks behind a 7x7 stem, transitions that halve the channels.

    Raises SkipwayError for another depth.

    >>> sum(p.numel() for p in imagenet_densenet(121).parameters())
    7978856
    """
    if depth not in IMAGENET:
        raise SkipwayError(f"no ImageNet DenseNet of depth {depth}: allowed are {', '.join(map(str, IMAGENET))}")
    return DenseNet(IMAGENET[depth], skip, num_classes, in_channels, dropout, memory)


def cifar_densenet(
    depth: int,
    growth: int,
    skip: str | Kind = "dense",
    num_classes: int = 10,
    in_channels: int = 3,
    dropout: float = 0.0,
    memory: Memory = "shared",
    bottleneck: bool = True,
) -> DenseNet:
    """The DenseNet of small images: three blocks behind a 3x3 stem, of depth 6n+4 (BC), or 3n+4 without bottlenecks.

    BC has bottlenecks, a stem of 2 growth channels and transitions that halve the channels; without bottlenecks the
    stem has 16 channels and transitions keep all. Raises SkipwayError for a depth that no whole n gives.

    >>> sum(p.numel() for p in cifar_densenet(40, growth=12, bottleneck=False).parameters())
    1019722
    """
    unit = 6 if bottleneck else 3
    n, rest = divmod(depth - 4, unit)
    if rest or n < 1:
        lower = max(1, n) * unit + 4
        raise SkipwayError(
            f"a CIFAR DenseNet {'with' if bottleneck else 'without'} bottlenecks has depth {unit}n+4, which {depth} is "
            "not: " + (f"the nearest are {lower} and {lower + unit}" if depth > lower else f"the smallest is {lower}")
        )
    if bottleneck:
        plan = DenseNetPlan((n, n, n), growth, width=2 * growth, stem="cifar")
    else:
        plan = DenseNetPlan((n, n, n), growth, width=16, bottleneck=0, compression=1.0, stem="cifar")
    return DenseNet(plan, skip, num_classes, in_channels, dropout, memory)


def _images(side: int) -> Callable[[DenseNet], tuple[Input, ...]]:
    return lambda model: (Input((model.in_channels, side, side)),)


def _named(prefix: str, *sizes: tuple[int, int]) -> dict[str, dict[str, int]]:
    return {f"{prefix}-{depth}-{growth}": {"depth": depth, "growth": growth} for depth, growth in sizes}


FAMILIES = (
    Family(
        imagenet_densenet,
        {f"densenet{depth}": {"depth": depth} for depth in IMAGENET},
        _images(224),
        skip="dense",
    ),
    Family(
        partial(cifar_densenet, bottleneck=False),
        _named("densenet", (40, 12), (100, 12), (100, 24)),
        _images(32),
        skip="dense",
        pattern=r"densenet-(?P<depth>\d+)-(?P<growth>\d+)",
    ),
    Family(
        partial(cifar_densenet, bottleneck=True),
        _named("densenet-bc", (100, 12), (250, 24), (190, 40)),
        _images(32),
        skip="dense",
        pattern=r"densenet-bc-(?P<depth>\d+)-(?P<growth>\d+)",
    ),
)
