"""ResNets with other branches: squeezed and excited, grouped, wide. They compute what their authors' networks do."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.models.references import ReferenceResNet, ReferenceWideResNet, assert_same, stir
from tests.slips import gives_one_sentence
from torch import nn

import skipway as sw
from skipway.models import ResNet, ResNetPlan, cifar_resnet, cifar_resnext, wide_resnet
from skipway.models.weights import guess

SMALL = (1, 2, 1, 1)


def images(size: int = 33) -> torch.Tensor:
    return torch.randn(4, 3, size, size + 1)


@pytest.mark.parametrize(
    "options",
    [{"squeeze": 4}, {"inner": 16, "groups": 4}, {"inner": 24}, {"inner": 16, "groups": 8, "squeeze": 2}],
    ids=["se", "resnext", "wide", "se-resnext"],
)
def test_bottlenecks_compute_what_the_reference_does(options: dict[str, Any]) -> None:
    ours = ResNet(ResNetPlan(SMALL, 8, "bottleneck", **options), num_classes=10)
    assert_same(ours, ReferenceResNet(SMALL, 8, **options), images())


def test_the_resnext_of_small_images_does() -> None:
    theirs = ReferenceResNet((1, 1, 1), 8, 12, 3, imagenet=False)
    assert_same(cifar_resnext(11, groups=3, group_width=4, width=8), theirs, images(9))


@pytest.mark.parametrize("n", [1, 2])
def test_the_wide_resnet_does(n: int) -> None:
    assert_same(wide_resnet(6 * n + 4, 3, width=4), ReferenceWideResNet(n, 3, 4), images(9))


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2", "se_resnet50"])
def test_the_published_sizes_have_the_reference_s_entries_in_its_order(name: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "resnext50_32x4d": {"inner": 128, "groups": 32},
        "wide_resnet50_2": {"inner": 128},
        "se_resnet50": {"squeeze": 16},
    }
    with torch.device("meta"):
        theirs = ReferenceResNet((3, 4, 6, 3), classes=1000, **options[name]).state_dict()
        ours = sw.models.create(name).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [(key, value.shape) for key, value in theirs.items()]


@pytest.mark.parametrize("options", [{"inner": 16, "groups": 4}, {"inner": 24}], ids=["resnext", "wide"])
def test_a_seed_builds_the_reference_network(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    theirs = ReferenceResNet(SMALL, 8, **options).state_dict()
    torch.manual_seed(3)
    ours = ResNet(ResNetPlan(SMALL, 8, "bottleneck", **options), num_classes=10).state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_timm_names_the_excitation_between_the_last_norm_and_the_projection() -> None:
    keys = list(sw.models.create("se_resnet20", "projection").state_dict())
    block = [key.removeprefix("layer2.0.") for key in keys if key.startswith("layer2.0.") and "num_b" not in key]
    at = block.index("se.fc1.weight")
    assert block[at : at + 4] == ["se.fc1.weight", "se.fc1.bias", "se.fc2.weight", "se.fc2.bias"]
    assert block[at - 1] == "bn2.running_var"
    assert block[at + 4] == "downsample.0.weight"


def test_weights_that_do_not_fit_are_told_for_what_they_are() -> None:
    state = sw.models.create("se_resnet14", width=4).state_dict()
    assert guess(state) == "an SE-ResNet-14 (blocks 2-2-2) for 10 classes"


def test_the_preset_is_the_family() -> None:
    """A ResNet under skip="squeeze-excite" and an SE-ResNet hold the same weights under the same names."""
    preset, family = sw.models.create("resnet20", "squeeze-excite", width=16), sw.models.create("se_resnet20")
    family.load_state_dict(preset.state_dict())
    x = images(8)
    assert torch.equal(family.eval()(x), preset.eval()(x))


@pytest.mark.parametrize("skip", ["none", "rezero", "highway", "stochastic-depth"])
def test_every_connection_keeps_the_excitation_of_the_branch(skip: str) -> None:
    model = cifar_resnet(8, skip, width=8, squeeze=4)
    assert [block.get_submodule("se.fc1").get_parameter("weight").shape[0] for block in model.blocks] == [2, 4, 8]
    block = model.eval().blocks[2]
    if skip == "rezero":
        nn.init.ones_(block.get_parameter("connection.scale.scale"))
    x = images(8)
    logits = model(x)
    nn.init.constant_(block.get_parameter("se.fc2.bias"), -30.0)
    assert not torch.allclose(model(x), logits)


def test_the_plain_twin_is_the_chain_of_reweighted_branches() -> None:
    model = cifar_resnet(8, "none", width=8, squeeze=4).eval()
    stir(model)
    x = images(8)
    y = F.relu(model.get_submodule("bn1")(model.get_submodule("conv1")(x)))
    for block in model.blocks:
        part: Any = block
        y = part.bn2(part.conv2(F.relu(part.bn1(part.conv1(y)))))
        y = F.relu(y * torch.sigmoid(part.se.fc2(F.relu(part.se.fc1(y.mean((2, 3), keepdim=True))))))
    torch.testing.assert_close(model(x), model.fc(y.mean((2, 3))), rtol=1e-4, atol=1e-5)


def test_dropout_lies_between_the_convolutions_in_training_alone() -> None:
    model = wide_resnet(10, 1, width=4, dropout=0.5)
    inputs: list[torch.Tensor] = []
    for block in model.blocks:
        block.get_submodule("conv2").register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    x = images(8)
    model(x)
    dropped = [float((value == 0).float().mean()) for value in inputs]
    assert all(0.6 < share < 0.9 for share in dropped)
    inputs.clear()
    model.eval()
    assert torch.equal(model(x), model(x))
    assert all(float((value == 0).float().mean()) < 0.8 for value in inputs)
    without = wide_resnet(10, 1, width=4).eval()
    without.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(without(x), model(x))


@pytest.mark.parametrize(
    ("name", "options", "shortcuts"),
    [
        ("se_resnet14", {"width": 4}, {"identity": 4, "padding": 2}),
        ("wrn-16-2", {"width": 4}, {"identity": 3, "projection": 3}),
        ("resnext-20-2x2", {"width": 4}, {"identity": 3, "projection": 3}),
    ],
)
def test_a_trace_finds_their_skips(name: str, options: dict[str, Any], shortcuts: dict[str, int]) -> None:
    model: Any = sw.models.create(name, **options).eval()
    graph = sw.trace(model, torch.randn(1, 3, 16, 16))
    assert Counter(skip.shortcut for skip in graph.skips) == shortcuts
    assert graph.paths().total == 2**6


@pytest.mark.parametrize("name", ["se_resnet14", "wrn-16-2", "resnext-20-2x2"])
def test_folded_they_compute_the_same(name: str) -> None:
    model = sw.models.create(name, width=4)
    for _ in range(3):
        model(images(16))
    model.eval()
    x = images(16)
    torch.testing.assert_close(sw.edit.fold(model)(x), model(x), rtol=1e-4, atol=1e-4)


SLIPS: dict[str, tuple[Any, str]] = {
    "groups of basic blocks": (lambda: sw.models.create("resnet18", groups=2), "shape bottlenecks, and these blocks"),
    "groups that do not divide": (
        lambda: sw.models.create("resnet50", groups=3),
        "64 channels cannot be cut into 3 groups",
    ),
    "no groups": (lambda: sw.models.create("resnet50", groups=0), "64 channels cannot be cut into 0 groups"),
    "no squeeze": (lambda: cifar_resnet(8, squeeze=0), "reduction must be at least 1, not 0"),
    "dropout of everything": (lambda: wide_resnet(10, 1, dropout=1.0), "dropout lies in [0, 1), not 1.0"),
    "depth of a WRN": (
        lambda: sw.models.create("wrn-27-2"),
        "a Wide ResNet has depth 6n+4, which 27 is not: the nearest are 22 and 28",
    ),
    "a WRN that is too shallow": (lambda: wide_resnet(4, 2), "which 4 is not: the smallest is 10"),
    "a WRN of no width": (lambda: sw.models.create("wrn-10-0"), "at least 1 times as wide, not 0"),
    "depth of a ResNeXt": (lambda: sw.models.create("resnext-28-2x2"), "has depth 9n+2, which 28 is not"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_slips(slip: str) -> None:
    gives_one_sentence(*SLIPS[slip])
