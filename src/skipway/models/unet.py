"""U-Net: an encoder that halves its maps, a decoder that doubles them, and long skips from each level to its like.

Ronneberger, Fischer, Brox 2015 (arXiv:1505.04597); in 3-D: Çiçek et al. 2016 (arXiv:1606.06650). All that lies below a
level is one branch: it reads the encoder's map, works at half the size and comes back up, and the level's connection
writes what comes up to that map. So a long skip is a connection like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skipway.connect import Connection, Kind, Projection, fill, resolve
from skipway.connect.residual import ResidualConnection
from skipway.errors import SkipwayError
from skipway.models.checks import check_sizes, placement_of
from skipway.models.unet_blocks import Blocks, Down, Head, Up, centre, convolve, short_connection
from skipway.models.unet_plan import UNetPlan

_AXES = {1: "t", 2: "h, w", 3: "d, h, w"}
_INPUTS = {1: "signals", 2: "images", 3: "volumes"}


class UNet(nn.Module):
    """A U-Net by its plan; `skip` joins encoder and decoder: y = [x, U(x)] by "concat", x + U(x) by "residual".

    Images `[n, in_channels, *space]` to logits `[n, num_classes, *space]`; the space is that of the input with
    fit="pad", and `plan.output` of it with fit="crop". `skip` is one connection, or one a level from full resolution
    down: `["concat", "none", ...]`. `short_skip` is the connection inside the blocks. With `deep_supervision` a net in
    training gives a tuple: the logits, then those that further heads make of the decoder's coarser maps, each half the
    size of the one before. `checkpointing` keeps only the maps between the blocks and computes the rest again in the
    backward pass; statistics of batch norms are updated once all the same.

    Raises SkipwayError for connections that the plan cannot take, and for inputs of other channels or sizes.

    >>> import torch
    >>> net = UNet(UNetPlan(widths=(4, 8, 16)), skip=["concat", "none"])
    >>> net(torch.zeros(2, 3, 10, 13)).shape
    torch.Size([2, 1, 10, 13])
    """

    def __init__(
        self,
        plan: UNetPlan,
        skip: str | Kind | Sequence[str | Kind] = "concat",
        num_classes: int = 1,
        in_channels: int = 3,
        short_skip: str | Kind | None = None,
        deep_supervision: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes, in_channels=in_channels)
        self.plan, self.in_channels, self.num_classes, self.checkpointing = (
            plan,
            in_channels,
            num_classes,
            checkpointing,
        )
        kinds = _one_a_level(skip, plan)
        short = short_connection(plan, short_skip)
        before = placement_of(short).before
        blocks, widths = Blocks(plan, short), plan.widths
        # Norms and ReLUs that blocks begin with are not for the bare image, and what the last puts out lacks them.
        self.stem = convolve(plan, in_channels, widths[0]) if before else None
        self.inc = blocks.make(widths[0] if before else in_channels, widths[0], middle=widths[0])
        for level, width in enumerate(widths[1:], 1):
            self.add_module(f"down{level}", Down(plan, blocks.make(widths[level - 1], width, middle=width)))
        for level in reversed(range(plan.levels)):
            self.add_module(f"up{plan.levels - level}", Up(plan, level, kinds[level], blocks))
        activates = bool(before) and plan.block != "dense"
        self.outc = Head(plan, plan.decoder_width(0), num_classes, activates)
        lower = range(1, plan.levels) if deep_supervision else ()
        self.heads = nn.ModuleList(Head(plan, plan.decoder_width(k), num_classes, activates) for k in lower)
        self._least = plan.least
        if deep_supervision:
            self._check_supervision()
        if plan.norm == "none":
            self._initialize()

    @property
    def depth(self) -> int:
        """Weight layers on the longest path."""
        return self.plan.depth + (self.stem is not None)

    def connection(self, level: int) -> Connection:
        """What joins encoder and decoder at a level; 0 is full resolution."""
        return self._up(level).connection

    def _up(self, level: int) -> Up:
        up = self.get_submodule(f"up{self.plan.levels - level}")
        assert isinstance(up, Up)
        return up

    def forward(
        self, x: Float[Tensor, "n c *space"]
    ) -> Float[Tensor, "n k *out"] | tuple[Float[Tensor, "n k *_"], ...]:
        self._check(x)
        plan, sizes = self.plan, x.shape[2:]
        mirrors = plan.valid and plan.fit == "pad"
        if mirrors:
            x = _mirrored(x, [plan.even(size + plan.margin) for size in sizes])
        if self.stem is not None:
            x = self.stem(x)
        lower: list[Tensor] = []
        logits = self.outc(self._descend(0, self._run(self.inc, x), lower))
        if mirrors:
            logits = centre(logits, sizes)
        if not (self.heads and self.training):
            return logits
        return (logits, *(head(map_) for head, map_ in zip(self.heads, reversed(lower[:-1]), strict=True)))

    def _descend(self, level: int, x: Tensor, decoded: list[Tensor]) -> Tensor:
        """The decoder's map at a level from the encoder's; it joins those of lower levels, where heads read them."""
        up, connection = self._up(level), self.connection(level)
        if connection.leaves_out():
            y = self._run(up.without, x, [self.plan.upsampled(size, level) for size in x.shape[2:]])
        else:
            read = connection.read(connection.open(x))
            below = self._run(self.get_submodule(f"down{level + 1}"), read)
            if level + 1 < self.plan.levels:
                below = self._descend(level + 1, below, decoded)
            y = self._run(up, below, x, read)
        if self.heads and self.training:
            decoded.append(y)
        return y

    def _run(self, part: Any, *inputs: Any) -> Tensor:
        """What a part makes of its inputs, kept whole or to be computed again."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return part(*inputs)
        owner = part if isinstance(part, nn.Module) else part.__self__
        return checkpoint(part, *inputs, use_reentrant=False, context_fn=partial(_contexts, owner))

    def _check_supervision(self) -> None:
        if self.plan.levels < 2:
            raise SkipwayError("deep supervision needs a level below the first: build the U-Net with levels=2 or more")
        if self.plan.valid:
            raise SkipwayError(
                "deep supervision needs coarse maps that cover the image, which valid convolutions do not give: use a "
                "U-Net whose convolutions pad"
            )
        for level in range(self.plan.levels):
            drop = getattr(self.connection(level), "drop", None)
            if isinstance(self.connection(level), ResidualConnection) and drop is not None and drop.mode == "batch":
                raise SkipwayError(
                    "deep supervision needs every level's output, which stochastic depth of whole batches leaves out: "
                    "use StochasticDepth(..., mode='row'), or no deep supervision"
                )

    def _initialize(self) -> None:
        # As in 2015: without norms the variance must be kept by the weights. Connections start their own parts.
        own = {id(module) for level in range(self.plan.levels) for module in self.connection(level).modules()}
        for module in self.modules():
            if isinstance(module, nn.modules.conv._ConvNd) and id(module) not in own:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _check(self, x: Tensor) -> None:
        plan, inputs = self.plan, _INPUTS[self.plan.dims]
        if x.ndim != 2 + plan.dims or x.shape[1] != self.in_channels:
            raise SkipwayError(
                f"this U-Net takes {inputs} of shape [n, {self.in_channels}, {_AXES[plan.dims]}], not {list(x.shape)}: "
                "build it with in_channels= as yours have"
            )
        if min(x.shape[2:]) < self._least:
            raise SkipwayError(
                f"{inputs} are {_sizes(x.shape[2:])}; this U-Net halves them {plan.levels} times: give at least "
                f"{_sizes([self._least] * plan.dims)}"
            )
        even = [plan.even(size) for size in x.shape[2:]]
        if plan.fit == "error" and even != list(x.shape[2:]):
            rule = f"sides of {plan.unit} k + {plan.rest}" if plan.rest else f"multiples of {plan.unit}"
            raise SkipwayError(
                f"{inputs} are {_sizes(x.shape[2:])}; this U-Net needs {rule}: pad to {_sizes(even)}, or build it with "
                'fit="pad"'
            )


def _sizes(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _one_a_level(skip: str | Kind | Sequence[str | Kind], plan: UNetPlan) -> list[Kind]:
    given: list[Any] = [skip] * plan.levels
    if isinstance(skip, Sequence) and not isinstance(skip, (str, Kind)):
        given = list(skip)
    if len(given) != plan.levels:
        raise SkipwayError(
            f"skip= has {len(given)} entries for {plan.levels} levels: give one connection, or one a level from full "
            "resolution down"
        )
    return [fill(resolve(one), shortcut=Projection(norm=plan.norm == "batch")) for one in given]


def _mirrored(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """An image grown to these sizes by its own mirror images, as wide a border as needed."""
    while list(x.shape[2:]) != list(sizes):
        around: list[int] = []
        for axis, size in reversed(list(enumerate(sizes, 2))):
            missing, most = size - x.shape[axis], x.shape[axis] - 1
            around += [min(missing // 2, most), min(missing - missing // 2, most)]
        x = F.pad(x, around, mode="reflect")
    return x


def _contexts(part: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(part)


@contextmanager
def _statistics_kept(part: nn.Module) -> Iterator[None]:
    """Let batch norms count what they see in copies: they have seen it, when it was computed first."""
    norms = [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    own = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if x is None else x.clone() for name, x in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)
