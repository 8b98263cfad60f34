"""Conformer: attention for what is far, convolution for what is near, between two half steps of feed-forward.

Gulati et al. 2020 (arXiv:2005.08100).
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skipway.connect import Connection, Constant, Kind, fill, resolve
from skipway.errors import SkipwayError, choose
from skipway.models.attention import Attention, join_masks
from skipway.models.positions import Rotation, counted
from skipway.models.transformer_layers import Layer, LayerPlan, norms_stream


class FeedForward(nn.Module):
    """Linear, Swish, linear, token by token."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "n t c"]) -> Float[Tensor, "n t c"]:
        x = F.dropout(F.silu(self.linear1(x)), self.dropout, self.training)
        return F.dropout(self.linear2(x), self.dropout, self.training)


class ConvolutionModule(nn.Module):
    """Pointwise convolution and gate, depth-wise convolution over time, batch norm, Swish, pointwise convolution.

    x `[n, t, c]` to the same shape; a window of `kernel` frames, odd, centred. What `padding` hides is 0 to the
    windows, and does not count in the batch norm's statistics.
    """

    def __init__(self, width: int, kernel: int, dropout: float) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise SkipwayError(f"a centred window has an odd number of frames, not {kernel}")
        self.pointwise1 = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.BatchNorm1d(width)
        self.pointwise2 = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "n t c"], padding: Bool[Tensor, "n t"] | None = None) -> Float[Tensor, "n t c"]:
        x = F.glu(self.pointwise1(x), dim=-1)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        x = self.depthwise(x.transpose(1, 2))
        if padding is None:
            x = self.norm(x).transpose(1, 2)
        else:
            frames = x.transpose(1, 2)
            x = frames.masked_scatter(~padding[..., None], self.norm(frames[~padding]))
        return F.dropout(self.pointwise2(F.silu(x)), self.dropout, self.training)


class ConformerBlock(Layer):
    """y = norm(x3 + F2(x3)/2), x3 = x2 + C(x2), x2 = x1 + A(x1), x1 = x + F1(x)/2; every branch norms what it reads.

    F1 and F2 are feed-forward, A is self-attention and C the convolution module; the half steps are the scale of
    their connections, which a connection with a scale of its own replaces.
    """

    skip1: Connection
    skip2: Connection
    skip3: Connection
    skip4: Connection

    def __init__(self, plan: LayerPlan, kind: Kind, index: int, layers: int, kernel: int) -> None:
        super().__init__()
        self.plan = plan
        self.feed_forward1 = FeedForward(plan.width, plan.hidden, plan.dropout)
        self.self_attn = Attention(plan.width, plan.heads, plan.dropout)
        self.convolution = ConvolutionModule(plan.width, kernel, plan.dropout)
        self.feed_forward2 = FeedForward(plan.width, plan.hidden, plan.dropout)
        half = fill(kind, scale=Constant(0.5))
        self.connect(plan, [half, kind, kind, half], index, layers)
        self.norm = None if norms_stream(kind) else nn.LayerNorm(plan.width, eps=plan.epsilon)

    def forward(
        self,
        x: Float[Tensor, "n t c"],
        padding: Bool[Tensor, "n t"] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "n t c"]:
        t = x.shape[1]
        mask, _ = join_masks(t, t, padding=padding)
        stream: Any = self.skip1.open(x)
        stream = self.skip1(stream, self.feed_forward1)
        stream = self.skip2(stream, self.attend, mask, rotation)
        stream = self.skip3(stream, self.convolution, padding)
        x = self.skip4.close(self.skip4(stream, self.feed_forward2))
        return x if self.norm is None else self.norm(x)

    def attend(self, x: Tensor, mask: Tensor | None, rotation: Rotation | None) -> Tensor:
        """The second branch."""
        return F.dropout(self.self_attn(x, mask=mask, rotation=rotation), self.plan.dropout, self.training)


class Conformer(nn.Module):
    """A stack of Conformer blocks on frames, such as a spectrogram's.

    x `[n, t, c]` to the same shape. `positions` turn the attention's queries and keys ("rotary"), so that it knows how
    far apart frames are, or are left to the convolutions ("none"). `padding` is True where a frame is none: it has no
    influence. Raises SkipwayError for an even kernel, and for connections that change the width or look at several
    frames.

    >>> import torch
    >>> Conformer(LayerPlan(8, heads=2), layers=2, kernel=5)(torch.ones(1, 9, 8)).shape
    torch.Size([1, 9, 8])
    """

    def __init__(
        self,
        plan: LayerPlan,
        layers: int,
        skip: str | Kind = "residual",
        kernel: int = 31,
        positions: Literal["rotary", "none"] = "rotary",
    ) -> None:
        super().__init__()
        choose("kind of positions of a Conformer", positions, ("rotary", "none"))
        if layers < 1:
            raise SkipwayError(f"a Conformer needs at least 1 block, not {layers}")
        head_width = plan.width // plan.heads
        if positions == "rotary" and head_width % 2:
            raise SkipwayError(f"rotary positions turn pairs of channels, and heads are {head_width} wide")
        self.plan, self.positions = plan, positions
        # Its norms stand before the branches, whatever the plan's own layers have.
        kind = fill(resolve(skip), placement="pre-norm")
        self.layers = nn.ModuleList(ConformerBlock(plan, kind, index, layers, kernel) for index in range(layers))

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: two a branch, and the convolution module's third."""
        return 9 * len(self.layers)

    def forward(self, x: Float[Tensor, "n t c"], padding: Bool[Tensor, "n t"] | None = None) -> Float[Tensor, "n t c"]:
        rotation = None
        if self.positions == "rotary":
            places = counted(x.shape[1], 0, None, x.device)
            rotation = Rotation.at(places, self.plan.width // self.plan.heads)
        for block in cast("list[ConformerBlock]", list(self.layers)):
            x = block(x, padding, rotation)
        return x
