"""Symmetries: exact orders, random elements of every family, and what breaks when a tie is broken."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from symmetry_nets import FAMILIES, Program, check, example, scrambled
from torch import Tensor, nn

import skipway as sw
from skipway.errors import SkipwayError
from skipway.graph import trace
from skipway.graph.symmetry import Symmetry, symmetry
from skipway.models.resnet import ResNet, ResNetPlan

IMAGE = torch.zeros(1, 3, 32, 32)


def resnet(name: str, skip: Any) -> Symmetry:
    return symmetry(trace(sw.models.create(name, skip=skip, num_classes=10).eval(), IMAGE))


def log10_factorials(*sizes: int) -> float:
    return sum(math.lgamma(size + 1) for size in sizes) / math.log(10)


def test_orders_of_the_cifar_nets() -> None:
    plain, projected = resnet("resnet56", "none"), resnet("resnet56", "projection")
    assert plain.log10_order == pytest.approx(2494.5, abs=0.05)
    assert len(plain.classes) == 55
    assert projected.log10_order == pytest.approx(1378.4, abs=0.05)
    assert len(projected.classes) == 30
    assert len(resnet("resnet20", "projection").classes) == 12
    assert sum(one.log10_order for one in plain.classes) == pytest.approx(plain.log10_order)


def test_zero_padding_splits_the_stream_into_what_is_carried_and_what_is_new() -> None:
    found = resnet("resnet56", "zero-pad")
    streams = [one for one in found.classes if one.skips]
    assert sorted(one.size for one in streams) == [16, 16, 32]
    assert [len(one.skips) for one in streams] == [27, 18, 9]
    inner = [16] * 9 + [32] * 9 + [64] * 9
    assert found.log10_order == pytest.approx(log10_factorials(16, 16, 32, *inner))


def test_rescalings_of_the_cifar_nets() -> None:
    # One a unit behind a batch norm and before a ReLU: 7 x 16 + 6 x 32 + 6 x 64 in plain-20, inner units and three
    # streams in ResNet-20.
    assert resnet("resnet20", "none").rescalings == 112 + 192 + 384
    assert resnet("resnet20", "projection").rescalings == 3 * (16 + 32 + 64) + 16 + 32 + 64
    assert resnet("resnet20", "zero-pad").rescalings == 3 * (16 + 32 + 64) + 16 + 16 + 32


class Rectified(nn.Module):
    """A stem, blocks of two layers whose sum with what they read, if they have skips, is rectified, and a head."""

    def __init__(self, skips: bool):
        super().__init__()
        self.skips, self.bend = skips, nn.LeakyReLU(0.2)
        self.stem, self.head = nn.Linear(3, 5), nn.Linear(5, 2)
        self.first = nn.ModuleList([nn.Linear(5, 4) for _ in range(2)])
        self.second = nn.ModuleList([nn.Linear(4, 5) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.bend(self.stem(x))
        for first, second in zip(self.first, self.second, strict=True):
            value = second(self.bend(first(x)))
            x = self.bend(x + value if self.skips else value)
        return self.head(x)


BENT = {
    "layers": lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.LeakyReLU(), nn.Linear(4, 2)),
    "a saturating layer": lambda: nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)
    ),
    "blocks without skips": lambda: Rectified(False),
    "blocks with skips": lambda: Rectified(True),
    "a convolution of each channel": lambda: nn.Sequential(
        nn.Conv1d(1, 4, 2), nn.LeakyReLU(), nn.Conv1d(4, 4, 2, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)
    ),
}


def drawn(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Parameters at which every unit lies on both sides of its bend for some of the inputs."""
    read: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, (nn.ReLU, nn.LeakyReLU)):
            module.register_forward_pre_hook(lambda module, args: read.append(args[0].flatten(1).sign().mean(0)))
    while True:
        read.clear()
        with torch.no_grad():
            for value in net.parameters():
                value.copy_(torch.randn_like(value))
            net(x)
        if all(sides.abs().max() < 0.9 for sides in read):
            return {name: value.detach() for name, value in net.named_parameters()}


@pytest.mark.parametrize("name", BENT)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_free_scales_are_the_ranks_that_the_jacobian_lacks(name: str) -> None:
    """Weights with no other freedom: every direction in which no output changes, anywhere, is a rescaling."""
    net = BENT[name]().double()
    x = 3 * torch.randn(400, *((1, 3) if "convolution" in name else (3,)), dtype=torch.float64)
    parameters = drawn(net, x)
    jacobians = torch.func.jacrev(lambda own: torch.func.functional_call(net, own, (x,)))(parameters)
    jacobian = torch.cat([part.flatten(2).flatten(0, 1) for part in jacobians.values()], 1)
    values = torch.linalg.svdvals(jacobian / jacobian.norm(dim=0))
    lacking = int((values < 1e-9).sum())
    assert values[-lacking - 1] > 1e-7
    assert symmetry(trace(net, x)).rescalings == lacking > 0


WIDENS = ("concat", "dense", "attention-gate", "residual-path")


@pytest.mark.parametrize("skip", [name for name in sw.connect.names() if name not in WIDENS])
def test_own_resnets_compute_the_same(skip: str) -> None:
    plan = ResNetPlan(blocks=(2, 2), width=6, stem="cifar", shortcut="zero-pad")
    check(scrambled(ResNet(plan, skip=skip, num_classes=3)), (example("images", (2, 3, 8, 8)),), breaks=6)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_compute_the_same(name: str) -> None:
    make, (kind, shape) = FAMILIES[name]
    found = check(scrambled(make()), (example(kind, shape),), breaks=12)
    assert found.classes
    assert found.rescalings > 0


def orders(name: str) -> Symmetry:
    make, (kind, shape) = FAMILIES[name]
    return symmetry(trace(make().double().eval(), example(kind, shape)))


def test_orders_of_the_families() -> None:
    f = math.factorial
    assert orders("vgg").order == f(6) * f(8) * f(10)
    # Depth-wise convolutions tie their two sides; with a multiplier, two units move with the one that they read.
    assert orders("mobilenet").order == f(8) * f(24) * (f(8) * f(2) ** 8)
    # Grouped convolution: whole groups, and units inside a group of its inputs and of its outputs.
    assert orders("resnext").order == f(8) * (f(4) * f(4) ** 4 * f(6) ** 4) * f(8)
    assert orders("group norms").order == (f(4) * f(3) ** 4) * f(8) * f(8)
    assert orders("densenet").order == f(6) * f(4) ** 3
    assert orders("unet").order == f(6) * f(8) * f(9) * f(8) * f(8) * f(6)
    assert orders("convnext").order == f(8) * f(20)
    assert orders("vit").order == f(16) * (f(4) * f(4) ** 4 * f(4) ** 4) * f(20)
    assert orders("gated units").order == f(8) * f(6)
    heads = f(4) * f(4) ** 4 * f(4) ** 4
    assert orders("encoder").order == f(16) * heads**2 * f(20) ** 2
    # Two streams, which the packed weights of cross-attention do not tie.
    assert orders("translator").order == f(16) ** 2 * heads**3 * f(20) ** 2


def test_classes_say_what_moves_and_which_skips_tie_it() -> None:
    found = resnet("resnet20", "projection")
    stream = found.classes[0]
    assert (stream.kind, stream.size, stream.count) == ("units", 16, 1)
    assert ("conv1.weight", 0) in stream.members
    assert ("bn1.running_mean", 0) in stream.members
    assert ("layer1.2.conv1.weight", 1) in stream.members
    assert [str(site) for site in stream.skips] == [f"layer1.{k}.connection:add_:0" for k in range(3)]
    assert not found.classes[1].skips
    assert len(found.to_frame()) == len(found.classes)
    assert "classes=12" in repr(found)


def test_heads_are_blocks() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 6, batch_first=True).eval()
    found = symmetry(trace(layer, torch.zeros(1, 3, 8)))
    blocks = [one for one in found.classes if one.kind == "blocks"]
    assert [(one.size, one.count) for one in blocks] == [(2, 1)]
    assert {("self_attn.in_proj_weight", 0), ("self_attn.out_proj.weight", 1)} <= set(blocks[0].members)
    inside = [one for one in found.classes if one.kind == "units" and one.count == 2]
    assert [one.size for one in inside] == [4, 4]


def test_what_is_not_known_is_pinned_and_said() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Program(lambda net, x: torch.fft.fft(x).real), nn.Linear(6, 2))
    found = symmetry(trace(model, torch.zeros(1, 4)))
    assert found.order == 1
    pinned = {one.why: one for one in found.pinned}
    assert "no rule for fft_fft" in pinned
    assert pinned["no rule for fft_fft"].size == 6
    assert str(pinned["no rule for fft_fft"].site) == "2:fft_fft:0"
    assert pinned["output"].site is None
    assert ("3.weight", 0) in pinned["output"].members


@pytest.mark.parametrize(
    "mixes",
    [
        lambda net, x: x.cumsum(-1),
        lambda net, x: x * torch.arange(6.0),
        lambda net, x: x.sort(-1).values,
        lambda net, x: x[:, torch.tensor([1, 0, 2, 3, 4, 5])],
        lambda net, x: F_pool(x),
        lambda net, x: x.roll(1, -1),
        lambda net, x: torch.cat([x[:, :1], x[:, 1:] * 2, x[:, :0]], -1) + net.fixed,
    ],
)
def test_order_of_positions_pins(mixes: Any) -> None:
    middle = Program(mixes)
    middle.register_buffer("fixed", torch.rand(6))
    found = symmetry(trace(nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, 2)), torch.zeros(1, 4)))
    assert found.order == 1


def F_pool(x: Tensor) -> Tensor:  # noqa: N802
    return nn.functional.avg_pool1d(x[:, None], 3, 1, 1)[:, 0]


def test_a_picked_unit_is_apart() -> None:
    model = Program(lambda net, x: net.b(torch.relu(net.a(x))) + net.a(x)[:, :1], a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    assert symmetry(trace(model, torch.zeros(1, 4))).order == math.factorial(5)


def test_tied_weights_tie_their_axes() -> None:
    model = Program(
        lambda net, x: net.a(torch.relu(net.a(torch.relu(net.i(x))))).sum(-1), i=nn.Linear(2, 5), a=nn.Linear(5, 5)
    )
    found = symmetry(trace(model, torch.zeros(1, 2)))
    assert found.order == math.factorial(5)
    assert set(found.classes[0].members) >= {("a.weight", 0), ("a.weight", 1), ("i.bias", 0)}


def test_sampling_is_seeded_and_leaves_the_random_state_alone() -> None:
    found = orders("vgg")
    state = torch.get_rng_state()
    one, same, other = found.sample(0, rescale=0.1), found.sample(0, rescale=0.1), found.sample(1, rescale=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert (one.moved == same.moved).all()
    assert (one.log_scales == same.log_scales).all()
    assert (one.moved != other.moved).any()


def test_another_model_is_refused() -> None:
    found = orders("vgg")
    with pytest.raises(SkipwayError, match=r"has no parameter '0.0.weight', which the traced Sequential has"):
        found.apply(nn.Linear(3, 3), found.sample(0))
    wider = FAMILIES["vgg"][0]()
    wider[0][0] = nn.Conv2d(3, 7, 3)  # type: ignore[index,operator]
    with pytest.raises(SkipwayError, match=r"'0.0.weight' has shape \(7, 3, 3, 3\), and had \(6, 3, 3, 3\)"):
        found.apply(wider, found.sample(0))
