"""Where a connection stands: the little it may know of the network around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from skipway.errors import SkipwayError


@dataclass(frozen=True)
class Site:
    """The place of one connection in a stage: channels, stride, and its index among `depth` branches.

    `in_channels` is what the stream carries in, `out_channels` what the branch puts out, `stride` the factor by
    which the branch shrinks the map. `dims` is the number of spatial axes: 1, 2 or 3 for maps `[n, c, *space]`,
    0 for tokens `[..., c]`, whose channels come last.

    Raises SkipwayError when a number is out of its range.

    >>> site = Site(in_channels=16, out_channels=32, stride=2, index=3, depth=9)
    >>> site.same_shape, site.channel_axis
    (False, 1)
    """

    in_channels: int
    out_channels: int
    stride: int = 1
    index: int = 0
    depth: int = 1
    dims: int = 2

    def __post_init__(self) -> None:
        if self.in_channels < 1 or self.out_channels < 1:
            raise SkipwayError(f"channels must be at least 1, not {self.in_channels} -> {self.out_channels}")
        if self.dims not in (0, 1, 2, 3):
            raise SkipwayError(f"dims is the number of spatial axes: 0 (tokens), 1, 2 or 3, not {self.dims}")
        if self.stride < 1 or (self.dims == 0 and self.stride != 1):
            raise SkipwayError(f"stride must be at least 1, and 1 for tokens (dims=0), not {self.stride}")
        if not 0 <= self.index < self.depth:
            raise SkipwayError(f"index must lie in 0..{self.depth - 1} (depth {self.depth}), not {self.index}")

    @property
    def same_shape(self) -> bool:
        """Whether the branch's output has the shape of the stream, so that an identity can pass it."""
        return self.in_channels == self.out_channels and self.stride == 1

    @property
    def channel_axis(self) -> int:
        """The axis of a tensor that holds its channels: 1 for maps, the last for tokens."""
        return 1 if self.dims else -1

    def check_stream(self, x: Any) -> None:
        """Raise SkipwayError for a stream that is no tensor of the channels that the site takes in."""
        if not isinstance(x, Tensor):
            raise SkipwayError(f"a connection takes one tensor, not {type(x).__name__}")
        if x.ndim <= max(self.channel_axis, 0) or x.size(self.channel_axis) != self.in_channels:
            raise SkipwayError(
                f"the stream is {tuple(x.shape)}, where this connection was built for {self.in_channels} channels on "
                f"axis {self.channel_axis} (dims={self.dims}): give channels= and dims= as your data has them"
            )

    def check_value(self, value: Any) -> Tensor:
        """What a branch put out, if it is one tensor of the site's channels; raises SkipwayError otherwise."""
        if not isinstance(value, Tensor):
            raise SkipwayError(
                f"a branch must return one tensor, not {type(value).__name__}: wrap it so that it returns the tensor "
                "to connect (attention layers return a pair, for one)"
            )
        if value.ndim <= max(self.channel_axis, 0) or value.size(self.channel_axis) != self.out_channels:
            raise SkipwayError(
                f"the branch put out {tuple(value.shape)}, where this connection was built for {self.out_channels} "
                f"channels on axis {self.channel_axis} (dims={self.dims}): give the branch's out_channels= and dims="
            )
        return value
