"""One small model of every family, for tests that run over the whole registry: a new family joins with one entry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skipway.connect import Kind
from skipway.models import (
    VGG,
    DenseNet,
    DenseNetPlan,
    Family,
    Input,
    ResNet,
    ResNetPlan,
    VGGPlan,
    bert,
    cifar_densenet,
    cifar_resnet,
    cifar_resnext,
    convolutional_highway,
    gpt,
    highway,
    imagenet_vit,
    small_vit,
    transformer,
    unet,
    unet_2015,
    wide_resnet,
)
from skipway.models.registry import FAMILIES


@dataclass(frozen=True)
class Example:
    """How a small model is made under a connection, and the shape of one image where its inputs are images.

    `quick` says whether every connection is tried in it in the quick suite: of families that share their module one is
    enough.
    """

    make: Callable[[Any], nn.Module]
    image: tuple[int, ...] | None = None
    quick: bool = False


def tokens(build: Callable[..., nn.Module], **options: Any) -> Callable[[Any], nn.Module]:
    return lambda skip: build(1, 16, 2, skip, vocabulary=17, length=8, **options)


def imagenet(**plan: Any) -> Callable[[Any], nn.Module]:
    return lambda skip: ResNet(ResNetPlan((1, 1, 1), 4, "bottleneck", **plan), skip, 10)


def small_unet(**options: Any) -> Callable[[Any], nn.Module]:
    return lambda skip: unet(skip, num_classes=2, levels=2, width=4, **options)


# By the first of the family's names.
EXAMPLES: dict[str, Example] = {
    "resnet18": Example(imagenet(), (3, 16, 16)),
    "resnet20": Example(lambda skip: cifar_resnet(8, skip, width=4), (3, 8, 8), quick=True),
    "preresnet18": Example(imagenet(placement="pre-activation"), (3, 16, 16)),
    "preresnet110": Example(lambda skip: cifar_resnet(8, skip, width=4, preactivation=True), (3, 8, 8)),
    "se_resnet18": Example(imagenet(squeeze=4), (3, 16, 16)),
    "se_resnet20": Example(lambda skip: cifar_resnet(8, skip, width=4, squeeze=2), (3, 8, 8)),
    "wrn-28-10": Example(lambda skip: wide_resnet(10, 2, skip, width=4, dropout=0.2), (3, 8, 8)),
    "resnext-29-8x64": Example(lambda skip: cifar_resnext(11, 2, 2, skip, width=4), (3, 8, 8)),
    "vgg11": Example(lambda skip: VGG(VGGPlan((1, 2, 1), 4, hidden=8), skip, 10), (3, 16, 16)),
    "vgg11-cifar": Example(lambda skip: VGG(VGGPlan((1, 2), 4, True, "cifar"), skip, 10), (3, 8, 8), quick=True),
    "highway-10": Example(lambda skip: highway(4, skip, image_size=6, width=8), (1, 6, 6), quick=True),
    "highway-conv-10": Example(lambda skip: convolutional_highway(6, skip, width=4), (3, 8, 8)),
    "gpt2": Example(tokens(gpt), quick=True),
    "bert-base": Example(tokens(bert)),
    "transformer": Example(tokens(transformer), quick=True),
    "vit_b_16": Example(lambda skip: imagenet_vit(1, 16, 2, 4, skip, num_classes=10, image_size=8), (3, 8, 8)),
    "vit_tiny": Example(lambda skip: small_vit(1, 16, 2, skip, image_size=8), (3, 8, 8), quick=True),
    "unet": Example(small_unet(), (3, 16, 16), quick=True),
    "unet-bilinear": Example(small_unet(up="bilinear"), (3, 16, 16)),
    "unet1d": Example(small_unet(dims=1), (3, 32)),
    # Not 8 x 8 x 8: of maps of 2 x 2 x 2 oneDNN's bfloat16 gradient by the weight of a 3-d convolution is not a number.
    "unet3d": Example(small_unet(dims=3), (3, 12, 12, 12)),
    "unet-2015": Example(lambda skip: unet_2015(skip, levels=1, width=4), (1, 28, 28)),
    "densenet121": Example(lambda skip: DenseNet(DenseNetPlan((2, 1), 4, 8), skip, 10), (3, 16, 16)),
    "densenet-40-12": Example(lambda skip: cifar_densenet(7, 4, skip, bottleneck=False), (3, 8, 8)),
    "densenet-bc-100-12": Example(lambda skip: cifar_densenet(10, 4, skip), (3, 8, 8), quick=True),
}


def key(family: Family) -> str:
    """How a family is named in tests: by the first of its models."""
    return next(iter(family.sizes))


BY_KEY: dict[str, Family] = {key(family): family for family in FAMILIES}


def make(family: str, skip: str | Kind) -> nn.Module:
    return EXAMPLES[family].make(skip)


def inputs(family: str, model: nn.Module, n: int = 3) -> tuple[Tensor, ...]:
    """A batch for a family's small model, always the same."""
    image = EXAMPLES[family].image
    given = BY_KEY[family].inputs(model) if image is None else (Input(image),)
    return tuple(one.make(n) for one in given)


def first_layer(model: nn.Module, given: tuple[Tensor, ...]) -> Tensor:
    """What the gradient is to reach: images, where they are given, else the first parameter."""
    if given[0].dtype == torch.float32:
        return given[0].requires_grad_()
    return next(model.parameters())
