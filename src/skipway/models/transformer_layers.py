"""The layers of Transformers: attention and feed-forward branches, each under a connection.

Vaswani et al. 2017 (arXiv:1706.03762). Parameter names are those of `torch.nn.TransformerEncoderLayer` and
`torch.nn.TransformerDecoderLayer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from skipway.connect import Connection, Constant, Kind, Residual, Site, fill, resolve
from skipway.connect.connection import PlacedConnection
from skipway.connect.residual import ResidualConnection
from skipway.errors import SkipwayError, choose
from skipway.models.attention import Attention, Cache, join_masks
from skipway.models.positions import Rotation

Activation = Literal["relu", "gelu", "gelu-tanh"]


@dataclass(frozen=True)
class LayerPlan:
    """The numbers of one layer: width of the stream, heads, width inside the feed-forward branch, dropout.

    `placement` is where the norms stand as published ("post-norm" in 2017), `epsilon` what they add to the variance.
    `dropout` falls on attention weights, on the feed-forward branch's inner activations, and on what each branch puts
    out. Raises SkipwayError for numbers out of range.

    >>> LayerPlan(width=64, heads=4).hidden
    256
    """

    width: int = 512
    heads: int = 8
    expansion: int = 4
    dropout: float = 0.0
    activation: Activation = "relu"
    placement: str = "post-norm"
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        choose("activation", self.activation, ("relu", "gelu", "gelu-tanh"))
        choose(
            "placement of a Transformer's norms", self.placement, ("post-norm", "pre-norm", "branch-norm", "sandwich")
        )
        if self.width < 1 or self.heads < 1 or self.width % self.heads:
            raise SkipwayError(
                f"the width must be a multiple of the number of heads: {self.width} is none of {self.heads}"
            )
        if self.expansion < 1 or not 0 <= self.dropout < 1:
            raise SkipwayError(
                f"expansion must be at least 1 and dropout in [0, 1), not {self.expansion}, {self.dropout}"
            )

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward branch."""
        return self.width * self.expansion

    def published(self, skip: str | Kind) -> Kind:
        """The connection with the norms where this plan has them, unless it has a placement of its own."""
        return fill(resolve(skip), placement=self.placement)


def activate(kind: Activation, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The nonlinearity of a feed-forward branch."""
    if kind == "relu":
        # Not in place: a linear map of [n, t, c] puts out a view, whose gradient would be copied for it.
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if kind == "gelu-tanh" else "none")


def norms_stream(kind: Kind) -> bool:
    """Whether a connection norms the stream itself, so that none is needed behind the last."""
    connection = kind.build(Site(8, 8, dims=0))
    return isinstance(connection, PlacedConnection) and "norm" in connection.placement.after


def branch_gain(connection: Connection) -> float:
    """How much narrower than usual a connection wants its branch's weights drawn.

    1 / (sqrt(2) a) where a shortcut of constant scale a > 1 meets its branch under a norm: DeepNorm, whose
    a = (2N)^(1/4) goes with (8N)^(-1/4), and (3M)^(1/4) with (12M)^(-1/4) (Wang et al. 2022, arXiv:2203.00555).
    """
    if not isinstance(connection, ResidualConnection) or "norm" not in connection.placement.after:
        return 1.0
    scale = None if connection.shortcut_scale is None else connection.shortcut_scale.scale
    return 1 / (2**0.5 * scale) if isinstance(scale, float) and scale > 1 else 1.0


class Layer(nn.Module):
    """Branches under connections, every norm owned by the layer under its published name."""

    # A model whose tokens may all see each other, and are never padded, sets this.
    pools = False

    def connect(self, plan: LayerPlan, kinds: Sequence[Kind], index: int, layers: int, norm: str = "norm") -> None:
        """Add a connection for each branch of layer `index` as skip1, skip2 ..., its norm as norm1, norm2 ...

        Raises SkipwayError for one that cannot serve.
        """
        count = len(kinds)
        for k, kind in enumerate(kinds):
            site = Site(plan.width, plan.width, index=count * index + k, depth=count * layers, dims=0)
            self._connect(f"skip{k + 1}", f"{norm}{k + 1}", site, kind, plan.epsilon)

    def _connect(self, name: str, norm: str, site: Site, kind: Kind, epsilon: float) -> None:
        connection = kind.build(site)
        if connection.out_channels != site.out_channels:
            raise SkipwayError(
                f"a Transformer's layers keep their width, which {kind} does not: choose an additive connection"
            )
        gate = getattr(kind, "gate", None)
        if not self.pools and (getattr(kind, "reweight", None) is not None or (gate is not None and gate.pooled)):
            raise SkipwayError(
                f"{kind} takes the mean over all tokens, and so looks at padding and at tokens to come: choose a "
                "connection that works token by token, or a family of images"
            )
        if isinstance(connection, PlacedConnection):
            slots = [slot for slot in ("before", "after", "out") if "norm" in getattr(connection.placement, slot)]
            for k, slot in enumerate(slots):
                part: Any = connection.part(f"norm_{slot}")
                part.eps = epsilon
                connection.lend(f"norm_{slot}", self, norm if k == 0 else f"{norm}_{slot}")
        self.add_module(name, connection)


class EncoderLayer(Layer):
    """Self-attention and feed-forward, each a branch under a connection."""

    self_attn: Attention
    skip1: Connection
    skip2: Connection

    def __init__(self, plan: LayerPlan, kind: Kind, index: int, layers: int) -> None:
        super().__init__()
        self.plan = plan
        self.self_attn = Attention(plan.width, plan.heads, plan.dropout)
        self.linear1 = nn.Linear(plan.width, plan.hidden)
        self.linear2 = nn.Linear(plan.hidden, plan.width)
        self.connect(plan, [kind] * 2, index, layers)

    def forward(
        self,
        stream: Any,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
    ) -> Any:
        stream = self.skip1(stream, self.attend, mask, causal, cache, rotation)
        return self.skip2(stream, self.feed_forward)

    def attend(
        self, x: Tensor, mask: Tensor | None, causal: bool, cache: Cache | None, rotation: Rotation | None
    ) -> Tensor:
        """The first branch."""
        x = self.self_attn(x, mask=mask, causal=causal, cache=cache, rotation=rotation)
        return F.dropout(x, self.plan.dropout, self.training)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The last branch: two linear maps with a nonlinearity between, token by token."""
        x = activate(self.plan.activation, self.linear1(x))
        x = self.linear2(F.dropout(x, self.plan.dropout, self.training))
        return F.dropout(x, self.plan.dropout, self.training)

    @property
    def ends(self) -> tuple[Connection, Connection]:
        """The first and the last connection."""
        return self.skip1, self.skip2

    def initialize(self, draw: Callable[[Tensor], object]) -> None:
        """Draw the branches' matrices anew, as wide as their connections want them; biases are 0."""
        self.self_attn.initialize(draw, branch_gain(self.skip1))
        initialize_feed_forward(self.linear1, self.linear2, draw, branch_gain(self.skip2))


class DecoderLayer(EncoderLayer):
    """Self-attention, attention to the encoder's memory, and feed-forward."""

    multihead_attn: Attention
    skip3: Connection

    def __init__(self, plan: LayerPlan, kind: Kind, index: int, layers: int) -> None:
        nn.Module.__init__(self)
        self.plan = plan
        self.self_attn = Attention(plan.width, plan.heads, plan.dropout)
        self.multihead_attn = Attention(plan.width, plan.heads, plan.dropout)
        self.linear1 = nn.Linear(plan.width, plan.hidden)
        self.linear2 = nn.Linear(plan.hidden, plan.width)
        self.connect(plan, [kind] * 3, index, layers)

    def forward(
        self,
        stream: Any,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Any:
        stream = self.skip1(stream, self.attend, mask, causal, cache, rotation)
        stream = self.skip2(stream, self.look_up, memory, memory_mask, cache)
        return self.skip3(stream, self.feed_forward)

    def look_up(self, x: Tensor, memory: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """The second branch: attention to the memory."""
        x = self.multihead_attn(x, memory, mask=mask, cache=cache)
        return F.dropout(x, self.plan.dropout, self.training)

    @property
    def ends(self) -> tuple[Connection, Connection]:
        return self.skip1, self.skip3

    def initialize(self, draw: Callable[[Tensor], object]) -> None:
        self.self_attn.initialize(draw, branch_gain(self.skip1))
        self.multihead_attn.initialize(draw, branch_gain(self.skip2))
        initialize_feed_forward(self.linear1, self.linear2, draw, branch_gain(self.skip3))


def initialize_feed_forward(
    first: nn.Linear, second: nn.Linear, draw: Callable[[Tensor], object], gain: float = 1.0
) -> None:
    """Draw both matrices anew, `gain` times as wide, and set the biases to 0."""
    with torch.no_grad():
        for linear in (first, second):
            draw(linear.weight)
            linear.weight *= gain
            linear.bias.zero_()


class Encoder(nn.Module):
    """A stack of encoder layers, with a norm behind the last where the layers leave the stream without one.

    x `[n, t, c]` to the same shape. `mask`, `padding` and `causal` are as `join_masks` takes them: with `causal`, and a
    `cache` where it generates, this is the stack of a decoder-only model. `final_norm` says otherwise about the norm.
    Raises SkipwayError for a connection that changes the width, or that looks at several tokens at once.

    >>> Encoder(LayerPlan(8, heads=2), layers=2)(torch.ones(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    layer: type[EncoderLayer] = EncoderLayer

    def __init__(
        self, plan: LayerPlan, layers: int, skip: str | Kind = "residual", final_norm: bool | None = None
    ) -> None:
        super().__init__()
        if layers < 1:
            raise SkipwayError(f"a Transformer needs at least 1 layer, not {layers}")
        kind = plan.published(skip)
        self.plan = plan
        self.layers = nn.ModuleList(self.layer(plan, kind, index, layers) for index in range(layers))
        wanted = not norms_stream(kind) if final_norm is None else final_norm
        self.norm = nn.LayerNorm(plan.width, eps=plan.epsilon) if wanted else None

    def forward(
        self,
        x: Float[Tensor, "n t c"],
        mask: Bool[Tensor, "..."] | None = None,
        padding: Bool[Tensor, "n s"] | None = None,
        causal: bool = False,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "n t c"]:
        return self._run(x, mask, padding, causal, cache, rotation)

    def _run(
        self,
        x: Tensor,
        mask: Tensor | None,
        padding: Tensor | None,
        causal: bool,
        cache: Cache | None,
        rotation: Rotation | None,
        *memory: Tensor | None,
    ) -> Tensor:
        t = x.size(1)
        keys = t if cache is None else cache.length + t
        mask, causal = join_masks(t, keys, mask, padding, causal, x.device)
        layers = cast("list[EncoderLayer]", list(self.layers))
        stream = layers[0].ends[0].open(x)
        for layer in layers:
            stream = layer(stream, mask, causal, cache, rotation, *memory)
        x = layers[-1].ends[1].close(stream)
        return x if self.norm is None else self.norm(x)

    def initialize(self, draw: Callable[[Tensor], object]) -> None:
        """Draw the matrices of all branches anew; biases are 0."""
        for layer in cast("list[EncoderLayer]", list(self.layers)):
            layer.initialize(draw)


class Decoder(Encoder):
    """A stack of decoder layers, which also attend to an encoder's `memory` `[n, s, c]`; causal unless told otherwise.

    >>> Decoder(LayerPlan(8, heads=2), layers=2)(torch.ones(1, 5, 8), torch.ones(1, 7, 8)).shape
    torch.Size([1, 5, 8])
    """

    layer = DecoderLayer

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] (it needs a memory)
        self,
        x: Float[Tensor, "n t c"],
        memory: Float[Tensor, "n s c"],
        mask: Bool[Tensor, "..."] | None = None,
        padding: Bool[Tensor, "n r"] | None = None,
        memory_mask: Bool[Tensor, "..."] | None = None,
        memory_padding: Bool[Tensor, "n s"] | None = None,
        causal: bool = True,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "n t c"]:
        seen, _ = join_masks(x.size(1), memory.size(1), memory_mask, memory_padding)
        return self._run(x, mask, padding, causal, cache, rotation, memory, seen)


def encoder_share(skip: Kind, layers: int, decoder_layers: int) -> Kind:
    """DeepNorm's connection as an encoder has it before a decoder: a = 0.81 (N^4 M)^(1/16) (arXiv:2203.00555)."""
    deepnorm = cast("Residual", resolve("deepnorm"))
    if not isinstance(skip, Residual) or skip.shortcut_scale != deepnorm.shortcut_scale:
        return skip
    return replace(skip, shortcut_scale=Constant(0.81 * (layers**4 * decoder_layers) ** (1 / 16)))
