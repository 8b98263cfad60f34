"""What DenseNets are made of: dense layers, blocks of them, and the transitions between.

Huang, Liu, van der Maaten, Weinberger 2016 (arXiv:1608.06993), under torchvision's names.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect import Kind, Site, Skip, Stack
from skipway.connect.connection import PlacedConnection
from skipway.connect.layers import overwritable
from skipway.errors import SkipwayError


class DenseLayer(Skip):
    """norm-ReLU-conv1x1-norm-ReLU-conv3x3 under a connection; without a bottleneck norm-ReLU-conv3x3.

    Under a connection with a placement, its norms take the place of the first.
    """

    def __init__(self, site: Site, kind: Kind, growth: int, bottleneck: int, dropout: float) -> None:
        nn.Module.__init__(self)
        connection = kind.build(site)
        wanted = site.in_channels + growth
        if connection.out_channels != wanted:
            raise SkipwayError(
                f"a DenseNet's stream grows by {growth} channels a layer, here from {site.in_channels} to {wanted}, "
                f"and {kind} makes it {connection.out_channels}: choose 'dense', or an additive connection"
            )
        self.dropout = dropout
        self.placed = isinstance(connection, PlacedConnection)
        c, out, inner = site.in_channels, site.out_channels, bottleneck * growth
        if self.placed:
            connection.lend("norm_before", self, "norm1")
        else:
            self.norm1 = nn.BatchNorm2d(c)
        if inner:
            self.conv1 = nn.Conv2d(c, inner, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(inner)
            self.conv2 = nn.Conv2d(inner, out, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(c, out, 3, padding=1, bias=False)
            # As empty places, which a connection may still fill with a norm of its own.
            self.register_module("norm2", None)
            self.register_module("conv2", None)
        if self.placed:
            connection.lend("norm_out", self, "norm3" if inner else "norm2")
        self.connection = connection

    def branch(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        if not self.placed:
            x = self.norm1(x)
            x = F.relu(x, inplace=overwritable(self.norm1))
        x = self.conv1(x)
        if self.conv2 is not None:
            assert self.norm2 is not None
            x = self.norm2(x)
            x = self.conv2(F.relu(x, inplace=overwritable(self.norm2)))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class DenseBlock(Stack):
    """A stage of dense layers, under torchvision's names."""

    def __init__(self, layers: list[DenseLayer]) -> None:
        nn.Module.__init__(self)
        for number, layer in enumerate(layers, 1):
            self.add_module(f"denselayer{number}", layer)
        self.out_channels = layers[-1].connection.out_channels


class Transition(nn.Sequential):
    """norm, ReLU, 1x1 convolution, mean over 2 x 2 pixels: between two blocks."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(
            OrderedDict(
                norm=nn.BatchNorm2d(channels),
                relu=nn.ReLU(inplace=True),
                conv=nn.Conv2d(channels, out_channels, 1, bias=False),
                pool=nn.AvgPool2d(2),
            )
        )
