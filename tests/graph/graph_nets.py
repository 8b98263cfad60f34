"""Networks written for the tests of tracing: each classic structure in the smallest form that still has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.graph import Skip, trace


def skips(model: nn.Module, *inputs: Tensor) -> tuple[Skip, ...]:
    return trace(model.eval(), *inputs).skips


def linear(c: int = 4, out: int = 4) -> nn.Linear:
    return nn.Linear(c, out)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


class ConvNorm(nn.Sequential):
    def __init__(
        self, c: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: nn.Module | None = None
    ):
        conv = nn.Conv2d(c, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(out), *([act] if act else []))


class Basic(nn.Module):
    expansion = 1

    def __init__(self, c: int, width: int, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(c, width, 3, stride)
        self.conv2 = ConvNorm(width, width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = ConvNorm(c, width, 1, stride) if stride > 1 or c != width else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.conv1(x)))
        out += x if self.shortcut is None else self.shortcut(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, c: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            ConvNorm(c, width, 1, act=nn.ReLU(True)),
            ConvNorm(width, width, 3, stride, act=nn.ReLU(True)),
            ConvNorm(width, 4 * width, 1),
        )
        self.shortcut = ConvNorm(c, 4 * width, 1, stride) if stride > 1 or c != 4 * width else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + (x if self.shortcut is None else self.shortcut(x)))


def resnet(
    depths: tuple[int, ...], block: type[Basic] | type[Bottleneck], widths: tuple[int, ...], stem: int
) -> nn.Sequential:
    layers: list[nn.Module] = [ConvNorm(3, stem, 3, act=nn.ReLU(True))]
    c = stem
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for index in range(depth):
            layers.append(block(c, width, 2 if stage and not index else 1))
            c = block.expansion * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10))


def resnet18() -> nn.Module:
    return resnet((2, 2, 2, 2), Basic, (4, 8, 12, 16), 4)


def resnet50() -> nn.Module:
    return resnet((3, 4, 6, 3), Bottleneck, (2, 4, 6, 8), 4)


def cifar_resnet56() -> nn.Module:
    return resnet((9, 9, 9), Basic, (4, 8, 16), 4)


class DenseLayer(nn.Module):
    def __init__(self, c: int, growth: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(c), nn.ReLU(True), nn.Conv2d(c, 2 * growth, 1, bias=False),
            nn.BatchNorm2d(2 * growth), nn.ReLU(True), nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False),
        )  # fmt: skip

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.body(torch.cat(maps, 1))


class DenseBlock(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self:
            maps.append(layer(maps))
        return torch.cat(maps, 1)


def densenet(depths: tuple[int, ...], growth: int = 2) -> nn.Sequential:
    c = 2 * growth
    layers: list[nn.Module] = [ConvNorm(3, c, act=nn.ReLU(True))]
    for index, depth in enumerate(depths):
        layers.append(DenseBlock([DenseLayer(c + k * growth, growth) for k in range(depth)]))
        c += depth * growth
        if index < len(depths) - 1:
            layers += [nn.BatchNorm2d(c), nn.ReLU(True), nn.Conv2d(c, c // 2, 1, bias=False), nn.AvgPool2d(2)]
            c //= 2
    return nn.Sequential(
        *layers, nn.BatchNorm2d(c), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10)
    )


class InvertedResidual(nn.Module):
    def __init__(self, c: int, out: int, stride: int, expand: int):
        super().__init__()
        wide = c * expand
        first = [] if expand == 1 else [ConvNorm(c, wide, 1, act=nn.ReLU6(True))]
        self.body = nn.Sequential(*first, ConvNorm(wide, wide, 3, stride, wide, nn.ReLU6(True)), ConvNorm(wide, out, 1))
        self.skips = stride == 1 and c == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skips else self.body(x)


def mobilenet_v2() -> nn.Sequential:
    layers: list[nn.Module] = [ConvNorm(3, 4, act=nn.ReLU6(True))]
    c = 4
    for expand, out, n, stride in (
        (1, 2, 1, 1),
        (6, 3, 2, 2),
        (6, 4, 3, 2),
        (6, 8, 4, 2),
        (6, 12, 3, 1),
        (6, 20, 3, 2),
        (6, 40, 1, 1),
    ):
        for index in range(n):
            layers.append(InvertedResidual(c, out, stride if index == 0 else 1, expand))
            c = out
    return nn.Sequential(
        *layers, ConvNorm(c, 64, 1, act=nn.ReLU6(True)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    )


class AttentionGate(nn.Module):
    """Attention U-Net's gate (Oktay et al. 2018): what it adds inside is no skip."""

    def __init__(self, c: int):
        super().__init__()
        self.of_decoder, self.of_encoder, self.mask = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1), nn.Conv2d(c, 1, 1)

    def forward(self, decoder: Tensor, encoder: Tensor) -> Tensor:
        return encoder * torch.sigmoid(self.mask(F.relu(self.of_decoder(decoder) + self.of_encoder(encoder))))


class UNet(nn.Module):
    def __init__(self, merge: str = "concat", levels: int = 3, c: int = 4):
        super().__init__()
        self.merge = merge
        double = 2 if merge != "add" else 1

        def stage(before: int, after: int) -> nn.Module:
            return nn.Sequential(ConvNorm(before, after, act=nn.ReLU(True)), ConvNorm(after, after, act=nn.ReLU(True)))

        self.down = nn.ModuleList(stage(3 if k == 0 else c * 2 ** (k - 1), c * 2**k) for k in range(levels + 1))
        self.up = nn.ModuleList(nn.ConvTranspose2d(c * 2 ** (k + 1), c * 2**k, 2, 2) for k in range(levels))
        self.fuse = nn.ModuleList(stage(c * double * 2**k, c * 2**k) for k in range(levels))
        self.gates = nn.ModuleList(AttentionGate(c * 2**k) for k in range(levels)) if merge == "gated" else None
        self.head = nn.Conv2d(c, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for k, stage in enumerate(self.down):
            x = stage(x if k == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for k in reversed(range(len(self.up))):
            x, encoder = self.up[k](x), kept[k]
            if self.gates is not None:
                encoder = self.gates[k](x, encoder)
            x = self.fuse[k](x + encoder if self.merge == "add" else torch.cat([encoder, x], 1))
        return self.head(x)


class Inception(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        act = nn.ReLU
        self.one = ConvNorm(c, 2, 1, act=act())
        self.three = nn.Sequential(ConvNorm(c, 2, 1, act=act()), ConvNorm(2, 2, 3, act=act()))
        self.five = nn.Sequential(
            ConvNorm(c, 2, 1, act=act()), ConvNorm(2, 2, 3, act=act()), ConvNorm(2, 2, 3, act=act())
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), ConvNorm(c, 2, 1, act=act()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class SqueezeExcite(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class Highway(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.transform, self.gate = nn.Linear(c, c), nn.Linear(c, c)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x))
        return t * torch.relu(self.transform(x)) + (1 - t) * x


class Written(nn.Module):
    """A module around a function of x and itself, for one-line networks."""

    def __init__(self, function: Callable[..., Any], **parts: Any):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Tensor) -> Any:
        return self.function(self, *args)


class Answer(NamedTuple):
    first: Tensor
    second: Tensor
