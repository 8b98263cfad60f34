"""What carries the stream past a branch: identity, projection, zero-padding.

He, Zhang, Ren, Sun 2015 (arXiv:1512.03385) name three options where a branch changes the shape of the stream:
A pads with zeros, B projects there, C projects everywhere. ResNet-D pools before it projects (He T. et al. 2018,
arXiv:1812.01187).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.layers import average_pool, normalization, pointwise
from skipway.connect.site import Site
from skipway.errors import SkipwayError, choose


@runtime_checkable
class Part(Protocol):
    """A value that can make its module for one site: every field of a connection that is more than a number."""

    def build(self, site: Site) -> nn.Module: ...


@dataclass(frozen=True)
class Identity:
    """S(x) = x: no parameters, the clearest path.

    Raises SkipwayError at a site where the branch changes the shape.

    >>> Identity().build(Site(8, 8))
    Identity()
    """

    def build(self, site: Site) -> nn.Module:
        if not site.same_shape:
            raise SkipwayError(
                f"an identity shortcut cannot carry {site.in_channels} channels into {site.out_channels} at stride "
                f"{site.stride}: use shortcut=Projection() or shortcut=ZeroPad()"
            )
        return nn.Identity()


@dataclass(frozen=True)
class Projection:
    """S(x) = norm(W x), W a 1x1 convolution: option B where the shape changes, option C with `everywhere`.

    `pool` averages over the stride before W, so that no pixel is dropped (ResNet-D); `norm=False` leaves W bare, as
    pre-activation nets do; tokens are projected by a bare linear map. Identity where nothing changes.

    >>> Projection().build(Site(8, 16, stride=2))[0].stride
    (2, 2)
    """

    everywhere: bool = False
    norm: bool = True
    pool: bool = False

    def build(self, site: Site) -> nn.Module:
        if site.same_shape and not self.everywhere:
            return nn.Identity()
        pools = self.pool and site.stride > 1
        layers: list[nn.Module] = [average_pool(site)] if pools else []
        layers.append(pointwise(site.in_channels, site.out_channels, site.dims, 1 if pools else site.stride))
        if self.norm and site.dims:
            layers.append(normalization(None, site.out_channels, site.dims))
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class ZeroPad:
    """S(x) = x, thinned by the stride, with zeros for the new channels: option A, no parameters.

    `spatial` is "subsample" (every stride-th pixel) or "average"; `channels` puts the zeros behind ("append", He
    2015) or half on either side ("split"). Nets trained with one layout do not run with the other.

    Raises SkipwayError at a site where channels get fewer.

    >>> ZeroPad(channels="split").build(Site(16, 32, stride=2))
    ZeroPadding(stride=2, before=8, after=8, spatial='subsample')
    """

    spatial: Literal["subsample", "average"] = "subsample"
    channels: Literal["append", "split"] = "append"

    def __post_init__(self) -> None:
        choose("spatial thinning", self.spatial, ("subsample", "average"))
        choose("channel layout", self.channels, ("append", "split"))

    def build(self, site: Site) -> nn.Module:
        if site.same_shape:
            return nn.Identity()
        new = site.out_channels - site.in_channels
        if new < 0:
            raise SkipwayError(
                f"zero-padding cannot shrink {site.in_channels} channels to {site.out_channels}: "
                "use shortcut=Projection()"
            )
        return ZeroPadding(site, before=new // 2 if self.channels == "split" else 0, spatial=self.spatial)


class ZeroPadding(nn.Module):
    """Thins a map by the stride and pads its channels with zeros; the gradient of what is kept flows through."""

    def __init__(self, site: Site, before: int, spatial: str) -> None:
        super().__init__()
        self.stride, self.dims, self.spatial = site.stride, site.dims, spatial
        self.before, self.after = before, site.out_channels - site.in_channels - before
        self.pool = average_pool(site) if spatial == "average" and site.stride > 1 else None

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.pool is not None:
            x = self.pool(x)
        elif self.stride > 1:
            x = x[(..., *(slice(None, None, self.stride),) * self.dims)]
        if self.before or self.after:
            x = F.pad(x, (0, 0) * self.dims + (self.before, self.after))
        return x

    def extra_repr(self) -> str:
        return f"stride={self.stride}, before={self.before}, after={self.after}, spatial={self.spatial!r}"

    def __repr__(self) -> str:
        return f"ZeroPadding({self.extra_repr()})"
