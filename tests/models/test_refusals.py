"""What a person may get wrong with a model: each gives one clear sentence that says what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.slips import gives_one_sentence

import skipway as sw
from skipway.errors import SkipwayError
from skipway.models import ResNetPlan, cifar_resnet, imagenet_resnet

pytestmark = pytest.mark.usefixtures("no_shape_checks")

wrong: Any = sw.models  # the same names, untyped: what follows is wrong on purpose


def shown(model: Callable[[], Any], *shape: int) -> Callable[[], Any]:
    return lambda: model()(torch.ones(shape))


def small() -> Any:
    return sw.models.create("resnet8", width=4)


def large() -> Any:
    return sw.models.create("resnet18", width=4)


SLIPS: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown model": (lambda: sw.models.create("resnt50"), "no model 'resnt50'; did you mean 'resnet50'? allowed: "),
    "capitals": (lambda: sw.models.create("ResNet50"), "no model 'ResNet50'; did you mean 'resnet50'?"),
    "no depth": (lambda: sw.models.create("resnet"), "no model 'resnet'; did you mean 'resnet"),
    "another family": (lambda: sw.models.create("perceptron"), "no model 'perceptron'; allowed: resnet18"),
    "number for a name": (lambda: wrong.create(50), "no model 50; allowed: resnet18"),
    "nothing for a name": (lambda: wrong.create(None), "no model None; allowed: resnet18"),
    "depth between two": (
        lambda: sw.models.create("resnet55"),
        "a CIFAR ResNet of basic blocks has depth 6n+2, which 55 is not: the nearest are 50 and 56",
    ),
    "depth too small": (lambda: sw.models.create("resnet2"), "depth 6n+2, which 2 is not: the smallest is 8"),
    "depth 0": (lambda: sw.models.create("resnet0"), "depth 6n+2, which 0 is not: the smallest is 8"),
    "negative depth": (lambda: cifar_resnet(-4), "depth 6n+2, which -4 is not: the smallest is 8"),
    "depth of bottlenecks": (
        lambda: cifar_resnet(56 + 1, block="bottleneck"),
        "a CIFAR ResNet of bottleneck blocks has depth 9n+2, which 57 is not: the nearest are 56 and 65",
    ),
    "depth of a pre-activation net": (
        lambda: sw.models.create("preresnet165"),
        "which 165 is not: the nearest are 164 and 170",
    ),
    "depth of an ImageNet net": (
        lambda: imagenet_resnet(51),
        "no ImageNet ResNet of depth 51: allowed are 18, 34, 50, 101, 152",
    ),
    "description": (lambda: sw.models.describe("resnet57"), "depth 6n+2, which 57 is not: the nearest are 56 and 62"),
    "unknown skip": (lambda: sw.models.create("resnet20", skip="rezro"), "no skip 'rezro'; did you mean 'rezero'?"),
    "class for a skip": (lambda: wrong.create("resnet20", skip=sw.Residual), "not the class Residual: call it"),
    "part for a skip": (lambda: wrong.create("resnet20", skip=sw.ReZero()), "write skip=Residual(scale=ReZero(...))"),
    "dense": (
        lambda: sw.models.create("resnet20", skip="dense"),
        "a ResNet's stages keep their width, which Dense() does not",
    ),
    "concatenation": (lambda: sw.models.create("resnet20", skip="concat"), "a ResNet's stages keep their width"),
    "identity where the width changes": (
        lambda: sw.models.create("resnet20", skip=sw.Residual(shortcut=sw.Identity())),
        "an identity shortcut cannot carry 16 channels into 32 at stride 2: use shortcut=Projection() or",
    ),
    "unknown option": (
        lambda: sw.models.create("resnet20", classes=10),
        "no option of resnet20 'classes'; did you mean 'num_classes'?",
    ),
    "option that is the name's": (
        lambda: sw.models.create("resnet20", depth=56),
        "no option of resnet20 'depth'; ",
    ),
    "unknown block": (
        lambda: wrong.create("resnet20", block="botleneck"),
        "no block 'botleneck'; did you mean 'bottleneck'?",
    ),
    "no classes": (
        lambda: sw.models.create("resnet20", num_classes=0),
        "num_classes and in_channels must be at least 1, not 0, 3",
    ),
    "no channels": (
        lambda: sw.models.create("resnet20", in_channels=0),
        "num_classes and in_channels must be at least 1, not 10, 0",
    ),
    "negative width": (
        lambda: sw.models.create("resnet20", width=-4),
        "a ResNet needs a width and blocks of at least 1, not -4",
    ),
    "no blocks": (lambda: ResNetPlan((), 4), "a ResNet needs a width and blocks of at least 1, not 4 and ()"),
    "stage without blocks": (lambda: ResNetPlan((2, 0), 4), "a ResNet needs a width and blocks of at least 1"),
    "unknown stem": (lambda: wrong.ResNetPlan((1,), 4, stem="cifar10"), "no stem 'cifar10'; did you mean 'cifar'?"),
    "unknown published shortcut": (lambda: wrong.ResNetPlan((1,), 4, shortcut="zeropad"), "did you mean 'zero-pad'?"),
    "unknown published placement": (
        lambda: sw.models.ResNet(ResNetPlan((1,), 4, placement="preactivation")),
        "no placement 'preactivation'; did you mean 'pre-activation'?",
    ),
    "zero_init without a last norm": (
        lambda: sw.models.create("preresnet20", zero_init=True),
        "zero_init starts the norm at the end of each branch at 0, and here is none",
    ),
    "image too small for the stem": (
        shown(large, 1, 3, 28, 28),
        "images are 28 x 28; this ResNet shrinks them 32 times: give at least 32 x 32 pixels, or use a CIFAR ResNet",
    ),
    "image too small": (
        shown(small, 1, 3, 2, 8),
        "images are 2 x 8; this ResNet shrinks them 4 times: give at least 4 x 4 pixels",
    ),
    "grey image": (
        shown(small, 1, 1, 8, 8),
        "this ResNet takes images of shape [n, 3, h, w], not [1, 1, 8, 8]: build it with in_channels=",
    ),
    "channels last": (shown(small, 1, 8, 8, 3), "this ResNet takes images of shape [n, 3, h, w], not [1, 8, 8, 3]"),
    "one image without a batch": (shown(small, 3, 8, 8), "images of shape [n, 3, h, w], not [3, 8, 8]"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_each_slip_gives_one_clear_sentence(slip: str) -> None:
    gives_one_sentence(*SLIPS[slip])


def test_an_option_of_another_type_is_named() -> None:
    with pytest.raises(SkipwayError, match="^resnet20 cannot be built with width='wide': TypeError: "):
        wrong.create("resnet20", width="wide")


@pytest.mark.parametrize(("name", "size"), [("resnet8", 4), ("resnet18", 32), ("preresnet8", 4), ("preresnet18", 32)])
def test_the_smallest_image_that_is_allowed_runs(name: str, size: int) -> None:
    model = sw.models.create(name, width=4).eval()
    assert model(torch.randn(1, 3, size, size)).isfinite().all()
    assert model(torch.randn(1, 3, size, size + 1)).isfinite().all()


def test_images_of_other_channels_and_none_at_all() -> None:
    model = sw.models.create("resnet8", width=4, in_channels=5, num_classes=7).eval()
    assert model(torch.randn(2, 5, 9, 6)).shape == (2, 7)
    assert model(torch.randn(0, 5, 8, 8)).shape == (0, 7)
