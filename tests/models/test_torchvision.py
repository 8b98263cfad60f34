"""Torchvision's ResNets by name, by order and by seed: its weights load as they are, and a seed builds its network."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from torch import nn

import skipway as sw

PLANS = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_names(depth: int) -> list[str]:
    """The entries of torchvision's state_dict, in order, from their published pattern."""
    kind, blocks = PLANS[depth]
    convolutions = 2 if kind == "basic" else 3
    names = ["conv1.weight", *(f"bn1.{entry}" for entry in NORM)]
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            here = f"layer{stage}.{block}"
            for k in range(1, convolutions + 1):
                names += [f"{here}.conv{k}.weight", *(f"{here}.bn{k}.{entry}" for entry in NORM)]
            if block == 0 and (stage > 1 or kind == "bottleneck"):
                names += [f"{here}.downsample.0.weight", *(f"{here}.downsample.1.{entry}" for entry in NORM)]
    return [*names, "fc.weight", "fc.bias"]


@pytest.mark.parametrize("depth", PLANS)
def test_the_entries_of_the_state(depth: int) -> None:
    with torch.device("meta"):
        model = sw.models.create(f"resnet{depth}")
    golden = json.loads((Path(__file__).parent / "parameters.json").read_text())
    assert list(model.state_dict()) == published_names(depth)
    assert len(model.state_dict()) == golden["state entries"][f"resnet{depth}"]


@pytest.mark.parametrize("depth", PLANS)
def test_modules_register_branch_first_and_shortcut_last(depth: int) -> None:
    """Re-initialisation walks modules() and draws from the seed in that order, so the order is part of the format."""
    with torch.device("meta"):
        model = sw.models.create(f"resnet{depth}")
    expected = [name.removesuffix(".weight") for name in published_names(depth) if name.endswith(".weight")]
    assert [name for name, module in model.named_modules() if hasattr(module, "weight")] == expected


def test_a_state_of_the_published_names_loads_strictly() -> None:
    shapes = sw.models.create("resnet18").state_dict()
    state = {name: torch.randn_like(shapes[name].float()).to(shapes[name].dtype) for name in published_names(18)}
    sw.models.create("resnet18").load_state_dict(state, strict=True)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_golden_logits_from_seed_0(shared_data: Path, name: str) -> None:
    golden = json.loads((shared_data / "golden.json").read_text())[name]
    torch.manual_seed(0)
    random.seed(0)
    model = sw.models.create(name, num_classes=50).eval()
    x = torch.rand(1, 3, 224, 224)
    assert x.flatten()[:3].tolist() == golden["input_first3"]
    with torch.no_grad():
        logits = model(x)[0]
    expected = torch.tensor(golden["logits"])
    assert (logits - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert sum(parameter.numel() for parameter in model.parameters()) == golden["params"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20", "preresnet20"])
def test_initialisation_is_kaiming_by_fan_out(name: str) -> None:
    model = sw.models.create(name)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.weight[0, 0].numel()
            assert abs(float(module.weight.detach().std()) / (2 / fan_out) ** 0.5 - 1) < 0.05
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


@pytest.mark.parametrize("skip", ["highway", "pooled-gate", "squeeze-excite"])
def test_connections_initialise_their_own_parts(skip: str) -> None:
    """Their 1x1 convolutions keep torch's own uniform start, and a gate its bias, in any family."""
    model = sw.models.create("resnet20", skip)
    assert isinstance(model, sw.models.ResNet)
    parts = [part for block in model.blocks for part in (block.connection, block.connection.part("reweight")) if part]
    own = [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)]
    assert own
    for convolution in own:
        assert convolution.weight.abs().max() <= convolution.in_channels**-0.5
        assert "gate" not in skip or convolution.bias is None or (convolution.bias == 0).all()
        assert skip != "highway" or (convolution.bias is not None and (convolution.bias == -2).all())


def test_zero_init_starts_every_branch_at_zero() -> None:
    model = sw.models.create("resnet50", zero_init=True, width=4)
    assert isinstance(model, sw.models.ResNet)
    for block in model.blocks:
        assert not block.get_parameter("bn3.weight").any()
        assert block.get_parameter("bn2.weight").all()
        x = torch.rand(2, block.connection.site.in_channels, 6, 6)  # type: ignore[union-attr]
        shortcut = block.connection.part("shortcut")
        assert shortcut is not None
        torch.testing.assert_close(block(x), torch.relu(shortcut(x)))


def test_other_connections_keep_the_names_of_the_branches() -> None:
    """So that weights of the published net load into a net with other connections, but for what these add."""
    published = set(sw.models.create("resnet50", width=4).state_dict())
    for skip in ("rezero", "highway", "squeeze-excite", "stochastic-depth", "layerscale"):
        state = set(sw.models.create("resnet50", skip=skip, width=4).state_dict())
        assert published <= state
        assert all(".connection." in name or ".se." in name for name in state - published)
