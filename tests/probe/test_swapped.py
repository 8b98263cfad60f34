"""Lesions and responses of edited networks: every connection swapped in, against its published equation by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skip_nets import Written
from torch import Tensor, nn

import skipway as sw
from skipway import connect
from skipway.connect.placement import PLACEMENTS, Slot
from skipway.errors import SkipwayError

# These give more channels than what follows a sum takes, or keep a stream of their own.
REFUSED = ("concat", "attention-gate", "residual-path", "dense")
KINDS = [name for name in connect.names() if name not in REFUSED]
LABELS = torch.tensor([0, 1, 2, 1])
DEPTH = 2

# What a connection makes of its shortcut's end s and the branch's v, and what it makes of s where there is no branch.
Equation = Callable[[Any, Tensor, Tensor], Tensor]
Alone = Callable[[Any, Tensor], Tensor]


def opened(gate: Any, x: Tensor) -> Tensor:
    return torch.sigmoid(F.conv2d(x, gate.weight.weight, gate.weight.bias))


def excited(c: Any, v: Tensor) -> Tensor:
    squeezed = torch.relu(F.conv2d(v.mean((2, 3), keepdim=True), c.reweight.fc1.weight, c.reweight.fc1.bias))
    return v * torch.sigmoid(F.conv2d(squeezed, c.reweight.fc2.weight, c.reweight.fc2.bias))


def normed(norm: Any, x: Tensor) -> Tensor:
    each = (1, -1, 1, 1)
    centred = (x - norm.running_mean.view(each)) / (norm.running_var.view(each) + norm.eps).sqrt()
    return centred * norm.weight.view(each) + norm.bias.view(each)


def projected(c: Any, s: Tensor) -> Tensor:
    return normed(c.shortcut[1], F.conv2d(s, c.shortcut[0].weight))


def highway(c: Any, s: Tensor, v: Tensor) -> Tensor:
    openness = opened(c.gate, s)
    return openness * v + (1 - openness) * s


def pooled(c: Any, s: Tensor, v: Tensor) -> Tensor:
    openness = opened(c.gate, v.mean((2, 3), keepdim=True))
    return openness * v + (1 - openness) * s


# What is not here adds: y = s + v, alone y = s. A step away from the shortcut is left out whole, its gate with it.
EQUATIONS: dict[str, tuple[Equation, Alone]] = {
    "rezero": (lambda c, s, v: s + c.scale.scale * v, lambda c, s: s),
    "skipinit": (lambda c, s, v: s + c.scale.scale * v, lambda c, s: s),
    "layerscale": (lambda c, s, v: s + c.scale.scale.view(-1, 1, 1) * v, lambda c, s: s),
    "deepnorm": (lambda c, s, v: DEPTH**0.25 * s + v, lambda c, s: DEPTH**0.25 * s),
    "highway": (highway, lambda c, s: s),
    "exclusive-gate": (highway, lambda c, s: s),
    "pooled-gate": (pooled, lambda c, s: s),
    "shortcut-gate": (
        lambda c, s, v: v + (1 - opened(c.gate, s)) * s,
        lambda c, s: (1 - opened(c.gate, s)) * s,
    ),
    "squeeze-excite": (lambda c, s, v: s + excited(c, v), lambda c, s: s),
    "projection-everywhere": (lambda c, s, v: projected(c, s) + v, projected),
}
NORMS_AFTER = {**{name: PLACEMENTS[name] for name in PLACEMENTS if name != "bare"}, "deepnorm": PLACEMENTS["post-norm"]}


def filled(c: Any, slot: str, content: Slot, x: Tensor) -> Tensor:
    for what in content:
        x = normed(getattr(c, f"norm_{slot}"), x) if what == "norm" else x.clamp_min(0)
    return x


def met(kind: str, c: Any, stream: Tensor, branch: Callable[[Tensor], Tensor], left_out: bool) -> Tensor:
    """What follows a swapped merge: connection `c` of this kind writes the branch to the stream, or there is none."""
    placed = NORMS_AFTER.get(kind, PLACEMENTS["bare"])
    equation, alone = EQUATIONS.get(kind, (lambda c, s, v: s + v, lambda c, s: s))
    if left_out:
        return filled(c, "after", placed.after, alone(c, stream))
    v = filled(c, "out", placed.out, branch(filled(c, "before", placed.before, stream)))
    return filled(c, "after", placed.after, v if kind == "none" else equation(c, stream, v))


def forward(self: Any, x: Tensor) -> Tensor:
    h = self.stem(x)
    h = h + self.f(h)
    v = self.g(h)
    v += h
    return self.head(v.mean((2, 3)))


def foreign() -> nn.Module:
    """A network with a sum that makes a tensor of its own, and one that is written where the branch stood."""
    return Written(
        forward, stem=nn.Conv2d(3, 4, 3),
        f=nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Softplus(), nn.Conv2d(4, 4, 1)),
        g=nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 1)), head=nn.Linear(4, 3),
    )  # fmt: skip


def foreign_by_hand(net: Any, kind: str, x: Tensor, left_out: int | None) -> Tensor:
    h = net.stem(x)
    for number, (branch, connection) in enumerate(((net.f, "connection"), (net.g, "connection_1"))):

        def layers(s: Tensor, branch: Any = branch) -> Tensor:
            for layer in branch:
                s = layer(s)
            return s

        h = met(kind, getattr(net, connection), h, layers, left_out == number)
    return net.head(h.mean((2, 3)))


def residual() -> nn.Module:
    return sw.models.create("resnet14", width=4, num_classes=3)


def residual_by_hand(net: Any, kind: str, x: Tensor, left_out: int | None) -> Tensor:
    """Two of the second blocks of the stages are swapped; the first ones halve the map and double the channels."""
    h = torch.relu(normed(net.bn1, F.conv2d(x, net.conv1.weight, padding=1)))
    for stage in (net.layer1, net.layer2, net.layer3):
        for place, block in enumerate(stage):
            number = -1 if place == 0 or stage is net.layer1 else (0 if stage is net.layer2 else 1)
            stride = 2 if place == 0 and stage is not net.layer1 else 1

            def branch(s: Tensor, block: Any = block, stride: int = stride) -> Tensor:
                inner = torch.relu(normed(block.bn1, F.conv2d(s, block.conv1.weight, stride=stride, padding=1)))
                return normed(block.bn2, F.conv2d(inner, block.conv2.weight, padding=1))

            if number < 0:
                v = branch(h)
                more = v.shape[1] - h.shape[1]
                h = F.pad(h[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, more)) + v
            else:
                h = met(kind, block.connection.connection, h, branch, left_out == number)
            h = torch.relu(h)
    return net.fc(h.mean((2, 3)))


NETS: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Any, str, Tensor, int | None], Tensor]]] = {
    "foreign": (foreign, "*", foreign_by_hand),
    "residual": (residual, "layer[23].1.*", residual_by_hand),
}


def swapped(net: nn.Module, which: str, kind: str, x: Tensor) -> nn.Module:
    """In evaluation mode, in double precision, with nothing at the zero or one that it started from."""
    edited = sw.edit.swap(net, which, kind, graph=sw.trace(net, x)).double().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in (*edited.named_parameters(), *edited.named_buffers()):
            if tensor.is_floating_point() and ("connection" in name or "bn" in name):
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.3)
    return edited


pytestmark = pytest.mark.usefixtures("no_shape_checks")


@torch.no_grad()
def loss(output: Tensor) -> float:
    return float(F.cross_entropy(output, LABELS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", NETS)
def test_lesions_are_those_of_the_equation(which: str, kind: str):
    build, skips, by_hand = NETS[which]
    x = torch.randn(4, 3, 8, 8)
    net = swapped(build(), skips, kind, x)
    x = x.double()
    result = sw.probe.lesions(net, (x, LABELS), "cross_entropy")
    assert result.base_loss == pytest.approx(loss(by_hand(net, kind, x, None)), rel=1e-12)
    if kind == "none":
        return
    wanted = [loss(by_hand(net, kind, x, number)) for number in range(DEPTH)]
    places = range(DEPTH) if which == "foreign" else [
        place for place, part in enumerate(result.parts) if part.startswith(("layer2.1", "layer3.1"))
    ]  # fmt: skip
    assert len(places) == DEPTH
    np.testing.assert_allclose(result.losses[list(places)], wanted, rtol=1e-12)


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("which", NETS)
def test_what_cannot_stand_there_is_refused(which: str, kind: str):
    build, skips, _ = NETS[which]
    with pytest.raises(SkipwayError, match="cannot swap the skip at"):
        swapped(build(), skips, kind, torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize("kind", KINDS)
def test_responses_of_a_branch_are_those_that_its_layer_gives(kind: str):
    x = torch.randn(4, 3, 8, 8)
    net: Any = swapped(foreign(), "*", kind, x)
    given: list[Tensor] = []
    net.g[0].register_forward_hook(lambda *call: given.append(call[-1].detach()))
    responses = sw.probe.responses(net, (x.double(), LABELS))
    measured = dict(zip(responses.layers, responses.layer_std, strict=True))
    net(x.double())
    assert measured["g.0:conv2d:0"] == pytest.approx(float(given[-1].std(correction=0)), rel=1e-9)


@pytest.mark.parametrize("probe", ["lesions", "responses"])
def test_a_network_that_asks_whether_gradients_are_recorded_goes_one_way(probe: str):
    def forward(self: Any, x: Tensor) -> Tensor:
        v = self.f(x)
        if torch.is_grad_enabled():
            v = v.clone()
            v.register_hook(lambda gradient: gradient)
            v.retain_grad()
        with torch.no_grad():
            assert not torch.is_grad_enabled()
        return self.head(torch.relu(v) + x)

    head = nn.Linear(5, 3)
    net = Written(forward, f=nn.Linear(5, 5), head=head).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    if probe == "responses":
        assert len(sw.probe.responses(net, (x, LABELS)).skips) == 1
        return
    result = sw.probe.lesions(net, (x, LABELS), "cross_entropy")
    assert result.losses[0] == pytest.approx(loss(head(x)), rel=1e-12)


class Cached(nn.Module):
    """Looks the weights of its positions up, once for every number of samples."""

    def __init__(self):
        super().__init__()
        self.f, self.head = nn.Linear(5, 5), nn.Linear(5, 3)
        self.known: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if len(x) not in self.known:
            self.known[len(x)] = torch.linspace(0, 1, len(x), dtype=x.dtype)[:, None].expand(-1, 5).contiguous()
        return self.head(torch.tanh(self.f(x)) * self.known[len(x)] + x)


def test_a_first_run_that_fills_a_cache_is_run_again():
    net = Cached().double()
    x, labels = torch.randn(14, 5, dtype=torch.float64), torch.arange(14) % 3
    batches = [(x[:9], labels[:9]), (x[9:], labels[9:])]
    result = sw.probe.lesions(net, batches, "cross_entropy")
    with torch.no_grad():
        assert result.losses[0] == pytest.approx(float(F.cross_entropy(net.head(x), labels)), rel=1e-12)


def test_a_cut_projection_does_not_disturb_the_lesions_of_layers():
    net = sw.models.create("resnet8", skip="projection", width=4, num_classes=3)
    x = torch.randn(14, 3, 8, 8)
    plain = sw.edit.plain_twin(net, x[:2]).eval()
    labels = torch.arange(14) % 3
    result = sw.probe.lesions(plain, [(x[:9], labels[:9]), (x[9:], labels[9:])], "cross_entropy")
    with torch.no_grad():
        assert result.base_loss == pytest.approx(float(F.cross_entropy(plain(x), labels)), rel=1e-5)
    assert result.of == "layers"
    assert len(result.losses) >= 3
