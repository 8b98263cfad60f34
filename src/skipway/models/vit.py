"""Vision Transformer: an image cut into patches, which attend to each other.

Dosovitskiy et al. 2020 (arXiv:2010.11929). Parameter names are torchvision's, so that its weights load as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect import Connection, Kind
from skipway.errors import SkipwayError
from skipway.models.attention import Attention
from skipway.models.checks import check_sizes
from skipway.models.transformer_layers import (
    Layer,
    LayerPlan,
    activate,
    branch_gain,
    initialize_feed_forward,
    norms_stream,
)


class VisionLayer(Layer):
    """Self-attention and feed-forward under connections: all patches see each other, and none is padding."""

    pools = True
    skip1: Connection
    skip2: Connection

    def __init__(self, plan: LayerPlan, kind: Kind, index: int, layers: int) -> None:
        super().__init__()
        self.plan = plan
        self.self_attention = Attention(plan.width, plan.heads, plan.dropout)
        # Their numbers leave room for the nonlinearity and the dropout between them.
        self.mlp = nn.ModuleDict({"0": nn.Linear(plan.width, plan.hidden), "3": nn.Linear(plan.hidden, plan.width)})
        self.connect(plan, [kind] * 2, index, layers, norm="ln_")

    def forward(self, stream: Any) -> Any:
        return self.skip2(self.skip1(stream, self.attend), self.feed_forward)

    def attend(self, x: Tensor) -> Tensor:
        """The first branch."""
        return F.dropout(self.self_attention(x), self.plan.dropout, self.training)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second branch, patch by patch."""
        x = activate(self.plan.activation, self.mlp["0"](x))
        x = self.mlp["3"](F.dropout(x, self.plan.dropout, self.training))
        return F.dropout(x, self.plan.dropout, self.training)

    def initialize(self, draw: Callable[[Tensor], object]) -> None:
        """Draw the branches' matrices anew, as wide as their connections want them; biases are 0."""
        self.self_attention.initialize(draw, branch_gain(self.skip1))
        first, second = cast("tuple[nn.Linear, nn.Linear]", (self.mlp["0"], self.mlp["3"]))
        initialize_feed_forward(first, second, draw, branch_gain(self.skip2))


class VisionEncoder(nn.Module):
    """Learned positions, the layers, and a norm where the layers leave the stream without one."""

    def __init__(self, plan: LayerPlan, layers: int, length: int, kind: Kind) -> None:
        super().__init__()
        self.dropout = plan.dropout
        self.pos_embedding = nn.Parameter(torch.randn(1, length, plan.width) * 0.02)
        self.layers = nn.ModuleDict(
            {f"encoder_layer_{index}": VisionLayer(plan, kind, index, layers) for index in range(layers)}
        )
        self.ln = None if norms_stream(kind) else nn.LayerNorm(plan.width, eps=plan.epsilon)

    def forward(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        layers = cast("list[VisionLayer]", list(self.layers.values()))
        stream = layers[0].skip1.open(F.dropout(x + self.pos_embedding, self.dropout, self.training))
        for layer in layers:
            stream = layer(stream)
        x = layers[-1].skip2.close(stream)
        return x if self.ln is None else self.ln(x)


class ViT(nn.Module):
    """A Vision Transformer: images of one size to class scores, read off a token of its own.

    Images `[n, in_channels, image_size, image_size]` to logits `[n, num_classes]`; `patch` pixels a side make one
    token. Raises SkipwayError for patches that do not divide the image, and for images of another size.

    >>> import torch
    >>> plan = LayerPlan(8, heads=2, activation="gelu", placement="pre-norm", epsilon=1e-6)
    >>> ViT(plan, layers=1, image_size=16, patch=4, num_classes=10)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        plan: LayerPlan,
        layers: int,
        image_size: int,
        patch: int,
        skip: str | Kind = "residual",
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels, layers=layers)
        if patch < 1 or image_size < patch or image_size % patch:
            raise SkipwayError(f"patches of {patch} pixels do not divide images of {image_size} x {image_size}")
        self.plan, self.image_size, self.in_channels = plan, image_size, in_channels
        self.class_token = nn.Parameter(torch.zeros(1, 1, plan.width))
        self.conv_proj = nn.Conv2d(in_channels, plan.width, patch, stride=patch)
        self.encoder = VisionEncoder(plan, layers, (image_size // patch) ** 2 + 1, plan.published(skip))
        self.heads = nn.ModuleDict({"head": nn.Linear(plan.width, num_classes)})
        self._initialize()

    def _initialize(self) -> None:
        for layer in cast("list[VisionLayer]", list(self.encoder.layers.values())):
            layer.initialize(nn.init.xavier_uniform_)
        fan_in = self.conv_proj.weight[0].numel()
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / fan_in))
        head = cast("nn.Linear", self.heads["head"])
        nn.init.trunc_normal_(head.weight, std=0.02)
        for bias in (self.conv_proj.bias, head.bias):
            assert bias is not None
            nn.init.zeros_(bias)

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: the patches' projection, the branches' linear maps, the classifier."""
        return 4 * len(self.encoder.layers) + 2

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        expected = [self.in_channels, self.image_size, self.image_size]
        if x.ndim != 4 or list(x.shape[1:]) != expected:
            raise SkipwayError(
                f"this ViT takes images of shape [n, {', '.join(map(str, expected))}], not {list(x.shape)}: resize "
                "them, or build it with in_channels= and image_size= as your images have"
            )
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(len(x), -1, -1), patches), dim=1)
        return self.heads["head"](self.encoder(x)[:, 0])
