"""DenseNet: blocks in which every layer reads all maps before it, and its like with other connections.

Huang, Liu, van der Maaten, Weinberger 2016 (arXiv:1608.06993). Parameter names and the order in which modules register
are torchvision's, so that its weights load as they are and a seed builds the same network.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect import Dense, Kind, Residual, Site, ZeroPad, fill, resolve
from skipway.connect.layers import overwritable
from skipway.errors import SkipwayError, choose
from skipway.models.densenet_layers import DenseBlock, DenseLayer, Transition
from skipway.models.densenet_routes import MEMORY, Memory, alone, stem_together, together


@dataclass(frozen=True)
class DenseNetPlan:
    """The numbers that make one DenseNet: layers a block, growth k (channels that each adds), width of the stem.

    `bottleneck` is how many times k a 1x1 convolution puts out before the 3x3 one (0: there is none); a transition
    keeps `compression` of the channels.

    >>> DenseNetPlan(blocks=(16, 16, 16), growth=12, width=24, stem="cifar").depth
    100
    """

    blocks: tuple[int, ...]
    growth: int
    width: int
    bottleneck: int = 4
    compression: float = 0.5
    stem: Literal["imagenet", "cifar"] = "imagenet"

    def __post_init__(self) -> None:
        choose("stem", self.stem, ("imagenet", "cifar"))
        if min((self.growth, self.width, *self.blocks), default=0) < 1 or not self.blocks or self.bottleneck < 0:
            raise SkipwayError(
                f"a DenseNet needs growth, width and blocks of at least 1 and a bottleneck of at least 0, not "
                f"{self.growth}, {self.width}, {self.blocks} and {self.bottleneck}"
            )
        if not 0 < self.compression <= 1:
            raise SkipwayError(f"compression is what a transition keeps, above 0 and at most 1, not {self.compression}")

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: the stem, the layers' convolutions, the transitions, the classifier."""
        return sum(self.blocks) * (2 if self.bottleneck else 1) + len(self.blocks) + 1

    @property
    def smallest_image(self) -> int:
        """The factor by which the net shrinks an image, and so the fewest pixels a side that it can take."""
        return 2 ** (len(self.blocks) - 1) * (4 if self.stem == "imagenet" else 1)


class Features(nn.Sequential):
    """The stem, blocks with transitions between them, and the last norm, in the order they run.

    A dense block and the norm behind it run as one where that is possible (see `DenseNet`), and so do the norm, ReLU
    and pooling of a stem.
    """

    memory: Memory = "shared"

    def forward(self, input: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        x = input
        if self.memory != "plain" and x.ndim == 4 and alone(x):
            # A stem of this layout hands on what the buffer holds, and runs faster in it.
            x = x.contiguous(memory_format=torch.channels_last)
        modules, k = list(self), 0
        while k < len(modules):
            module = modules[k]
            if isinstance(module, DenseBlock):
                behind = modules[k + 1]
                joined = together(module, behind, x, self.memory)
                x, k = behind(module(x)) if joined is None else joined, k + 2
                continue
            joined = stem_together(modules[k : k + 3], x, self.memory)
            x, k = (module(x), k + 1) if joined is None else (joined, k + 3)
        return x


class DenseNet(nn.Module):
    """A DenseNet by its plan; `skip` says how each layer's branch meets the stream.

    Images `[n, in_channels, h, w]` to logits `[n, num_classes]`; sides of at least `plan.smallest_image` pixels. Under
    "dense" and "concat" a branch puts out k channels, which are appended. Under any other connection it puts out as
    many as the stream then has: the shortcut is padded with k channels of zeros, and so every layer reads as many
    channels as in the dense net, which is the case of branches that leave the old channels alone (widening by zeros:
    Han 2016, arXiv:1610.02915). Norm and ReLU stand before the branch unless the connection says otherwise; "none" is
    the plain twin. `dropout` drops single numbers of what a branch puts out.

    `memory` is how a dense block is trained: "shared" keeps its maps in one buffer into which every layer writes, the
    statistics of a channel are computed once, and what norms put out is computed again in the backward pass;
    "recomputed" does so with the bottleneck's output too; "plain" keeps all that was computed. The gradients are the
    same, and so are those of gradients. Blocks run the plain way by themselves wherever the other does not hold: under
    hooks, edits, tracing, compilers and function transforms, with frozen or replaced norms, dropout, gradients in
    evaluation, and off the CPU.

    Raises SkipwayError for a connection that does not widen the stream, and for an image that is too small or has
    other channels.

    >>> import torch
    >>> plan = DenseNetPlan(blocks=(2, 2), growth=4, width=8, stem="cifar")
    >>> DenseNet(plan, num_classes=10)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        plan: DenseNetPlan,
        skip: str | Kind = "dense",
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.0,
        memory: Memory = "shared",
    ) -> None:
        super().__init__()
        if num_classes < 1 or in_channels < 1:
            raise SkipwayError(f"num_classes and in_channels must be at least 1, not {num_classes}, {in_channels}")
        if not 0 <= dropout < 1:
            raise SkipwayError(f"dropout is a rate in [0, 1), not {dropout}")
        self.plan, self.in_channels = plan, in_channels
        kind = fill(resolve(skip), placement="pre-activation", shortcut=ZeroPad())
        appends = isinstance(kind, Dense) or (isinstance(kind, Residual) and kind.merge == "concat")
        self.features = Features(_stem(plan, in_channels))
        channels, index = plan.width, 0
        for stage, n in enumerate(plan.blocks, 1):
            layers = []
            for _ in range(n):
                out = plan.growth if appends else channels + plan.growth
                site = Site(channels, out, index=index, depth=sum(plan.blocks))
                layers.append(DenseLayer(site, kind, plan.growth, plan.bottleneck, dropout))
                channels, index = channels + plan.growth, index + 1
            self.features.add_module(f"denseblock{stage}", DenseBlock(layers))
            if stage < len(plan.blocks):
                kept = max(1, int(channels * plan.compression))
                self.features.add_module(f"transition{stage}", Transition(channels, kept))
                channels = kept
        self.features.add_module("norm5", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        self.memory = memory
        self._initialize()

    @property
    def depth(self) -> int:
        """Weight layers on the longest path."""
        return self.plan.depth

    @property
    def layers(self) -> list[DenseLayer]:
        """All dense layers, in order."""
        return [module for module in self.modules() if isinstance(module, DenseLayer)]

    @property
    def memory(self) -> Memory:
        """How dense blocks are trained; it may be changed at any time."""
        return self.features.memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        choose("memory", memory, MEMORY)
        self.features.memory = memory

    def _initialize(self) -> None:
        # Connections initialise their own parts (gates, reweighting); the order of the others is torchvision's.
        own = {id(module) for layer in self.layers for module in layer.connection.modules()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and id(module) not in own:
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        self._check(x)
        x = self.features(x)
        x = F.relu(x, inplace=overwritable(self.features.get_submodule("norm5")))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def _check(self, x: Tensor) -> None:
        least = self.plan.smallest_image
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise SkipwayError(
                f"this DenseNet takes images of shape [n, {self.in_channels}, h, w], not {list(x.shape)}: build it "
                "with in_channels= as your images have"
            )
        if min(x.shape[2:]) < least:
            raise SkipwayError(
                f"images are {x.shape[2]} x {x.shape[3]}; this DenseNet shrinks them {least} times: give at least "
                f"{least} x {least} pixels"
                + (", or use a CIFAR DenseNet such as densenet-bc-100-12" if self.plan.stem == "imagenet" else "")
            )


def _stem(plan: DenseNetPlan, in_channels: int) -> OrderedDict[str, nn.Module]:
    if plan.stem == "cifar":
        return OrderedDict(conv0=nn.Conv2d(in_channels, plan.width, 3, padding=1, bias=False))
    return OrderedDict(
        conv0=nn.Conv2d(in_channels, plan.width, 7, stride=2, padding=3, bias=False),
        norm0=nn.BatchNorm2d(plan.width),
        relu0=nn.ReLU(inplace=True),
        pool0=nn.MaxPool2d(3, stride=2, padding=1),
    )
