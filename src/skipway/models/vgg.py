"""VGG: a straight line of 3x3 convolutions, the baseline without skips; with skips from the same convolutions.

Simonyan and Zisserman 2014 (arXiv:1409.1556). Parameter names, the order in which modules register and the way they
start are torchvision's, so that its weights load as they are and a seed builds the same network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect import Connection, Kind, Placement, Projection, Site, fill, resolve
from skipway.connect.layers import overwritable
from skipway.errors import SkipwayError, choose
from skipway.models.checks import additive, check_images, check_sizes, placement_of


@dataclass(frozen=True)
class VGGPlan:
    """The numbers that make one VGG: convolutions a stage, width of the first, norms or none, and the classifier.

    Stages double the width up to 8 times the first, and end in a pooling by 2. The "imagenet" head pools to 7 x 7 and
    has two layers of `hidden` units before the last; the "cifar" head is a mean over space and one layer.

    >>> VGGPlan(convolutions=(2, 2, 3, 3, 3)).depth
    16
    """

    convolutions: tuple[int, ...]
    width: int = 64
    batch_norm: bool = False
    head: Literal["imagenet", "cifar"] = "imagenet"
    hidden: int = 4096
    dropout: float = 0.5

    def __post_init__(self) -> None:
        choose("head", self.head, ("imagenet", "cifar"))
        if min(self.width, self.hidden, *(self.convolutions or (0,))) < 1:
            raise SkipwayError(
                f"a VGG needs a width, hidden units and convolutions of at least 1, not {self.width}, {self.hidden} "
                f"and {self.convolutions}"
            )
        if not 0 <= self.dropout < 1:
            raise SkipwayError(f"dropout lies in [0, 1), not {self.dropout}")

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: the convolutions and the classifier's layers."""
        return sum(self.convolutions) + (3 if self.head == "imagenet" else 1)

    @property
    def smallest_image(self) -> int:
        """The factor by which the net shrinks an image, and so the fewest pixels a side that it can take."""
        return 2 ** len(self.convolutions)


class VGGFeatures(nn.Module):
    """The convolutions, numbered as in a sequence with their norms, ReLUs and poolings; each but the first connected.

    The first is the stem: no skip passes it, and it is all that stands on the image itself.
    """

    def __init__(self, plan: VGGPlan, kind: Kind, in_channels: int) -> None:
        super().__init__()
        before = placement_of(kind).before
        # What the branches do first on their own is not done by the stem, but after the last of them.
        self.stem_relu, self.tail_relu = "relu" not in before, "relu" in before
        self.stages: list[list[str]] = []
        channels, at, index, last = in_channels, 0, 0, sum(plan.convolutions) - 1
        for stage, count in enumerate(plan.convolutions):
            out_channels = plan.width * 2 ** min(stage, 3)
            self.stages.append([])
            for _ in range(count):
                self.add_module(str(at), nn.Conv2d(channels, out_channels, 3, padding=1))
                if index == 0:
                    stem_norm = plan.batch_norm and "norm" not in before
                    self.stem_norm = str(at + 1) if stem_norm else None
                    if stem_norm:
                        self.add_module(str(at + 1), nn.BatchNorm2d(out_channels))
                else:
                    site = Site(channels, out_channels, index=index - 1, depth=max(1, last))
                    connection = additive(kind, site, "the layers of a VGG")
                    if plan.batch_norm:
                        connection.lend("norm_out", self, str(at + 1))
                    self.add_module(f"connection{at}", connection)
                self.stages[-1].append(str(at))
                channels, index = out_channels, index + 1
                at += 3 if plan.batch_norm else 2
            at += 1
        self.tail_norm = nn.BatchNorm2d(channels) if plan.batch_norm and "norm" in before else None
        self.out_channels = channels

    @property
    def connections(self) -> list[Connection]:
        """Those of all convolutions but the first, first to last."""
        return [module for module in self.children() if isinstance(module, Connection)]

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        stem = self.stages[0][0]
        for stage in self.stages:
            for at in stage:
                convolution = getattr(self, at)
                x = self._stem(convolution(x)) if at == stem else getattr(self, f"connection{at}")(x, convolution)
            x = F.max_pool2d(x, 2)
        if self.tail_norm is not None:
            x = self.tail_norm(x)
        return F.relu(x) if self.tail_relu else x

    def _stem(self, x: Tensor) -> Tensor:
        norm = None if self.stem_norm is None else getattr(self, self.stem_norm)
        x = x if norm is None else norm(x)
        return F.relu(x, inplace=overwritable(norm)) if self.stem_relu else x


class VGG(nn.Module):
    """A VGG by its plan; any additive connection may pass each convolution but the first.

    Images `[n, in_channels, h, w]` to logits `[n, num_classes]`; sides of at least `plan.smallest_image` pixels. Where
    a convolution changes the width a skip is projected. Raises SkipwayError for a connection that changes the width,
    and for an image that is too small or has other channels.

    >>> import torch
    >>> plan = VGGPlan(convolutions=(1, 1), width=4, head="cifar")
    >>> VGG(plan, skip="residual", num_classes=10)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, plan: VGGPlan, skip: str | Kind = "none", num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        self.plan, self.in_channels = plan, in_channels
        kind = fill(resolve(skip), placement=Placement(out=("norm",) if plan.batch_norm else (), after=("relu",)))
        kind = fill(kind, shortcut=Projection(norm=plan.batch_norm and "norm" not in placement_of(kind).before))
        self.features = VGGFeatures(plan, kind, in_channels)
        channels = self.features.out_channels
        if plan.head == "imagenet":
            self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
            self.classifier: nn.Module = nn.Sequential(
                nn.Linear(channels * 49, plan.hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(plan.dropout),
                nn.Linear(plan.hidden, plan.hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(plan.dropout),
                nn.Linear(plan.hidden, num_classes),
            )
        else:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.classifier = nn.Linear(channels, num_classes)
        self._initialize()

    @property
    def depth(self) -> int:
        """Weight layers on the longest path."""
        return self.plan.depth

    def _initialize(self) -> None:
        # Connections initialise their own parts (gates, reweighting), but for the projections, which stand in the
        # line of the convolutions; the order of the others is torchvision's.
        own = {id(module) for connection in self.features.connections for module in connection.modules()}
        for connection in self.features.connections:
            shortcut = connection.part("shortcut")
            own -= {id(module) for module in (shortcut.modules() if shortcut is not None else ())}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and id(module) not in own:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        check_images(x, self.in_channels, self.plan.smallest_image, "VGG")
        return self.classifier(self.avgpool(self.features(x)).flatten(1))
