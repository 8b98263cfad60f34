"""Models by name: `create`, `names`, `describe`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipway.connect import Kind
from skipway.errors import SkipwayError, choose
from skipway.models import (
    bert_sizes,
    densenet_sizes,
    gpt_sizes,
    highway_sizes,
    resnet_sizes,
    transformer_sizes,
    unet_sizes,
    vgg_sizes,
    vit_sizes,
)
from skipway.models.family import Family
from skipway.models.weights import load_weights

FAMILIES: tuple[Family, ...] = (
    *resnet_sizes.FAMILIES,
    *vgg_sizes.FAMILIES,
    *highway_sizes.FAMILIES,
    *gpt_sizes.FAMILIES,
    *transformer_sizes.FAMILIES,
    *unet_sizes.FAMILIES,
    *densenet_sizes.FAMILIES,
    *vit_sizes.FAMILIES,
    *bert_sizes.FAMILIES,
)


@dataclass(frozen=True)
class Description:
    """What a model costs: weight layers on its longest path, parameters, multiply-adds of one example.

    Multiply-adds are those of convolutions, linear maps and attention, at inputs of the shapes in `inputs`.
    """

    name: str
    depth: int
    parameters: int
    multiply_adds: int
    inputs: tuple[tuple[int, ...], ...]


def names() -> list[str]:
    """The published models; some families take any size of their rule beside these.

    >>> names()[:3]
    ['resnet18', 'resnet34', 'resnet50']
    """
    return [name for family in FAMILIES for name in family.sizes]


def create(
    name: str,
    skip: str | Kind | Sequence[str | Kind] | None = None,
    weights: str | Path | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model by name: the published one, or its like with other connections.

    `skip` is a name (`skipway.connect.names()`), a value such as `Residual(drop=0.5)`, or "none" for the plain twin;
    what a value leaves open is as the family publishes it, and None is the family's own connection. U-Nets also take
    one a level. `weights` is a file, a URL or a Hugging Face Hub name. `options` are the family's, such as
    num_classes or width. Raises SkipwayError for what there is not.

    >>> import torch
    >>> create("resnet20", skip="rezero", num_classes=10, width=8)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """
    family, settled = find(name)
    allowed = family.options(settled)
    for option in options:
        choose(f"option of {name}", option, allowed)
    try:
        model = family.build(**settled, skip=family.skip if skip is None else skip, **options)
    except (TypeError, RuntimeError) as error:
        if not options:
            raise
        told = ", ".join(f"{option}={value!r}" for option, value in options.items())
        raise SkipwayError(f"{name} cannot be built with {told}: {type(error).__name__}: {error}") from error
    if weights is not None:
        load_weights(model, weights)
    return model


def describe(name: str, skip: str | Kind | Sequence[str | Kind] | None = None, **options: Any) -> Description:
    """Depth, parameters and multiply-adds of a model, found without giving it memory.

    >>> describe("resnet50").parameters
    25557032
    """
    from torch.utils.flop_counter import FlopCounterMode

    family, _ = find(name)
    with torch.device("meta"):
        model: Any = create(name, skip, **options).eval()
    inputs = family.inputs(model)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*(one.make(device="meta") for one in inputs))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # The counter gives a multiply-add as two operations.
    return Description(
        name, model.depth, parameters, counter.get_total_flops() // 2, tuple(one.shape for one in inputs)
    )


def example(name: str, model: nn.Module, n: int = 1, device: str = "cpu") -> tuple[Tensor, ...]:
    """What a model of this name takes in: a batch of n, always the same.

    >>> [x.shape for x in example("resnet20", create("resnet20"))]
    [torch.Size([1, 3, 32, 32])]
    """
    family, _ = find(name)
    return tuple(one.make(n, device) for one in family.inputs(model))


def find(name: str) -> tuple[Family, Mapping[str, Any]]:
    """The family of a name, and the arguments that the name stands for; raises SkipwayError for no name of ours."""
    for family in FAMILIES:
        if name in family.sizes:
            return family, family.sizes[name]
    for family in FAMILIES:
        match = None if family.pattern is None else re.fullmatch(family.pattern, str(name))
        if match is not None:
            return family, {argument: int(number) for argument, number in match.groupdict().items()}
    choose("model", name, names(), where="skipway.models.names(), or 'skipway models'")
    raise AssertionError("choose() raises for a name it does not know")
