"""What of the shortcut to attend to, told by the branch: the attention gate of U-Nets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.layers import pointwise
from skipway.connect.site import Site
from skipway.errors import SkipwayError


@dataclass(frozen=True)
class AttentionGate:
    """S -> a S, a = sigmoid(psi(relu(theta S + phi v))): one weight a position, read from shortcut S and branch v.

    On a U-Net's long skip, v is the decoder's upsampled map, which says where in the encoder's map to look. theta and
    phi map the channels of each position to `channels` (None: half of the shortcut's), psi maps those to one number.
    It goes with either merge. Oktay et al. 2018 (arXiv:1804.03999), with the gating signal at the shortcut's own
    resolution. Raises SkipwayError for fewer than one channel.

    >>> AttentionGate().build(Site(16, 8)).psi.in_channels
    8
    """

    channels: int | None = None

    def __post_init__(self) -> None:
        if self.channels is not None and self.channels < 1:
            raise SkipwayError(f"an attention gate needs at least one channel between, not {self.channels}")

    def build(self, site: Site) -> nn.Module:
        return AttentionGating(site, max(1, site.in_channels // 2) if self.channels is None else self.channels)


class AttentionGating(nn.Module):
    """Weighs the positions of a shortcut of the site's in_channels by a branch's output of its out_channels."""

    def __init__(self, site: Site, channels: int) -> None:
        super().__init__()
        self.theta = pointwise(site.in_channels, channels, site.dims)
        self.phi = pointwise(site.out_channels, channels, site.dims, bias=True)
        self.psi = pointwise(channels, 1, site.dims, bias=True)

    def forward(self, shortcut: Float[Tensor, "*s"], value: Float[Tensor, "*v"]) -> Float[Tensor, "*s"]:
        return torch.sigmoid(self.psi(torch.relu(self.theta(shortcut) + self.phi(value)))) * shortcut
