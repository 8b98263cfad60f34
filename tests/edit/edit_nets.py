"""Small networks with skips, and the comparisons that the tests of editing share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Merge = Callable[[Tensor, nn.Module, nn.Module], Tensor]


class Merging(nn.Module):
    """Two linear maps, and a function that joins them to the input."""

    def __init__(self, merge: Merge):
        super().__init__()
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)
        self.merge = merge

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(x, self.f, self.g)


class Block(nn.Module):
    """tanh(x + dropout(W x))."""

    def __init__(self, drop: float = 0.0):
        super().__init__()
        self.f, self.drop = nn.Linear(4, 4), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + self.drop(self.f(x)))


class Chain(nn.Module):
    """Blocks one after another, each run again in the backward pass if `reentrant` says how."""

    def __init__(self, n: int = 3, drop: float = 0.0, reentrant: bool | None = None):
        super().__init__()
        self.blocks = nn.ModuleList([Block(drop) for _ in range(n)])
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return x


class Repeated(nn.Module):
    """One block, run several times."""

    def __init__(self, n: int = 3):
        super().__init__()
        self.block, self.n = Block(), n

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.n):
            x = self.block(x)
        return x


class ConvBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), as torchvision writes it: in place, one ReLU for both."""

    def __init__(self, c: int, out: int, stride: int = 1):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(c, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or c != out:
            self.downsample = nn.Sequential(nn.Conv2d(c, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def branch(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.branch(x)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ConvNet(nn.Module):
    """Four convolutional blocks, the third of which halves the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(ConvBlock(4, 4), ConvBlock(4, 4), ConvBlock(4, 8, 2), ConvBlock(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class UNet(nn.Module):
    """One level down and up, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept = F.relu(self.down(x))
        deep = self.up(F.relu(self.deep(F.max_pool2d(kept, 2))))
        return self.last(torch.cat([kept, deep], 1))


def equal(one: Any, other: Any, tolerance: float = 1e-6) -> None:
    """Compare tensors, or lists of tensors and None."""
    if isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            equal(mine, theirs, tolerance)
    elif one is None or other is None:
        assert one is None
        assert other is None
    else:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def pulled(model: nn.Module, *inputs: Tensor, seed: int = 0) -> list[Any]:
    """The output and the gradients by the inputs and the parameters of the model."""
    model.zero_grad()
    torch.manual_seed(seed)
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = model(*leaves)
    output.square().sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves), *(p.grad for p in model.parameters())]


def ran(model: nn.Module, run: Callable[[], Any]) -> list[str]:
    """The modules without children of the model's own that computed something in a run, in order."""
    found: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if not [child for child, _ in module.named_children() if not child.startswith("connection")]:

            def note(_: Any, __: Any, result: Any, name: str = name) -> None:
                if not result.is_meta:
                    found.append(name)

            handles.append(module.register_forward_hook(note))
    run()
    for handle in handles:
        handle.remove()
    return found
