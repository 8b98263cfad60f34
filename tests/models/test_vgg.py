"""VGG is torchvision's network by name, by order and by seed; and any additive connection may pass its convolutions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.models.references import ReferenceVGG, assert_same, stir
from tests.slips import gives_one_sentence
from torch import nn

import skipway as sw
from skipway.models import VGG, VGGPlan, cifar_vgg, imagenet_vgg
from skipway.models.weights import guess

PLANS: dict[int, list[int | str]] = {
    11: [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    13: [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    16: [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    19: [64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512, 512, 512, 512, "M"],
}
SMALL = VGGPlan((1, 2, 2), width=4, head="cifar")
norms = pytest.mark.parametrize("norm", [False, True], ids=["bare", "bn"])


def narrow(depth: int) -> list[int | str]:
    return [item if isinstance(item, str) else item // 16 for item in PLANS[depth]]


@norms
@pytest.mark.parametrize("depth", PLANS)
def test_the_entries_of_the_state_in_their_order(depth: int, norm: bool) -> None:
    with torch.device("meta"):
        theirs = ReferenceVGG(PLANS[depth], norm, classes=1000).state_dict()
        ours = sw.models.create(f"vgg{depth}{'_bn' if norm else ''}").state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [(key, value.shape) for key, value in theirs.items()]


@norms
def test_a_seed_builds_torchvision_s_network(norm: bool) -> None:
    torch.manual_seed(3)
    theirs = ReferenceVGG(narrow(11), norm, hidden=16).state_dict()
    torch.manual_seed(3)
    ours = imagenet_vgg(11, width=4, hidden=16, num_classes=10, batch_norm=norm).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@norms
@pytest.mark.parametrize("depth", [11, 16])
def test_outputs_and_gradients_are_the_reference_s(depth: int, norm: bool) -> None:
    """In training mode: dropout draws the same."""
    ours = imagenet_vgg(depth, width=4, hidden=16, num_classes=10, batch_norm=norm).double()
    theirs = ReferenceVGG(narrow(depth), norm, hidden=16).double()
    assert_same(ours, theirs, torch.randn(4, 3, 64, 67, dtype=torch.float64), tolerance=1e-9)


@norms
def test_so_are_those_of_the_form_for_small_images(norm: bool) -> None:
    theirs = ReferenceVGG(narrow(13), norm, pooled=True)
    assert_same(cifar_vgg(13, width=4, batch_norm=norm), theirs, torch.randn(4, 3, 32, 32))


@norms
def test_skips_pass_every_convolution_but_the_first(norm: bool) -> None:
    """y = relu(S(x) + norm(W x)), S an identity, or a projection where the width changes."""
    plan = VGGPlan((1, 2, 2), width=4, batch_norm=norm, head="cifar")
    model = VGG(plan, "residual", num_classes=10)
    stir(model)
    x = torch.randn(2, 3, 16, 16)
    features: Any = model.features
    step = 3 if norm else 2
    y = x
    for stage in features.stages:
        for at in stage:
            value = getattr(features, at)(y)
            value = getattr(features, str(int(at) + 1))(value) if norm else value
            if at == "0":
                y = F.relu(value)
                continue
            shortcut = getattr(features, f"connection{at}").shortcut
            assert isinstance(shortcut, nn.Identity) == (y.shape[1] == value.shape[1])
            y = F.relu(value + shortcut(y))
        y = F.max_pool2d(y, 2)
    assert [int(at) for stage in features.stages for at in stage] == [0, *(step + 1 + step * k for k in (0, 1))] + [
        3 * step + 2 + step * k for k in (0, 1)
    ]
    torch.testing.assert_close(model(x), model.classifier(y.mean((2, 3))))


def test_skips_keep_the_names_of_the_convolutions() -> None:
    plain, residual = (imagenet_vgg(11, skip, width=4, hidden=8, batch_norm=True) for skip in ("none", "residual"))
    assert set(plain.state_dict()) <= set(residual.state_dict())
    added = set(residual.state_dict()) - set(plain.state_dict())
    assert all(".shortcut." in name for name in added)


@pytest.mark.parametrize("placement", ["pre-activation", "relu-pre-activation", "pre-norm"])
@norms
def test_what_stands_before_a_branch_is_not_done_by_the_stem_but_after_the_last(placement: str, norm: bool) -> None:
    plan = VGGPlan((1, 1), width=4, batch_norm=norm, head="cifar")
    model = VGG(plan, sw.Residual(placement=placement), num_classes=3).eval()
    stir(model)
    features: Any = model.features
    x = torch.randn(2, 3, 8, 8)
    relu, normed = "relu" in placement or placement == "pre-activation", placement != "relu-pre-activation"
    y = features.get_submodule("0")(x)
    if norm and not normed:
        y = features.get_submodule("1")(y)
    y = F.max_pool2d(y if relu else F.relu(y), 2)
    at = "4" if norm else "3"
    y = F.max_pool2d(features.get_submodule(f"connection{at}")(y, features.get_submodule(at)), 2)
    y = features.tail_norm(y) if norm and normed else y
    y = F.relu(y) if relu else y
    torch.testing.assert_close(model(x), model.classifier(y.mean((2, 3))))


@norms
def test_weights_that_do_not_fit_are_told_for_what_they_are(norm: bool) -> None:
    told = "a VGG-13 with batch norm for 7 classes" if norm else "a VGG-13 for 7 classes"
    assert guess(cifar_vgg(13, num_classes=7, width=1, batch_norm=norm).state_dict()) == told
    assert guess(imagenet_vgg(13, num_classes=7, width=1, hidden=2, batch_norm=norm).state_dict()) == told


def test_a_trace_finds_the_skips() -> None:
    images = torch.randn(1, 3, 32, 32)
    assert not sw.trace(cifar_vgg(13, width=4).eval(), images).skips
    graph = sw.trace(cifar_vgg(13, "residual", width=4, batch_norm=True).eval(), images)
    # Of 9 convolutions behind the first, 3 change the width: their projections are as deep as the branches they pass.
    assert Counter(skip.shortcut for skip in graph.skips) == {"identity": 6}
    assert graph.paths().longest == cifar_vgg(13).depth


@norms
def test_folded_it_computes_the_same(norm: bool) -> None:
    model = VGG(VGGPlan((1, 2), width=4, batch_norm=norm, head="cifar"), "residual", num_classes=3)
    x = torch.randn(4, 3, 8, 8)
    model(x)
    torch.testing.assert_close(sw.edit.fold(model.eval())(x), model(x), rtol=1e-4, atol=1e-5)


SLIPS: dict[str, tuple[Any, str]] = {
    "dense": (lambda: VGG(SMALL, "dense"), "the layers of a VGG keep their width, which Dense() does not"),
    "identity where the width changes": (
        lambda: VGG(SMALL, sw.Residual(shortcut=sw.Identity())),
        "an identity shortcut cannot carry 4 channels into 8 at stride 1: use shortcut=Projection() or",
    ),
    "depth": (lambda: imagenet_vgg(17), "no VGG of depth 17: allowed are 11, 13, 16, 19"),
    "depth by name": (lambda: sw.models.create("vgg12"), "no model 'vgg12'; did you mean 'vgg1"),
    "no width": (lambda: cifar_vgg(11, width=0), "a VGG needs a width, hidden units and convolutions of at least 1"),
    "no stage": (lambda: VGGPlan(()), "convolutions of at least 1, not 64, 4096 and ()"),
    "dropout": (lambda: imagenet_vgg(11, width=1, dropout=1.5), "dropout lies in [0, 1), not 1.5"),
    "no classes": (lambda: cifar_vgg(11, num_classes=0), "num_classes and in_channels must be at least 1, not 0, 3"),
    "small images": (
        lambda: cifar_vgg(11, width=1)(torch.ones(1, 3, 28, 28)),
        "images are 28 x 28; this VGG shrinks them 32 times: give at least 32 x 32 pixels",
    ),
    "grey images": (lambda: VGG(SMALL)(torch.ones(1, 1, 8, 8)), "takes images of shape [n, 3, h, w], not [1, 1, 8, 8]"),
}


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.usefixtures("no_shape_checks")
def test_slips(slip: str) -> None:
    gives_one_sentence(*SLIPS[slip])
