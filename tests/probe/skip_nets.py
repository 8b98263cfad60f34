"""Networks with skips of every kind, small, for the tests of what probes do at skips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Written(nn.Module):
    """A module whose forward pass is the given function, and whose children are the given modules."""

    def __init__(self, forward: Callable[..., Any], **children: nn.Module):
        super().__init__()
        self._function = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(self, *args, **kwargs)


def branch(width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


def chain(n: int, width: int = 6) -> nn.Module:
    """n residual blocks with activations between them."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.softplus(x + block(x))
        return self.head(x)

    blocks = nn.ModuleList([branch(width) for _ in range(n)])
    return Written(forward, stem=nn.Linear(5, width), blocks=blocks, head=nn.Linear(width, 3))


def in_place() -> nn.Module:
    """Blocks that add to the branch in place, then activate in place; the last one writes to the stream."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks[:-1]:
            out = block(x)
            out += x
            x = F.relu(out, inplace=True)
        # Autograd needs none of what is written over: neither a sum's result, nor what was multiplied by a number.
        x = self.middle(x)
        x.add_(self.blocks[-1](0.5 * x))
        return self.head(x)

    return Written(
        forward, stem=nn.Linear(5, 6), blocks=nn.ModuleList([branch() for _ in range(3)]), middle=nn.Linear(6, 6),
        head=nn.Linear(6, 3),
    )  # fmt: skip


def shared() -> nn.Module:
    """One branch that is called in three blocks."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(x)

    return Written(forward, stem=nn.Linear(5, 6), block=branch(), head=nn.Linear(6, 3))


def checkpointed(reentrant: bool) -> nn.Module:
    """Blocks that are computed again in the backward pass, skip and all."""

    def block_of(block: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: x + block(x)

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = checkpoint(block_of(block), x, use_reentrant=reentrant)
        return self.head(x)

    return Written(
        forward, stem=nn.Linear(5, 6), blocks=nn.ModuleList([branch() for _ in range(3)]), head=nn.Linear(6, 3)
    )


def multi_branch() -> nn.Module:
    """x + f(x) + g(x), then a highway gate, then a scaled branch."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.f(x) + self.g(x)
        gate = torch.sigmoid(self.gate(x))
        x = gate * self.h(x) + (1 - gate) * x
        return self.head(x + 0.5 * self.k(x))

    return Written(
        forward, stem=nn.Linear(5, 6), f=branch(), g=branch(), h=branch(), k=branch(), gate=nn.Linear(6, 6),
        head=nn.Linear(6, 3),
    )  # fmt: skip


def nested() -> nn.Module:
    """A skip around two others, and a concatenation of what came in with what came out."""

    def forward(self: Any, x: Tensor) -> Tensor:
        start = x = self.stem(x)
        inner = self.down(x)
        inner = inner + self.f(inner)
        inner = inner + self.g(inner)
        x = x + self.up(inner)
        return self.head(torch.cat([start, x], -1))

    return Written(
        forward, stem=nn.Linear(5, 6), down=nn.Linear(6, 6), f=branch(), g=branch(), up=nn.Linear(6, 6),
        head=nn.Linear(12, 3),
    )  # fmt: skip


def projected() -> nn.Module:
    """A convolutional net in training form: BatchNorm, a projection where the shape changes, in-place sums."""

    class Block(nn.Module):
        def __init__(self, c: int, out: int, stride: int):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(c, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
            self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
            self.shortcut = nn.Conv2d(c, out, 1, stride) if c != out else None

        def forward(self, x: Tensor) -> Tensor:
            out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
            out += x if self.shortcut is None else self.shortcut(x)
            return F.relu(out, inplace=True)

    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), Block(4, 4, 1), Block(4, 6, 2), Block(6, 6, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


def dense() -> nn.Module:
    """Every layer reads what all before it gave."""

    def forward(self: Any, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for layer in self.layers:
            maps.append(torch.tanh(layer(torch.cat(maps, -1))))
        return self.head(torch.cat(maps, -1))

    layers = nn.ModuleList([nn.Linear(6 + 2 * k, 2) for k in range(3)])
    return Written(forward, stem=nn.Linear(5, 6), layers=layers, head=nn.Linear(12, 3))


def transformer(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, norm_first=norm_first)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x.unsqueeze(1).expand(-1, 4, -1) + self.position.weight)).mean(1))

    return Written(
        forward, stem=nn.Linear(5, 6), position=nn.Embedding(4, 5), head=nn.Linear(6, 3),
        body=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: chain(4),
    "in place": in_place,
    "shared branch": shared,
    "checkpointed, reentrant": lambda: checkpointed(True),
    "checkpointed": lambda: checkpointed(False),
    "multi-branch and gates": multi_branch,
    "nested": nested,
    "projected": projected,
    "dense": dense,
    "pre-norm": lambda: transformer(True),
    "post-norm": lambda: transformer(False),
}


def built(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network in double precision, and a batch for it."""
    torch.manual_seed(0)
    net = NETS[name]().double()
    shape = (4, 2, 6, 6) if name == "projected" else (4, 5)
    return net, (torch.randn(shape, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
