"""Depth, parameters and multiply-adds of every named model are the published ones, to the last digit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import skipway as sw

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "parameters.json").read_text())


def rows() -> list[Any]:
    """The table; of the nets of 1000 layers and more, which take seconds to build, one of each is quick enough."""
    quick = (["resnet1202", "zero-pad", 10], ["preresnet1001", "residual", 10])
    return [
        pytest.param(*row, id="-".join(map(str, row[1:4])), marks=[pytest.mark.slow] if giant else [])
        for row in GOLDEN["parameters"]
        for giant in [row[1].endswith(("1202", "1001")) and row[1:4] not in quick]
    ]


@pytest.mark.parametrize(("origin", "name", "skip", "classes", "parameters"), rows())
def test_parameters(origin: str, name: str, skip: str, classes: int | None, parameters: int) -> None:
    assert origin in GOLDEN["origin"]
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    with torch.device("meta"):
        model = sw.models.create(name, skip, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(("name", "shortcut"), [("resnet20", "zero-pad"), ("resnet18", "projection")])
def test_the_default_is_what_the_family_published(name: str, shortcut: str) -> None:
    default, chosen = (sw.models.create(name, skip, width=4) for skip in ("residual", shortcut))
    default.load_state_dict(chosen.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(default(x), chosen(x))


@pytest.mark.parametrize(("name", "billions"), GOLDEN["multiply-adds"].items())
def test_multiply_adds(name: str, billions: float) -> None:
    described = sw.models.describe(name)
    assert round(described.multiply_adds / 1e9, 3) == billions
    assert described.inputs == ((3, 224, 224),)


# Weight layers on the longest path beside those in the name: a Wide ResNet's name counts three projections and
# not the classifier, a highway network's not the classifier, and a small VGG has but one layer for a classifier.
NAMED_DEPTHS = {
    r"(?:pre|se_|wide_)?resnet(\d+)(?:_2)?": 0,
    r"resnext(\d+)_\d+x\d+d": 0,
    r"resnext-(\d+)-\d+x\d+": 0,
    r"wrn-(\d+)-\d+": -2,
    r"vgg(\d+)(?:_bn)?": 0,
    r"vgg(\d+)(?:_bn)?-cifar": -2,
    r"highway(?:-conv)?-(\d+)": 1,
}


def named_depths() -> list[tuple[str, int]]:
    return [
        (name, int(match[1]) + more)
        for name in sw.models.names()
        for pattern, more in NAMED_DEPTHS.items()
        if (match := re.fullmatch(pattern, name)) and int(match[1]) < 1000
    ]


@pytest.mark.parametrize(("name", "depth"), named_depths())
def test_a_name_tells_the_number_of_weight_layers(name: str, depth: int) -> None:
    """On the longest path: every convolution of stem and branches, and the classifier."""
    with torch.device("meta"):
        plain: Any = sw.models.create(name, skip="none")
    layers = [
        module
        for path, module in plain.named_modules()
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and ".se." not in path
    ]
    assert len(layers) == plain.depth == depth


def test_describing_costs_no_memory_and_no_random_numbers() -> None:
    state = torch.get_rng_state()
    described = sw.models.describe("resnet56", num_classes=100)
    assert torch.equal(torch.get_rng_state(), state)
    assert described == sw.models.Description("resnet56", 56, 853018 + 90 * 65, described.multiply_adds, ((3, 32, 32),))


def test_multiply_adds_by_hand() -> None:
    """ResNet-8 of width 4 on 32 x 32, convolution by convolution."""
    stem = 3 * 9 * 4 * 32**2
    stages = 2 * 4 * 9 * 4 * 32**2 + (4 + 8) * 9 * 8 * 16**2 + (8 + 16) * 9 * 16 * 8**2
    assert sw.models.describe("resnet8", width=4).multiply_adds == stem + stages + 16 * 10


def test_no_name_is_of_two_families() -> None:
    for name in sw.models.names():
        family, settled = sw.models.find(name)
        assert family.sizes[name] == settled


def test_names() -> None:
    names = sw.models.names()
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name) for name in names)
    assert {"resnet18", "resnet152", "resnet20", "resnet1202", "preresnet18", "preresnet164", "preresnet1001"} < set(
        names
    )


@pytest.mark.parametrize("depth", [8, 14, 26, 62])
def test_any_depth_of_the_rule_can_be_built(depth: int) -> None:
    for prefix in ("resnet", "preresnet"):
        with torch.device("meta"):
            model = sw.models.create(f"{prefix}{depth}")
        assert isinstance(model, sw.models.ResNet)
        assert model.plan.depth == depth
