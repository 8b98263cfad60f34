"""Every named connection equals the equation that it is described by, and names what it comes from."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway import connect

Formula = Callable[[Tensor, dict[str, Tensor]], Tensor]
CHANNELS, INDEX, DEPTH = 4, 3, 16


def batch_norm(x: Tensor, w: dict[str, Tensor], slot: str) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    weight, bias = (w[f"connection.norm_{slot}.{name}"].view(-1, 1, 1) for name in ("weight", "bias"))
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = w[f"connection.{name}.weight"].flatten(1), w[f"connection.{name}.bias"]
    return torch.einsum("oc,nchw->nohw", weight, x) + bias.view(-1, 1, 1)


def highway(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    g = torch.sigmoid(linear(x, w, "gate.weight"))
    return g * F(x) + (1 - g) * x


def shortcut_gate(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    return F(x) + (1 - torch.sigmoid(linear(x, w, "gate.weight"))) * x


def pooled_gate(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    a = torch.sigmoid(linear(F(x).mean((2, 3), keepdim=True), w, "gate.weight"))
    return a * F(x) + (1 - a) * x


def squeeze_excite(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    squeezed = torch.relu(linear(F(x).mean((2, 3), keepdim=True), w, "reweight.fc1"))
    return x + F(x) * torch.sigmoid(linear(squeezed, w, "reweight.fc2"))


def projected(x: Tensor, w: dict[str, Tensor], first: int = 0) -> Tensor:
    y = torch.einsum("oc,nchw->nohw", w[f"connection.shortcut.{first}.weight"].flatten(1), x)
    mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, correction=0)
    weight, bias = (w[f"connection.shortcut.{first + 1}.{name}"].view(-1, 1, 1) for name in ("weight", "bias"))
    return (y - mean) / (variance + 1e-5).sqrt() * weight + bias


def attention_gate(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    theta = torch.einsum("oc,nchw->nohw", w["connection.gate.theta.weight"].flatten(1), x)
    weight = torch.sigmoid(linear(torch.relu(theta + linear(F(x), w, "gate.phi")), w, "gate.psi"))
    assert weight.shape == (len(x), 1, *x.shape[2:])
    return torch.cat([weight * x, F(x)], 1)


def residual_path(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    carried = x
    for step in range(DEPTH - INDEX):
        here = f"connection.shortcut.{step}"
        wide = nn.functional.conv2d(carried, w[f"{here}.conv.weight"], padding=1)
        narrow = nn.functional.conv2d(carried, w[f"{here}.connection.shortcut.0.weight"])
        names = {
            f"connection.norm_after.{name}": w[f"{here}.connection.norm_after.{name}"] for name in ("weight", "bias")
        }
        carried = torch.relu(batch_norm(wide + narrow, names, "after"))
    return torch.cat([carried, F(x)], 1)


F = torch.sin
relu, norm = torch.relu, batch_norm
# At a site that keeps its shape, in evaluation of what is dropped in training.
EQUATIONS: dict[str, Formula] = {
    "none": lambda x, w: F(x),
    "residual": lambda x, w: x + F(x),
    "zero-pad": lambda x, w: x + F(x),
    "zero-pad-split": lambda x, w: x + F(x),
    "zero-pad-average": lambda x, w: x + F(x),
    "projection": lambda x, w: x + F(x),
    "projection-everywhere": lambda x, w: projected(x, w) + F(x),
    "pooled-projection": lambda x, w: x + F(x),
    "rezero": lambda x, w: x + w["connection.scale.scale"] * F(x),
    "skipinit": lambda x, w: x + w["connection.scale.scale"] * F(x),
    "layerscale": lambda x, w: x + w["connection.scale.scale"].view(-1, 1, 1) * F(x),
    "deepnorm": lambda x, w: norm(DEPTH**0.25 * x + F(x), w, "after"),
    "highway": highway,
    "exclusive-gate": highway,
    "shortcut-gate": shortcut_gate,
    "pooled-gate": pooled_gate,
    "squeeze-excite": squeeze_excite,
    "stochastic-depth": lambda x, w: x + F(x),
    "stochastic-depth-row": lambda x, w: x + F(x),
    "pre-activation": lambda x, w: x + F(relu(norm(x, w, "before"))),
    "relu-pre-activation": lambda x, w: x + norm(F(relu(x)), w, "out"),
    "relu-before-sum": lambda x, w: x + relu(norm(F(x), w, "out")),
    "norm-after-sum": lambda x, w: relu(norm(x + F(x), w, "after")),
    "original": lambda x, w: relu(x + norm(F(x), w, "out")),
    "pre-norm": lambda x, w: x + F(norm(x, w, "before")),
    "post-norm": lambda x, w: norm(x + F(x), w, "after"),
    "branch-norm": lambda x, w: x + norm(F(x), w, "out"),
    "sandwich": lambda x, w: x + norm(F(norm(x, w, "before")), w, "out"),
    "concat": lambda x, w: torch.cat([x, F(x)], 1),
    "attention-gate": attention_gate,
    "residual-path": residual_path,
    "dense": lambda x, w: torch.cat([x, F(x)], 1),
}


@pytest.mark.parametrize("name", connect.names())
def test_every_named_connection_equals_its_equation(agree: Callable[..., None], name: str) -> None:
    block = sw.Skip(F, name, CHANNELS, index=INDEX, depth=DEPTH).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    if name.startswith("stochastic-depth"):
        block.eval()
    agree(block, EQUATIONS[name], torch.randn(3, CHANNELS, 5, 4, dtype=torch.float64))


# At a site with 4 -> 6 channels and stride 2, where these names differ.
BORDERS: dict[str, Formula] = {
    "zero-pad": lambda x, w: nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2)),
    "zero-pad-split": lambda x, w: nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)),
    "zero-pad-average": lambda x, w: nn.functional.pad(nn.functional.avg_pool2d(x, 2), (0, 0, 0, 0, 0, 2)),
    "projection": lambda x, w: projected(x[:, :, ::2, ::2], w),
    "pooled-projection": lambda x, w: projected(nn.functional.avg_pool2d(x, 2), w, first=1),
}
BORDERS["residual"] = BORDERS["projection-everywhere"] = BORDERS["projection"]


@pytest.mark.parametrize("name", BORDERS)
def test_where_the_shape_changes_the_shortcuts_differ_as_named(agree: Callable[..., None], name: str) -> None:
    block = sw.Skip(nn.Conv2d(4, 6, 2, stride=2), name, 4, 6, stride=2).double()
    branch = block.branch
    formula = BORDERS[name]
    agree(block, lambda x, w: formula(x, w) + branch(x), torch.randn(3, 4, 6, 8, dtype=torch.float64))


def test_the_table_above_holds_every_name() -> None:
    assert set(EQUATIONS) == set(connect.names())


@pytest.mark.parametrize("name", connect.names())
def test_every_name_is_described_by_an_equation_and_a_source(name: str) -> None:
    said = connect.describe(name)
    assert said.startswith("y = ")
    assert "\n" not in said
    unpublished = ("none", "zero-pad-split", "pooled-gate", "concat")
    assert re.search(r"\d{4}.*, arXiv:\d{4}\.\d{5}\.$", said) or name in unpublished


@pytest.mark.parametrize("name", connect.names())
def test_a_name_means_a_value_that_can_be_written_out(name: str) -> None:
    value = connect.resolve(name)
    assert value == connect.resolve(value)
    assert hash(value) == hash(connect.resolve(name))
    assert eval(repr(value), dict(vars(connect))) == value


def test_what_a_value_leaves_open_is_filled_and_the_rest_kept() -> None:
    filled = connect.fill(sw.Residual(drop=0.5), placement="original", shortcut=sw.ZeroPad())
    assert filled == sw.Residual(drop=0.5, placement="original", shortcut=sw.ZeroPad())
    chosen = sw.Residual(placement="pre-norm", shortcut=sw.Identity())
    assert connect.fill(chosen, placement="original", shortcut=sw.ZeroPad()) == chosen
    assert connect.fill(sw.Plain(), placement="original", shortcut=sw.ZeroPad()) == sw.Plain("original")
    assert connect.fill(sw.Dense(), placement="original") == sw.Dense()


def test_a_connection_of_ones_own_works_by_value_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Halved(sw.Connection):
        def write(self, stream: Tensor, value: Tensor, read: Tensor | None = None) -> Tensor:
            return (stream + value) / 2

    class Half:
        def build(self, site: sw.Site) -> sw.Connection:
            return Halved(site.out_channels)

    monkeypatch.setattr("skipway.connect.presets._PRESETS", {})
    connect.preset("half")(Half)
    x = torch.randn(2, 3, 4, 4)
    for skip in (Half(), "half"):
        torch.testing.assert_close(sw.Skip(torch.sin, skip, channels=3)(x), (x + torch.sin(x)) / 2)
        torch.testing.assert_close(sw.Stack([torch.neg] * 2, skip, channels=3)(x), torch.zeros_like(x))
