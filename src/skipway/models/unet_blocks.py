"""What a U-Net's levels are made of: blocks of convolutions, the ways down and up, and the head.

The names of parameters are those of milesial/Pytorch-UNet, whose weights load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect import Connection, Kind, Placement, Plain, Projection, Site, Skip, Stack, fill, resolve
from skipway.connect.layers import convolution, normalization, overwritable, pointwise
from skipway.errors import SkipwayError
from skipway.models.checks import additive
from skipway.models.unet_plan import INTERPOLATION, UNetPlan


def short_connection(plan: UNetPlan, short_skip: str | Kind | None) -> Kind:
    """The connection inside a plan's blocks, with what it leaves open as the kind of block has it."""
    if plan.block == "double":
        if short_skip is not None:
            raise SkipwayError("double convolutions have no short skip: build the U-Net with block='residual'")
        short_skip = Plain()
    kind = resolve({"dense": "dense"}.get(plan.block, "residual") if short_skip is None else short_skip)
    if plan.block == "dense":
        return kind
    if plan.norm == "none":
        placement = Placement(before=("relu",)) if plan.block == "preactivation" else Placement(after=("relu",))
    elif plan.block == "preactivation":
        placement = Placement(before=("norm", "relu"), norm=plan.norm)
    else:
        placement = Placement(out=("norm",), after=("relu",), norm=plan.norm)
    return fill(kind, placement=placement, shortcut=Projection(norm=plan.norm == "batch" and not placement.before))


def norm_of(plan: UNetPlan, channels: int) -> nn.Module | None:
    """The norm behind a convolution, if the plan has norms."""
    return None if plan.norm == "none" else normalization(plan.norm, channels, plan.dims)


def convolve(plan: UNetPlan, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Module:
    """A convolution of a plan; what a norm follows needs no bias."""
    padding = 0 if plan.valid else kernel_size // 2
    bias = plan.norm == "none"
    return convolution(plan.dims)(in_channels, out_channels, kernel_size, padding=padding, bias=bias)


def rectified(x: Tensor, norm: nn.Module | None) -> Tensor:
    """relu(norm(x)), or relu(x) without a norm; of what a norm put out nothing else is kept."""
    if norm is None:
        return F.relu(x)
    return F.relu(norm(x), inplace=overwritable(norm))


class DoubleConvolution(Skip):
    """conv3(relu(norm(conv3(x)))) under a connection that holds the outer norms; plain, it is conv-norm-relu twice."""

    def __init__(self, plan: UNetPlan, kind: Kind, site: Site, middle: int) -> None:
        nn.Module.__init__(self)
        self.connection = additive(kind, site, "a U-Net's blocks")
        self.double_conv = nn.Module()
        self.double_conv.add_module("0", convolve(plan, site.in_channels, middle))
        norm = norm_of(plan, middle)
        if norm is not None:
            self.double_conv.add_module("1", norm)
        self.double_conv.add_module("3", convolve(plan, middle, site.out_channels))
        self.connection.lend("norm_out", self.double_conv, "4")

    def branch(self, x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n d *rest"]:
        steps = self.double_conv._modules
        first, second = steps["0"], steps["3"]
        assert first is not None
        assert second is not None
        return second(rectified(first(x), steps.get("1")))


class DenseConvolutions(nn.Module):
    """Two conv-norm-relu layers that each read all before them, and a 1x1 that brings their maps to the width.

    After the dense blocks of Jégou et al. 2016 (arXiv:1611.09326), each layer half as wide as the block.
    """

    def __init__(self, plan: UNetPlan, kind: Kind, site: Site, middle: int) -> None:
        super().__init__()
        channels, growth = site.in_channels, max(1, site.out_channels // 2)
        layers: list[nn.Module] = []
        for k in range(2):
            norm = norm_of(plan, growth)
            steps = [convolve(plan, channels, growth), *([] if norm is None else [norm]), nn.ReLU()]
            index, depth = 2 * site.index + k, 2 * site.depth
            layer = Skip(nn.Sequential(*steps), kind, channels, growth, dims=plan.dims, index=index, depth=depth)
            layers.append(layer)
            channels = layer.connection.out_channels
        self.layers = Stack(layers)
        self.fuse = convolve(plan, channels, site.out_channels, kernel_size=1)
        self.norm = norm_of(plan, site.out_channels)

    def forward(self, x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n d *space"]:
        return rectified(self.fuse(self.layers(x)), self.norm)


class Blocks:
    """Makes the blocks of a plan in turn, each at its site."""

    def __init__(self, plan: UNetPlan, kind: Kind) -> None:
        self.plan, self.kind, self.made = plan, kind, 0

    def make(self, in_channels: int, out_channels: int, middle: int) -> nn.Module:
        plan = self.plan
        site = Site(in_channels, out_channels, index=self.made, depth=2 * plan.levels + 1, dims=plan.dims)
        self.made += 1
        kind_of_block = DenseConvolutions if plan.block == "dense" else DoubleConvolution
        return kind_of_block(plan, self.kind, site, middle)


class Down(nn.Module):
    """Half the size, then a block."""

    def __init__(self, plan: UNetPlan, block: nn.Module) -> None:
        super().__init__()
        pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[plan.dims]
        self.maxpool_conv = nn.Sequential(pool(2), block)

    def forward(self, x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n d *half"]:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Twice the size, met with the encoder's map under the level's connection, then a block."""

    def __init__(self, plan: UNetPlan, level: int, kind: Kind, blocks: Blocks) -> None:
        super().__init__()
        self.level, self.crops = level, plan.crops
        encoder, value = plan.widths[level], plan.upsampled_width(level)
        self.up = _upsampling(plan, level)
        connection: Connection = kind.build(Site(encoder, value, index=level, depth=plan.levels, dims=plan.dims))
        self.conv = blocks.make(connection.out_channels, plan.decoder_width(level), middle=encoder)
        self.connection = connection

    def forward(
        self, below: Float[Tensor, "n b *half"], x: Float[Tensor, "n c *space"], read: Float[Tensor, "n c *space"]
    ) -> Float[Tensor, "n d *rest"]:
        return self.conv(self._merge(below, x, read))

    def _merge(self, below: Tensor, x: Tensor, read: Tensor) -> Tensor:
        value = self.up(below)
        if value.shape[2:] != x.shape[2:]:
            if self.crops:
                bare = read is x
                x = centre(x, value.shape[2:])
                read = x if bare else centre(read, value.shape[2:])
            else:
                value = _padded(value, x.shape[2:])
        return self.connection.close(self.connection.write(self.connection.open(x), value, read))

    def without(self, x: Float[Tensor, "n c *space"], sizes: Sequence[int]) -> Float[Tensor, "n d *rest"]:
        """The decoder's map where all that lies below was left out, and what would have come up has these sizes."""
        stream: Any = self.connection.open(centre(x, sizes) if self.crops else x)
        return self.conv(self.connection.close(self.connection.without(stream)))


class Head(nn.Module):
    """A 1x1 convolution to the classes; behind pre-activation blocks norm and ReLU first."""

    def __init__(self, plan: UNetPlan, channels: int, num_classes: int, activates: bool) -> None:
        super().__init__()
        self.conv = pointwise(channels, num_classes, plan.dims, bias=True)
        self.norm = norm_of(plan, channels) if activates else None
        self.activates = activates

    def forward(self, x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n k *space"]:
        return self.conv(rectified(x, self.norm) if self.activates else x)


def _upsampling(plan: UNetPlan, level: int) -> nn.Module:
    if plan.up == "transposed":
        transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[plan.dims]
        return transposed(plan.widths[level + 1], plan.widths[level], kernel_size=2, stride=2)
    if plan.up == "nearest":
        return nn.Upsample(scale_factor=2, mode="nearest")
    return nn.Upsample(scale_factor=2, mode=INTERPOLATION[plan.dims], align_corners=True)


def centre(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The middle of a map, of these sizes."""
    for axis, size in enumerate(sizes, 2):
        x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
    return x


def _padded(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """A map with zeros around it, so that it has these sizes; the odd one lies behind."""
    around: list[int] = []
    for axis, size in reversed(list(enumerate(sizes, 2))):
        missing = size - x.shape[axis]
        around += [missing // 2, missing - missing // 2]
    return F.pad(x, around)
