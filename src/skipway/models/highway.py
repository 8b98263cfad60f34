"""Highway networks: layers that learn how much of their input to pass on, fully connected and convolutional.

Srivastava, Greff, Schmidhuber 2015 (arXiv:1505.00387, arXiv:1507.06228). A plain layer brings the input to the width
of the network, highway layers follow, a linear classifier ends it; where a convolutional net changes its width it has
a plain layer again, and a pooling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect import Gate, Kind, Residual, Site, Skip, Stack, resolve
from skipway.errors import SkipwayError
from skipway.models.checks import additive, check_images, check_sizes


@dataclass(frozen=True)
class HighwayPlan:
    """The numbers that make one highway network: connected layers a stage, and the width of the first stage.

    Every stage begins with a plain layer. A fully connected net has one stage and a fixed `image_size`, pixels a side;
    a convolutional one doubles its width from stage to stage, halves the map behind each but the last, and takes
    images of any size.

    >>> HighwayPlan(layers=(49,), width=50, image_size=28).depth
    51
    """

    layers: tuple[int, ...]
    width: int
    image_size: int | None = None

    def __post_init__(self) -> None:
        if self.width < 1 or min(self.layers, default=0) < 1:
            raise SkipwayError(
                f"a highway network needs a width and layers of at least 1, not {self.width} and {self.layers}"
            )
        if self.image_size is not None and (self.image_size < 1 or len(self.layers) > 1):
            raise SkipwayError(
                f"a fully connected highway network has one stage and images of at least 1 pixel a side, not "
                f"{len(self.layers)} and {self.image_size}"
            )

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: the plain ones, those with a connection, the classifier."""
        return sum(self.layers) + len(self.layers) + 1

    @property
    def smallest_image(self) -> int:
        """The factor by which the net shrinks an image, and so the fewest pixels a side that it can take."""
        return 2 ** (len(self.layers) - 1)


class HighwayLayer(Skip):
    """H(x) = relu(W x + b), of a fully connected layer or a 3x3 convolution, under a connection."""

    def __init__(self, site: Site, kind: Kind) -> None:
        nn.Module.__init__(self)
        self.connection = additive(kind, site, "the layers of a highway network")
        self.layer = _layer(site.in_channels, site.out_channels, convolutional=site.dims == 2)

    def branch(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        return F.relu(self.layer(x))


class HighwayNet(nn.Module):
    """A highway network by its plan; `skip="none"` is the plain twin from the same layers.

    Images `[n, in_channels, h, w]` to logits `[n, num_classes]`: of `plan.image_size` pixels a side if that is given,
    else of any size from `plan.smallest_image` on. A gate whose kernel is left open has that of the layers.
    Raises SkipwayError for a connection that changes the width, and for images of another shape.

    >>> import torch
    >>> HighwayNet(HighwayPlan((3,), 5, image_size=8), in_channels=1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, plan: HighwayPlan, skip: str | Kind = "highway", num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        self.plan, self.in_channels = plan, in_channels
        convolutional = plan.image_size is None
        kind = resolve(skip)
        if convolutional and isinstance(kind, Residual) and isinstance(kind.gate, Gate):
            kind = replace(kind, gate=kind.gate.of_kernel(3))
        channels = in_channels if plan.image_size is None else in_channels * plan.image_size**2
        index, dims = 0, 2 if convolutional else 0
        for stage, count in enumerate(plan.layers):
            width = plan.width * 2**stage
            self.add_module(f"enter{stage + 1}", _layer(channels, width, convolutional))
            sites = [Site(width, width, 1, index + k, sum(plan.layers), dims) for k in range(count)]
            self.add_module(f"layer{stage + 1}", Stack([HighwayLayer(site, kind) for site in sites]))
            channels, index = width, index + count
        self.fc = nn.Linear(channels, num_classes)

    @property
    def depth(self) -> int:
        """Weight layers on the longest path."""
        return self.plan.depth

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        self._check(x)
        if self.plan.image_size is not None:
            x = x.flatten(1)
        for stage in range(len(self.plan.layers)):
            if stage > 0:
                x = F.max_pool2d(x, 2)
            x = F.relu(getattr(self, f"enter{stage + 1}")(x))
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x if self.plan.image_size is not None else x.mean((2, 3)))

    def _check(self, x: Tensor) -> None:
        side = self.plan.image_size
        check_images(x, self.in_channels, 1 if side is not None else self.plan.smallest_image, "highway network")
        if side is not None and tuple(x.shape[2:]) != (side, side):
            raise SkipwayError(
                f"images are {x.shape[2]} x {x.shape[3]}; this fully connected network was built for {side} x {side} "
                "pixels: build it with image_size= as your images have, or take a convolutional one such as "
                "highway-conv-20"
            )


def _layer(in_channels: int, out_channels: int, convolutional: bool) -> nn.Linear | nn.Conv2d:
    """A plain layer, started as suits the ReLU behind it (He et al. 2015, arXiv:1502.01852), with biases of 0."""
    layer = (
        nn.Conv2d(in_channels, out_channels, 3, padding=1) if convolutional else nn.Linear(in_channels, out_channels)
    )
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
