"""Models by name: `create`, `names`, `describe`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from skipway.connect import Kind
from skipway.errors import choose
from skipway.models.resnet import ResNet
from skipway.models.resnet_sizes import IMAGENET, cifar_resnet, imagenet_resnet
from skipway.models.weights import load_weights


@dataclass(frozen=True)
class Family:
    """Models whose name is a prefix and a depth: their sizes, and the function that builds one.

    `image` is the side of the images that its paper trains on.
    """

    build: Callable[..., ResNet]
    depths: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]
    image: int


@dataclass(frozen=True)
class Description:
    """What a model costs: weight layers on its longest path, parameters, multiply-adds of one image.

    Multiply-adds are those of convolutions and linear maps, at images of `image` pixels a side.
    """

    name: str
    depth: int
    parameters: int
    multiply_adds: int
    image: int


_CIFAR = (20, 32, 44, 56, 110, 1202)
_CIFAR_PRE = (110, 164, 1001)
_FAMILIES: dict[str, list[Family]] = {
    "resnet": [
        Family(imagenet_resnet, tuple(IMAGENET), (), 224),
        Family(cifar_resnet, _CIFAR, (), 32),
    ],
    "preresnet": [
        Family(imagenet_resnet, tuple(IMAGENET), (("preactivation", True),), 224),
        Family(cifar_resnet, _CIFAR_PRE, (("preactivation", True),), 32),
    ],
}


def names() -> list[str]:
    """The published models; CIFAR families take any depth of their rule beside these.

    >>> names()[:3]
    ['resnet18', 'resnet34', 'resnet50']
    """
    return [f"{prefix}{d}" for prefix, families in _FAMILIES.items() for family in families for d in family.depths]


def create(name: str, skip: str | Kind = "residual", weights: str | Path | None = None, **options: Any) -> nn.Module:
    """Build a model by name: the published one, or its like with other connections.

    `skip` is a name (`skipway.connect.names()`), a value such as `Residual(drop=0.5)`, or "none" for the plain twin;
    what a value leaves open is as the family publishes it. `weights` is a file, a URL or a Hugging Face Hub name.
    `options` are the family's: num_classes, in_channels, width, zero_init. Raises SkipwayError for what there is not.

    >>> import torch
    >>> create("resnet20", skip="rezero", num_classes=10, width=8)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    family, depth = _find(name)
    allowed = [n for n in inspect.signature(family.build).parameters if n not in ("depth", "skip", "preactivation")]
    for option in options:
        choose(f"option of {name}", option, allowed)
    model = family.build(depth, skip=skip, **dict(family.options), **options)
    if weights is not None:
        load_weights(model, weights)
    return model


def describe(name: str, skip: str | Kind = "residual", **options: Any) -> Description:
    """Depth, parameters and multiply-adds of a model, found without giving it memory.

    >>> describe("resnet50").parameters
    25557032
    """
    from torch.utils.flop_counter import FlopCounterMode

    family, _ = _find(name)
    with torch.device("meta"):
        model = create(name, skip, **options)
        assert isinstance(model, ResNet)
        images = torch.empty(1, model.in_channels, family.image, family.image)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(images)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # The counter gives a multiply-add as two operations.
    return Description(name, model.plan.depth, parameters, counter.get_total_flops() // 2, family.image)


def _find(name: str) -> tuple[Family, int]:
    match = re.fullmatch(r"([a-z]+)(\d+)", name) if isinstance(name, str) else None
    if match is None or match[1] not in _FAMILIES:
        choose("model", name, names())
        raise AssertionError("choose() raises for a name it does not know")
    depth = int(match[2])
    families = _FAMILIES[match[1]]
    for family in families[:-1]:
        if depth in family.depths:
            return family, depth
    return families[-1], depth
