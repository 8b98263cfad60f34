"""The reuse map against a case computed by hand, and on a DenseNet and a U-Net."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from skip_nets import Written
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe.result import load
from skipway.probe.reuse import reuse

mpl.use("Agg")


class DenseLayer(nn.Module):
    def __init__(self, c: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(c), nn.Conv2d(c, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.conv1(self.norm1(torch.cat(maps, 1)).relu())
        return self.conv2(self.norm2(x).relu())


class DenseNet(nn.Module):
    """DenseNet-121's plan: blocks of bottleneck layers, transitions that halve, a classifier."""

    def __init__(self, depths: tuple[int, ...] = (6, 12, 24, 16), growth: int = 2):
        super().__init__()
        c = 2 * growth
        self.stem = nn.Conv2d(3, c, 3, padding=1)
        self.blocks, self.transitions = nn.ModuleList(), nn.ModuleList()
        for depth in depths:
            self.blocks.append(nn.ModuleList([DenseLayer(c + k * growth, growth) for k in range(depth)]))
            c += depth * growth
            self.transitions.append(
                nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c // 2, 1), nn.AvgPool2d(2))
            )
            c //= 2
        self.transitions[-1] = nn.BatchNorm2d(2 * c)
        self.head = nn.Linear(2 * c, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            maps = [x]
            for layer in block:  # pyright: ignore[reportGeneralTypeIssues]
                maps.append(layer(maps))
            x = transition(torch.cat(maps, 1))
        return self.head(x.relu().mean((2, 3)))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 16, 16), torch.tensor([0, 1])


def by_hand(kind: str) -> nn.Module:
    conv = {"conv": nn.Conv2d(5, 4, 1, bias=False), "transposed": nn.ConvTranspose2d(5, 4, 1, bias=False)}[kind]

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.last(self.norm(torch.cat([x, self.first(x)], 1)).relu())

    return Written(forward, first=nn.Conv2d(3, 2, 1, bias=False), norm=nn.BatchNorm2d(5), last=conv)


@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_strengths_are_means_of_absolute_weights_by_hand(kind: str):
    net: Any = by_hand(kind)
    found = reuse(net, batch())
    weight = net.last.weight.detach().double().abs()
    by_channel = weight.sum((1, 2, 3) if kind == "transposed" else (0, 2, 3))
    row = found.strengths[
        list(found.targets).index(f"last:{'conv_transpose2d' if kind == 'transposed' else 'conv2d'}:0")
    ]
    assert row == pytest.approx([by_channel[:3].mean().item(), by_channel[3:].mean().item()])
    assert found.channels.tolist() == [3, 2]
    nn.init.uniform_(net.norm.weight)
    nn.init.uniform_(net.norm.running_var, 0.5, 2)
    folded = reuse(net, batch(), fold=True)
    scale = (net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()).detach().double()
    scaled = by_channel * scale
    assert folded.strengths[-1] == pytest.approx([scaled[:3].mean().item(), scaled[3:].mean().item()], rel=1e-6)


def test_grouped_convolutions_are_counted_by_group():
    net: Any = Written(
        lambda self, x: self.last(torch.cat([x, self.first(x)], 1)),
        first=nn.Conv2d(3, 3, 1), last=nn.Conv2d(6, 4, 1, groups=2, bias=False),
    )  # fmt: skip
    found = reuse(net, batch())
    weight = net.last.weight.detach().double().abs().squeeze()
    assert found.strengths[-1] == pytest.approx([weight[:2].sum(0).mean().item(), weight[2:].sum(0).mean().item()])


def test_densenet_121_has_its_four_triangles():
    found = reuse(DenseNet(), batch())
    assert sorted(set(found.target_groups.tolist())) == [0, 1, 2, 3]
    for group, depth in enumerate((6, 12, 24, 16)):
        values, sources, targets, leaving = found.heat_map(group)
        assert len(sources) == len(targets) == depth + 1
        assert leaving.tolist() == [False] * depth + [True]
        # Layer k reads the block's input and the k layers before it.
        np.testing.assert_array_equal(np.isnan(values), np.tril(np.ones((depth + 1, depth + 1)), -1) > 0)
    assert found.channels[found.source_groups == 0].tolist() == [4] + [2] * 6


def test_a_unets_decoder_reads_its_encoder():
    def forward(self: Any, x: Tensor) -> Tensor:
        a = self.enc1(x).relu()
        b = self.enc2(nn.functional.max_pool2d(a, 2)).relu()
        return self.dec(torch.cat([a, self.up(b)], 1)).mean((2, 3))

    net = Written(
        forward, enc1=nn.Conv2d(3, 4, 3, padding=1), enc2=nn.Conv2d(4, 8, 3, padding=1),
        up=nn.ConvTranspose2d(8, 4, 2, 2), dec=nn.Conv2d(8, 2, 3, padding=1),
    )  # fmt: skip
    found = reuse(net, batch())
    assert found.sources[-1] == "up:conv_transpose2d:0"
    row = found.strengths[list(found.targets).index("dec:conv2d:0")]
    assert (row > 0).all()


def test_the_weights_of_weight_norm_are_the_effective_ones():
    net: Any = by_hand("conv")
    expected = reuse(net, batch()).strengths
    torch.nn.utils.parametrizations.weight_norm(net.last)
    assert reuse(net, batch()).strengths == pytest.approx(expected, rel=1e-5, nan_ok=True)


def test_table_plot_and_file(tmp_path: Any):
    found = reuse(DenseNet((2, 3)), batch())
    assert len(found.table()) == int((~np.isnan(found.strengths)).sum())
    assert load(found.save(tmp_path / "reuse")) == found
    assert len(found.plot()) == 2
    assert len(list(found.interactive().data)) == 2


def test_a_network_that_concatenates_nothing_is_refused():
    with pytest.raises(SkipwayError, match="Sequential has no layer that reads a concatenation"):
        reuse(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), batch())
