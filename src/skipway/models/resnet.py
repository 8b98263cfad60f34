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

from skipway.connect import Kind, Projection, Site, Skip, SqueezeExcite, Stack, ZeroPad, fill, resolve
from skipway.connect.layers import overwritable
from skipway.errors import SkipwayError, choose
from skipway.models.checks import additive, check_images, check_sizes, placement_of

Block = Literal["basic", "bottleneck"]


@dataclass(frozen=True)
class ResNetPlan:
    """The numbers that make one ResNet: blocks a stage, width of the first stage, kind of block and stem.

    `shortcut` is what the published nets of this plan use where the shape changes ("zero-pad" is option A,
    "projection" option B), `placement` where their norms stand. `first_strides` puts a bottleneck's stride on its
    first convolution rather than on its 3x3. `inner` is the width of the first stage's bottlenecks where that is not
    `width` (Wide ResNet), and `groups` cuts their 3x3 convolutions into groups (ResNeXt). `stem_width` is what the
    stem puts out where that is not `width`, `dropout` how much is dropped before a branch's last convolution, and
    `squeeze` by how much every branch's squeeze-and-excitation squeezes, if it has one.

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
    inner: int | None = None
    groups: int = 1
    stem_width: int | None = None
    dropout: float = 0.0
    squeeze: int | None = None

    def __post_init__(self) -> None:
        choose("block", self.block, ("basic", "bottleneck"))
        choose("stem", self.stem, ("imagenet", "cifar"))
        choose("published shortcut", self.shortcut, ("zero-pad", "projection"))
        if self.width < 1 or min(self.blocks, default=0) < 1:
            raise SkipwayError(f"a ResNet needs a width and blocks of at least 1, not {self.width} and {self.blocks}")
        if self.block == "basic" and (self.inner is not None or self.groups != 1):
            raise SkipwayError(
                "inner and groups shape bottlenecks, and these blocks are basic: take block='bottleneck'"
            )
        if self.groups < 1 or self.bottleneck < 1 or self.bottleneck % self.groups:
            raise SkipwayError(
                f"{self.bottleneck} channels cannot be cut into {self.groups} groups: choose an inner width that the "
                "number of groups divides"
            )
        if not 0 <= self.dropout < 1:
            raise SkipwayError(f"dropout lies in [0, 1), not {self.dropout}")

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: the stem, the branches' convolutions, the classifier."""
        return sum(self.blocks) * (2 if self.block == "basic" else 3) + 2

    @property
    def bottleneck(self) -> int:
        """The width of the first stage's bottlenecks."""
        return self.width if self.inner is None else self.inner

    @property
    def smallest_image(self) -> int:
        """The factor by which the net shrinks an image, and so the fewest pixels a side that it can take."""
        return 2 ** (len(self.blocks) - 1) * (4 if self.stem == "imagenet" else 1)


class ResidualBlock(Skip):
    """Convolutions, each but the last followed by norm and ReLU, under a connection that holds the outer norms."""

    def __init__(self, site: Site, kind: Kind, convolutions: Sequence[nn.Conv2d], dropout: float = 0.0) -> None:
        nn.Module.__init__(self)
        connection = additive(kind, site, "a ResNet's stages")
        first = 1
        if "norm" in connection.placement.before:
            connection.lend("norm_before", self, "bn1")
            first = 2
        self.steps = [(f"conv{k}", f"bn{first + k - 1}") for k in range(1, len(convolutions))]
        for (conv, norm), convolution in zip(self.steps, convolutions, strict=False):
            self.add_module(conv, convolution)
            self.add_module(norm, nn.BatchNorm2d(convolution.out_channels))
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.last = f"conv{len(convolutions)}"
        self.add_module(self.last, convolutions[-1])
        connection.lend("norm_out", self, f"bn{first + len(self.steps)}")
        connection.lend("reweight", self, "se")
        self.connection = connection
        connection.lend("shortcut", self, "downsample")

    def branch(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        for conv, norm in self.steps:
            bn = getattr(self, norm)
            x = F.relu(bn(getattr(self, conv)(x)), inplace=overwritable(bn))
        if self.dropout is not None:
            x = self.dropout(x)
        return getattr(self, self.last)(x)


def basic_block(site: Site, kind: Kind, plan: ResNetPlan, stage: int) -> ResidualBlock:
    """Two 3x3 convolutions, the first with the stride."""
    first = nn.Conv2d(site.in_channels, site.out_channels, 3, stride=site.stride, padding=1, bias=False)
    second = nn.Conv2d(site.out_channels, site.out_channels, 3, padding=1, bias=False)
    return ResidualBlock(site, kind, [first, second], plan.dropout)


def bottleneck_block(site: Site, kind: Kind, plan: ResNetPlan, stage: int) -> ResidualBlock:
    """1x1 to the width of the bottleneck, 3x3 in groups, 1x1 back up."""
    inner = plan.bottleneck * 2**stage
    strides = (site.stride, 1) if plan.first_strides else (1, site.stride)
    reduce = nn.Conv2d(site.in_channels, inner, 1, stride=strides[0], bias=False)
    middle = nn.Conv2d(inner, inner, 3, stride=strides[1], padding=1, groups=plan.groups, bias=False)
    widen = nn.Conv2d(inner, site.out_channels, 1, bias=False)
    return ResidualBlock(site, kind, [reduce, middle, widen], plan.dropout)


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
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        self.plan, self.in_channels = plan, in_channels
        kind = self._published(resolve(skip))
        before = placement_of(kind).before
        # What the branches do first on their own is not done by the stem, but after the last of them.
        self.stem_relu, self.tail_relu = "relu" not in before, "relu" in before
        wide = plan.stem == "imagenet"
        channels = plan.width if plan.stem_width is None else plan.stem_width
        self.conv1 = nn.Conv2d(
            in_channels, channels, 7 if wide else 3, stride=2 if wide else 1, padding=3 if wide else 1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels) if "norm" not in before else None
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if wide else None
        index = 0
        make = basic_block if plan.block == "basic" else bottleneck_block
        for stage, n in enumerate(plan.blocks):
            out_channels = plan.width * 2**stage * (1 if plan.block == "basic" else 4)
            blocks: list[nn.Module] = []
            for k in range(n):
                stride = 2 if stage > 0 and k == 0 else 1
                blocks.append(make(Site(channels, out_channels, stride, index, sum(plan.blocks)), kind, plan, stage))
                channels, index = out_channels, index + 1
            self.add_module(f"layer{stage + 1}", Stack(blocks))
        self.bn = nn.BatchNorm2d(channels) if "norm" in before else None
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, num_classes)
        self._initialize(zero_init)

    def _published(self, kind: Kind) -> Kind:
        kind = fill(kind, placement=self.plan.placement)
        if self.plan.squeeze is not None:
            kind = fill(kind, reweight=SqueezeExcite(self.plan.squeeze))
        if self.plan.shortcut == "zero-pad":
            return fill(kind, shortcut=ZeroPad())
        return fill(kind, shortcut=Projection(norm="norm" not in placement_of(kind).before))

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
        own = {
            id(module)
            for block in self.blocks
            for part in (block.connection, block.connection.part("reweight"))
            if part is not None
            for module in part.modules()
        }
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
        small = ", or use a CIFAR ResNet such as resnet20" if self.plan.stem == "imagenet" else ""
        check_images(x, self.in_channels, self.plan.smallest_image, "ResNet", small)
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
