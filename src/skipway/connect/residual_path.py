"""A shortcut that works on what it carries: a chain of residual convolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.layers import convolution
from skipway.connect.residual import Residual
from skipway.connect.shortcuts import Projection
from skipway.connect.site import Site
from skipway.errors import SkipwayError


@dataclass(frozen=True)
class ResidualPath:
    """S(x) = k times x -> relu(norm(conv3(x) + conv1(x))), which brings a shallow map nearer to a deep one.

    `steps` is k; None lets it fall with the site's index from its depth to 1, as the longest of a U-Net's skips bridges
    the most: 4, 3, 2, 1 on four levels. Ibtehaz & Rahman 2019 (MultiResUNet, arXiv:1902.04049). Raises SkipwayError
    for fewer than one step, and for tokens.

    >>> len(ResidualPath().build(Site(8, 8, index=1, depth=4)))
    3
    """

    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise SkipwayError(f"a residual path needs at least one step, not {self.steps}")

    def build(self, site: Site) -> nn.Module:
        if site.dims == 0:
            raise SkipwayError(
                "a residual path convolves over the neighbours of each position, which tokens (dims=0) do not have: "
                "use it on maps, or choose another shortcut"
            )
        within = replace(site, in_channels=site.out_channels, stride=1)
        steps = site.depth - site.index if self.steps is None else self.steps
        return nn.Sequential(*(PathStep(site if step == 0 else within) for step in range(steps)))


class PathStep(nn.Module):
    """x -> relu(norm(conv3(x) + conv1(x))): a 3x3 branch and a 1x1 shortcut, with norm and ReLU after their sum."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.conv = convolution(site.dims)(
            site.in_channels, site.out_channels, 3, stride=site.stride, padding=1, bias=False
        )
        shortcut = Projection(everywhere=True, norm=False)
        self.connection = Residual(shortcut=shortcut, placement="norm-after-sum").build(site)

    def forward(self, x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n d *thinned"]:
        return self.connection(x, self.conv)
