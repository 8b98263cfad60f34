"""Highway networks compute their equation, layer by layer, and so do their plain twins; deep ones train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.slips import gives_one_sentence
from torch import Tensor, nn

import skipway as sw
from skipway.models import HighwayNet, HighwayPlan, convolutional_highway, highway


def written(weights: dict[str, Tensor], x: Tensor, layers: tuple[int, ...], convolutional: bool, gated: bool) -> Tensor:
    """y = T H + (1 - T) x, H = relu(W x + b), T = sigmoid(W_T x + b_T), in torch's functions."""

    def linear(y: Tensor, name: str) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.conv2d(y, weight, bias, padding=1) if convolutional else F.linear(y, weight, bias)

    y = x if convolutional else x.flatten(1)
    for stage, count in enumerate(layers, 1):
        y = F.max_pool2d(y, 2) if stage > 1 else y
        y = linear(y, f"enter{stage}").relu()
        for k in range(count):
            h = linear(y, f"layer{stage}.{k}.layer").relu()
            if gated:
                t = linear(y, f"layer{stage}.{k}.connection.gate.weight").sigmoid()
                h = t * h + (1 - t) * y
            y = h
    y = y.mean((2, 3)) if convolutional else y
    return F.linear(y, weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize("skip", ["highway", "none"])
@pytest.mark.parametrize("name", ["highway-7", "highway-conv-8"])
def test_outputs_and_gradients_are_those_of_the_equation(name: str, skip: str) -> None:
    convolutional = "conv" in name
    options: dict[str, Any] = {"width": 5} if convolutional else {"width": 5, "image_size": 6, "in_channels": 3}
    model: Any = sw.models.create(name, skip, **options).double()
    weights = dict(model.named_parameters())
    for parameter in weights.values():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.5)
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    ours = model(x)
    theirs = written(weights, x, model.plan.layers, convolutional, skip == "highway")
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    back = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(y, [x, *weights.values()], back) for y in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_the_plain_twin_has_the_layers_of_the_highway_network_and_no_gates() -> None:
    gated, plain = (sw.models.create("highway-10", skip).state_dict() for skip in ("highway", "none"))
    assert set(gated) - set(plain) == {
        f"layer1.{k}.connection.gate.weight.{part}" for k in range(9) for part in ("weight", "bias")
    }
    assert set(plain) < set(gated)


@pytest.mark.parametrize("skip", ["highway", "exclusive-gate"])
def test_gates_of_convolutions_see_what_these_see_unless_told_otherwise(skip: str) -> None:
    model = sw.models.create("highway-conv-6", skip, width=4)
    assert model.get_parameter("layer1.0.connection.gate.weight.weight").shape == (4, 4, 3, 3)
    narrow = sw.models.create("highway-conv-6", sw.Residual(gate=sw.Highway(kernel=1)), width=4)
    assert narrow.get_parameter("layer1.0.connection.gate.weight.weight").shape == (4, 4, 1, 1)
    pooled = sw.models.create("highway-conv-6", "pooled-gate", width=4)
    assert pooled.get_parameter("layer1.0.connection.gate.weight.weight").shape == (4, 4, 1, 1)


def test_gates_start_near_the_shortcut() -> None:
    """With T about 0 a network of 100 layers hands on nearly what its first layer put out."""
    model = highway(100, sw.Residual(gate=sw.Highway(bias=-12.0)), image_size=8)
    x = torch.randn(4, 1, 8, 8)
    first = F.relu(model.get_submodule("enter1")(x.flatten(1)))
    torch.testing.assert_close(model(x), model.fc(first), rtol=1e-2, atol=1e-2)


def loss_after(model: nn.Module, steps: int) -> float:
    from skipway.study import load_images

    data = load_images("digits")
    images, labels = (data.train_images[:64].float() - 5) / 6, data.train_labels[:64]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.slow
def test_a_hundred_layers_train_where_the_plain_twin_does_not() -> None:
    """64 real digits are learned by heart, or not at all: ln 10 is chance, and some plain nets lose their numbers."""
    carrying = sw.Residual(gate=sw.Highway(bias=-4.0))
    gated, plain = (loss_after(highway(100, skip, image_size=8, width=32), steps=60) for skip in (carrying, "none"))
    assert gated < 0.3
    assert not plain < 2.2


def test_a_trace_finds_a_gate_a_layer() -> None:
    model = highway(10, image_size=8, width=6).eval()
    graph = sw.trace(model, torch.randn(2, 1, 8, 8))
    assert [skip.kind for skip in graph.skips] == ["gate"] * 9
    assert graph.paths().longest >= model.depth


@pytest.mark.parametrize(("layers", "stages"), [(6, (1, 1, 1)), (10, (3, 2, 2)), (20, (6, 6, 5)), (100, (33, 32, 32))])
def test_convolutions_are_spread_over_the_stages(layers: int, stages: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = convolutional_highway(layers)
    assert model.plan.layers == stages
    convolutions = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "gate" not in name]
    assert len(convolutions) == layers == model.depth - 1


SLIPS: dict[str, tuple[Any, str]] = {
    "dense": (
        lambda: sw.models.create("highway-10", "dense"),
        "the layers of a highway network keep their width, which Dense() does not",
    ),
    "one layer": (lambda: sw.models.create("highway-1"), "at least 2 layers, a plain one and a highway one, not 1"),
    "few convolutions": (
        lambda: sw.models.create("highway-conv-5"),
        "at least 6 layers, a plain one and a highway",
    ),
    "no width": (lambda: highway(10, width=0), "needs a width and layers of at least 1, not 0 and (9,)"),
    "no pixels": (lambda: highway(10, image_size=0), "one stage and images of at least 1 pixel a side, not 1 and 0"),
    "stages of a fully connected one": (lambda: HighwayPlan((1, 1), 5, 8), "has one stage and images"),
    "another size": (
        lambda: highway(5)(torch.ones(1, 1, 8, 8)),
        "images are 8 x 8; this fully connected network was built for 28 x 28 pixels: build it with image_size=",
    ),
    "colour": (lambda: highway(5)(torch.ones(1, 3, 28, 28)), "takes images of shape [n, 1, h, w], not [1, 3, 28, 28]"),
    "small images": (
        lambda: convolutional_highway(8)(torch.ones(1, 3, 3, 8)),
        "images are 3 x 8; this highway network shrinks them 4 times: give at least 4 x 4 pixels",
    ),
    "even kernel": (lambda: sw.Highway(kernel=2), "a gate's kernel is an odd number of positions, not 2"),
    "pooled kernel": (lambda: sw.PooledGate(kernel=3), "a pooled gate sees one position, the mean, and no kernel of 3"),
    "kernel of tokens": (
        lambda: HighwayNet(HighwayPlan((2,), 4, 8), sw.Residual(gate=sw.Highway(kernel=3))),
        "a gate's kernel of 3 is for maps, and tokens have no neighbours: leave it out",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.usefixtures("no_shape_checks")
def test_slips(slip: str) -> None:
    gives_one_sentence(*SLIPS[slip])
