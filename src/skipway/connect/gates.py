"""Learned weights between shortcut and branch, and the reweighting of a branch's channels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.layers import convolution, pointwise, spatial_mean
from skipway.connect.site import Site
from skipway.errors import SkipwayError, choose


@dataclass(frozen=True)
class Gate:
    """y = g v + (1 - g) S(x), or y = v + (1 - g) S(x) with weighs="shortcut"; g = sigmoid(W r + bias).

    `reads` says what r is: the "stream" x or the "branch" output v; `pooled` takes r's mean over space first, so that
    there is one g a channel. `kernel` is how many positions a side W sees of a map; None is what the model family
    publishes, else 1. A negative bias starts near the shortcut.

    >>> Gate(bias=-6.0, weighs="shortcut").pooled
    False
    """

    bias: float = -2.0
    weighs: Literal["both", "shortcut"] = "both"
    reads: Literal["stream", "branch"] = "stream"
    pooled: bool = False
    kernel: int | None = None

    def __post_init__(self) -> None:
        choose("side that a gate weighs", self.weighs, ("both", "shortcut"))
        choose("source that a gate reads", self.reads, ("stream", "branch"))
        if self.kernel is not None and (self.kernel < 1 or self.kernel % 2 == 0):
            raise SkipwayError(f"a gate's kernel is an odd number of positions, not {self.kernel}")
        if self.pooled and self.kernel not in (None, 1):
            raise SkipwayError(f"a pooled gate sees one position, the mean, and no kernel of {self.kernel}: drop one")

    def of_kernel(self, kernel: int) -> Gate:
        """The same gate with that kernel, where its own was left open and it sees positions."""
        return self if self.pooled or self.kernel is not None else replace(self, kernel=kernel)

    def build(self, site: Site) -> nn.Module:
        return Gating(self, site)


@dataclass(frozen=True)
class Highway(Gate):
    """y = T(x) F(x) + (1 - T(x)) x, T(x) = sigmoid(W x + bias) (Srivastava et al. 2015, arXiv:1505.00387).

    The exclusive gate of He et al. 2016 (arXiv:1603.05027) is the same equation; its best bias was -6.

    >>> Highway(bias=-6.0).weighs
    'both'
    """


@dataclass(frozen=True)
class ShortcutGate(Gate):
    """y = F(x) + (1 - g(x)) x, the shortcut-only gate of He et al. 2016 (arXiv:1603.05027, table 1).

    >>> ShortcutGate().weighs
    'shortcut'
    """

    bias: float = -6.0
    weighs: Literal["both", "shortcut"] = "shortcut"


@dataclass(frozen=True)
class PooledGate(Gate):
    """y = a F(x) + (1 - a) x, a = sigmoid(W mean(F(x)) + bias): one weight a channel, read from the branch.

    >>> PooledGate().reads
    'branch'
    """

    bias: float = 0.0
    reads: Literal["stream", "branch"] = "branch"
    pooled: bool = True


class Gating(nn.Module):
    """Computes a gate and meets shortcut and branch under it."""

    def __init__(self, gate: Gate, site: Site) -> None:
        super().__init__()
        self.gate, self.dims = gate, site.dims
        reads_stream = gate.reads == "stream"
        channels = site.in_channels if reads_stream else site.out_channels
        stride = site.stride if reads_stream and not gate.pooled else 1
        kernel = 1 if gate.kernel is None else gate.kernel
        if kernel > 1 and site.dims == 0:
            raise SkipwayError(f"a gate's kernel of {kernel} is for maps, and tokens have no neighbours: leave it out")
        self.weight = (
            pointwise(channels, site.out_channels, site.dims, stride, bias=True)
            if kernel == 1
            else convolution(site.dims)(channels, site.out_channels, kernel, stride, padding=kernel // 2)
        )
        nn.init.constant_(self.weight.get_parameter("bias"), gate.bias)

    def forward(
        self, stream: Float[Tensor, "..."], shortcut: Float[Tensor, "*s"], value: Float[Tensor, "*s"]
    ) -> Float[Tensor, "*s"]:
        source = stream if self.gate.reads == "stream" else value
        openness = torch.sigmoid(self.weight(spatial_mean(source, self.dims) if self.gate.pooled else source))
        if self.gate.weighs == "shortcut":
            return value + (1 - openness) * shortcut
        return shortcut + openness * (value - shortcut)


@dataclass(frozen=True)
class SqueezeExcite:
    """v -> v * sigmoid(W2 relu(W1 mean(v))): the branch's channels reweighted (Hu et al. 2017, arXiv:1709.01507).

    `reduction` is how many times fewer channels W1 keeps; at least one is kept.

    >>> SqueezeExcite(reduction=4).build(Site(16, 16)).fc1.out_channels
    4
    """

    reduction: int = 16

    def __post_init__(self) -> None:
        if self.reduction < 1:
            raise SkipwayError(f"reduction must be at least 1, not {self.reduction}")

    def build(self, site: Site) -> nn.Module:
        return SqueezeExcitation(site.out_channels, max(1, site.out_channels // self.reduction), site.dims)


class SqueezeExcitation(nn.Module):
    """Squeezes a map to one number a channel, and weighs the channels by what a small net makes of them."""

    def __init__(self, channels: int, squeezed: int, dims: int) -> None:
        super().__init__()
        self.dims = dims
        self.fc1 = pointwise(channels, squeezed, dims, bias=True)
        self.fc2 = pointwise(squeezed, channels, dims, bias=True)

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(spatial_mean(x, self.dims)))))
