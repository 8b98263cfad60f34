"""Factors on the branch or on the shortcut: constant or learned, one number or one a channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.layers import along_channels, asked_for_again
from skipway.connect.site import Site
from skipway.errors import choose


@dataclass(frozen=True)
class Scale:
    """v -> a v, with a = initial * depth**depth_power at the start: learned or constant, per tensor or per channel.

    >>> Scale(initial=1.0, depth_power=-0.5).value(Site(8, 8, depth=16))
    0.25
    """

    initial: float = 1.0
    learned: bool = False
    per: Literal["tensor", "channel"] = "tensor"
    depth_power: float = 0.0

    def __post_init__(self) -> None:
        choose("scale's extent", self.per, ("tensor", "channel"))

    def value(self, site: Site) -> float:
        """What the factor starts from at a site."""
        return self.initial * site.depth**self.depth_power

    def build(self, site: Site) -> nn.Module:
        return Scaling(self.value(site), self.learned, site.out_channels if self.per == "channel" else None, site.dims)


@dataclass(frozen=True)
class Constant(Scale):
    """v -> initial * depth**depth_power * v, never learned: 0.1 to 0.3 in Inception-ResNet (arXiv:1602.07261).

    >>> Constant(0.2).learned
    False
    """


@dataclass(frozen=True)
class ReZero(Scale):
    """v -> a v, one learned a that starts at 0 (Bachlechner et al. 2020, arXiv:2003.04887).

    >>> ReZero().initial, ReZero().learned
    (0.0, True)
    """

    initial: float = 0.0
    learned: bool = True


@dataclass(frozen=True)
class SkipInit(Scale):
    """v -> a v, one learned a that starts at 0, for nets without norms (De & Smith 2020, arXiv:2002.10444).

    >>> SkipInit().initial
    0.0
    """

    initial: float = 0.0
    learned: bool = True


@dataclass(frozen=True)
class LayerScale(Scale):
    """v -> diag(a) v, one learned number a channel that starts small (Touvron et al. 2021, arXiv:2103.17239).

    >>> LayerScale(1e-5).build(Site(8, 8)).scale.shape
    torch.Size([8])
    """

    initial: float = 1e-5
    learned: bool = True
    per: Literal["tensor", "channel"] = "channel"


class Scaling(nn.Module):
    """Multiplies by `scale`: a parameter when learned, else a number."""

    def __init__(self, initial: float, learned: bool, channels: int | None, dims: int) -> None:
        super().__init__()
        self.dims, self.channels = dims, channels
        start = torch.full(() if channels is None else (channels,), initial)
        self.scale: float | nn.Parameter = nn.Parameter(start) if learned else initial

    def forward(self, x: Float[Tensor, "..."], fresh: bool = False) -> Float[Tensor, "..."]:
        """The product, in x itself if that is `fresh` and no backward pass will ask for it."""
        scale = self.scale
        if not isinstance(scale, Tensor):
            return x.mul_(scale) if fresh else x * scale
        # In the value's own precision, so that autocast's bfloat16 is not widened by a float32 factor.
        scale = scale.to(x.dtype)
        factor = scale if self.channels is None else along_channels(scale, self.dims)
        return x.mul_(factor) if fresh and not asked_for_again() else x * factor

    def extra_repr(self) -> str:
        return f"channels={self.channels}" if isinstance(self.scale, Tensor) else f"constant {self.scale:g}"
