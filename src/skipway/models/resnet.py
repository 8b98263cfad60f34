"""ResNet: stages of residual blocks, and its plain twin from the same blocks.

He, Zhang, Ren, Sun 2015 (arXiv:1512.03385); pre-activation: He et al. 2016 (arXiv:1603.05027). Parameter names and
the order in which modules register are torchvision's, so that its weights load as they are and a seed builds the same
network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect import Kind, Placement, Projection, Site, Skip, Stack, ZeroPad, fill, resolve
from skipway.connect.connection import PlacedConnection
from skipway.connect.layers import overwritable
from skipway.errors import SkipwayError, choose

Block = Literal["basic", "bottleneck"]


@dataclass(frozen=True)
class ResNetPlan:
    """The numbers that make one ResNet: blocks a stage, width of the first stage, kind of block and stem.

    `shortcut` is what the published nets of this plan use where the shape changes ("zero-pad" is option A,
    "projection" option B), `placement` where their norms stand. `first_strides` puts a bottleneck's stride on its
    first convolution rather than on its 3x3.

    >>> ResNetPlan(blocks=(9, 9, 9), width=16, stem="cifar", shortcut="zero-pad").depth
    56
    """

    blocks: tuple[int, ...]
    width: int
    block: Block = "basic"
    stem: Literal["imagenet", "cifar"] = "imagenet"
    shortcut: Literal["zero-pad", "projection"] = "projection"
    placement: str = "original"
    first_strides: bool = False

    def __post_init__(self) -> None:
        choose("block", self.block, ("basic", "bottleneck"))
        choose("stem", self.stem, ("imagenet", "cifar"))
        choose("published shortcut", self.shortcut, ("zero-pad", "projection"))
        if self.width < 1 or min(self.blocks, default=0) < 1:
            raise SkipwayError(f"a ResNet needs a width and blocks of at least 1, not {self.width} and {self.blocks}")

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: the stem, the branches' convolutions, the classifier."""
        return sum(self.blocks) * (2 if self.block == "basic" else 3) + 2

    @property
    def smallest_image(self) -> int:
        """The factor by which the net shrinks an image, and so the fewest pixels a side that it can take."""
        return 2 ** (len(self.blocks) - 1) * (4 if self.stem == "imagenet" else 1)


class ResidualBlock(Skip):
    """Convolutions, each but the last followed by norm and ReLU, under a connection that holds the outer norms."""

    def __init__(self, site: Site, kind: Kind, convolutions: Sequence[nn.Conv2d]) -> None:
        nn.Module.__init__(self)
        connection = kind.build(site)
        if not isinstance(connection, PlacedConnection) or connection.out_channels != site.out_channels:
            raise SkipwayError(
                f"a ResNet's stages keep their width, which {kind} does not: choose an additive connection, or a "
                "family made for it"
            )
        first = 1
        if "norm" in connection.placement.before:
            connection.lend("norm_before", self, "bn1")
            first = 2
        self.steps = [(f"conv{k}", f"bn{first + k - 1}") for k in range(1, len(convolutions))]
        for (conv, norm), convolution in zip(self.steps, convolutions, strict=False):
            self.add_module(conv, convolution)
            self.add_module(norm, nn.BatchNorm2d(convolution.out_channels))
        self.last = f"conv{len(convolutions)}"
        self.add_module(self.last, convolutions[-1])
        connection.lend("norm_out", self, f"bn{first + len(self.steps)}")
        self.connection = connection
        connection.lend("shortcut", self, "downsample")

    def branch(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        for conv, norm in self.steps:
            bn = getattr(self, norm)
            x = F.relu(bn(getattr(self, conv)(x)), inplace=overwritable(bn))
        return getattr(self, self.last)(x)


def basic_block(site: Site, kind: Kind, plan: ResNetPlan) -> ResidualBlock:
    """Two 3x3 convolutions, the first with the stride."""
    first = nn.Conv2d(site.in_channels, site.out_channels, 3, stride=site.stride, padding=1, bias=False)
    second = nn.Conv2d(site.out_channels, site.out_channels, 3, padding=1, bias=False)
    return ResidualBlock(site, kind, [first, second])


def bottleneck_block(site: Site, kind: Kind, plan: ResNetPlan) -> ResidualBlock:
    """1x1 down to a quarter of the width, 3x3, 1x1 back up."""
    inner = site.out_channels // 4
    strides = (site.stride, 1) if plan.first_strides else (1, site.stride)
    reduce = nn.Conv2d(site.in_channels, inner, 1, stride=strides[0], bias=False)
    middle = nn.Conv2d(inner, inner, 3, stride=strides[1], padding=1, bias=False)
    return ResidualBlock(site, kind, [reduce, middle, nn.Conv2d(inner, site.out_channels, 1, bias=False)])


class ResNet(nn.Module):
    """A ResNet by its plan; `skip="none"` leaves every skip out and keeps the branches.

    Images `[n, in_channels, h, w]` to logits `[n, num_classes]`; sides of at least `plan.smallest_image` pixels.
    `zero_init` starts the last norm of each branch at 0 (Goyal et al. 2017, arXiv:1706.02677). Raises SkipwayError
    for a connection that changes the width, and for an image that is too small or has other channels.

    >>> import torch
    >>> plan = ResNetPlan(blocks=(1, 1, 1), width=8, stem="cifar", shortcut="zero-pad")
    >>> ResNet(plan, skip="residual", num_classes=10)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        plan: ResNetPlan,
        skip: str | Kind = "residual",
        num_classes: int = 1000,
        in_channels: int = 3,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        if num_classes < 1 or in_channels < 1:
            raise SkipwayError(f"num_classes and in_channels must be at least 1, not {num_classes}, {in_channels}")
        self.plan, self.in_channels = plan, in_channels
        kind = self._published(resolve(skip))
        before = self._placement(kind).before
        # What the branches do first on their own is not done by the stem, but after the last of them.
        self.stem_relu, self.tail_relu = "relu" not in before, "relu" in before
        wide = plan.stem == "imagenet"
        self.conv1 = nn.Conv2d(
            in_channels, plan.width, 7 if wide else 3, stride=2 if wide else 1, padding=3 if wide else 1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(plan.width) if "norm" not in before else None
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if wide else None
        channels, index = plan.width, 0
        make = basic_block if plan.block == "basic" else bottleneck_block
        for stage, n in enumerate(plan.blocks):
            out_channels = plan.width * 2**stage * (1 if plan.block == "basic" else 4)
            blocks: list[nn.Module] = []
            for k in range(n):
                stride = 2 if stage > 0 and k == 0 else 1
                blocks.append(make(Site(channels, out_channels, stride, index, sum(plan.blocks)), kind, plan))
                channels, index = out_channels, index + 1
            self.add_module(f"layer{stage + 1}", Stack(blocks))
        self.bn = nn.BatchNorm2d(channels) if "norm" in before else None
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)
        self._initialize(zero_init)

    def _published(self, kind: Kind) -> Kind:
        kind = fill(kind, placement=self.plan.placement)
        if self.plan.shortcut == "zero-pad":
            return fill(kind, shortcut=ZeroPad())
        return fill(kind, shortcut=Projection(norm="norm" not in self._placement(kind).before))

    @staticmethod
    def _placement(kind: Kind) -> Placement:
        placement = getattr(kind, "placement", None) or Placement()
        return Placement.named(placement) if isinstance(placement, str) else placement

    @property
    def depth(self) -> int:
        """Weight layers on the longest path."""
        return self.plan.depth

    @property
    def blocks(self) -> list[ResidualBlock]:
        """All residual blocks, in order."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock)]

    def _initialize(self, zero_init: bool) -> None:
        # Connections initialise their own parts (gates, reweighting); the order of the others is torchvision's.
        own = {id(module) for block in self.blocks for module in block.connection.modules()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and id(module) not in own:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init:
            for block in self.blocks:
                norm = block.connection.part("norm_out")
                if norm is None:
                    raise SkipwayError("zero_init starts the norm at the end of each branch at 0, and here is none")
                nn.init.zeros_(norm.get_parameter("weight"))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        self._check(x)
        x = self.conv1(x)
        if self.bn1 is not None:
            x = self.bn1(x)
        if self.stem_relu:
            x = F.relu(x, inplace=overwritable(self.bn1))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for stage in range(len(self.plan.blocks)):
            x = getattr(self, f"layer{stage + 1}")(x)
        if self.bn is not None:
            x = self.bn(x)
        if self.tail_relu:
            x = F.relu(x, inplace=overwritable(self.bn))
        return self.fc(self.avgpool(x).flatten(1))

    def _check(self, x: Tensor) -> None:
        least = self.plan.smallest_image
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise SkipwayError(
                f"this ResNet takes images of shape [n, {self.in_channels}, h, w], not {list(x.shape)}: build it with "
                "in_channels= as your images have"
            )
        if min(x.shape[2:]) < least:
            raise SkipwayError(
                f"images are {x.shape[2]} x {x.shape[3]}; this ResNet shrinks them {least} times: give at least "
                f"{least} x {least} pixels"
                + (", or use a CIFAR ResNet such as resnet20" if self.plan.stem == "imagenet" else "")
            )
