"""Small networks and data that the tests of probes share."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TinyResNet(nn.Module):
    """A stem, two residual blocks of which one changes shape, and a head, with BatchNorm everywhere."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList([Block(width, width, 1), Block(width, 2 * width, 2)])
        self.head = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def tiny_resnet(seed: int = 0) -> TinyResNet:
    """A TinyResNet whose statistics and norms are not those of a fresh one."""
    torch.manual_seed(seed)
    net = TinyResNet()
    for _ in range(5):
        net(torch.randn(16, 1, 8, 8) * 2 + 0.5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return net.eval()


def images(n: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(4, (n,), generator=generator)


def mlp(*sizes: int, seed: int = 0, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def points(n: int = 40, inputs: int = 5, classes: int = 3, seed: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, inputs, generator=generator), torch.randint(classes, (n,), generator=generator)


def trained_mlp() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network that has learned 300 digits, and those."""
    from skipway.study import load_images

    digits = load_images("digits")
    batch = digits.train_images[:300].float().flatten(1) / 16, digits.train_labels[:300]
    net = mlp(64, 24, 10, activation=nn.ReLU)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return net, batch


__all__ = ["TinyResNet", "images", "mlp", "points", "tiny_resnet", "trained_mlp"]
