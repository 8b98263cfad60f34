"""How tokens learn where they stand: by waves, by a learned table, by rotation, or not at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose

PositionKind = Literal["sinusoidal", "learned", "rotary", "none"]


def sinusoidal(positions: Int[Tensor, "*s"], channels: int) -> Float[Tensor, "*s c"]:
    """Waves of growing length: e(p, 2i) = sin(p / 10000^(2i/c)), e(p, 2i+1) = cos of the same.

    Vaswani et al. 2017, section 3.5 (arXiv:1706.03762).

    >>> sinusoidal(torch.tensor([0]), 4)
    tensor([[0., 1., 0., 1.]])
    """
    angles = _angles(positions, channels)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :channels]


def _angles(positions: Tensor, channels: int) -> Tensor:
    """p / 10000^(2i/c) for every position p and every pair i of channels."""
    pairs = torch.arange(0, channels, 2, dtype=torch.float32, device=positions.device)
    return positions[..., None] * torch.exp(pairs * (-math.log(10000.0) / channels))


@dataclass(frozen=True)
class Rotation:
    """The turn of every pair of a head's channels at every position: cosines and sines `[t, c/2]` or `[n, 1, t, c/2]`.

    >>> Rotation.at(torch.arange(3), channels=8).cos.shape
    torch.Size([3, 4])
    """

    cos: Tensor
    sin: Tensor

    @staticmethod
    def at(positions: Int[Tensor, "*s"], channels: int) -> Rotation:
        """By p / 10000^(2i/c) at position p; positions `[t]`, or `[n, t]` where rows differ."""
        angles = _angles(positions, channels)
        if positions.ndim == 2:
            angles = angles[:, None]
        return Rotation(angles.cos(), angles.sin())


def rotate(x: Float[Tensor, "n h t c"], rotation: Rotation) -> Float[Tensor, "n h t c"]:
    """Turn the pairs of channels (2i, 2i+1), so that products of queries and keys know only how far apart they are.

    Su et al. 2021, RoFormer (arXiv:2104.09864).

    >>> x = torch.randn(1, 1, 3, 4)
    >>> bool(rotate(x, Rotation.at(torch.tensor([0, 0, 0]), channels=4)).equal(x))
    True
    """
    cos, sin = rotation.cos.to(x.dtype), rotation.sin.to(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Positions(nn.Module):
    """Positions of one kind: added to what comes in ("sinusoidal", "learned"), or a `Rotation` for the attention.

    `length` is how many a learned table holds. Raises SkipwayError for an unknown kind, for heads of an odd width
    under "rotary", and for a sequence longer than the table.

    >>> positions = Positions("learned", width=8, heads=2, length=16)
    >>> positions(torch.zeros(1, 3, 8), torch.arange(3)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, kind: PositionKind, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.kind = choose("kind of positions", kind, ("sinusoidal", "learned", "rotary", "none"))
        self.width, self.head_width, self.length = width, width // heads, length
        if kind == "rotary" and self.head_width % 2:
            raise SkipwayError(f"rotary positions turn pairs of channels, and heads are {self.head_width} wide")
        if kind == "learned":
            self.weight = nn.Parameter(torch.randn(length, width) * 0.02)

    @property
    def limit(self) -> int | None:
        """The longest sequence that these positions can tell, if there is one."""
        return self.length if self.kind == "learned" else None

    def forward(self, x: Float[Tensor, "n t c"], positions: Int[Tensor, "*s"]) -> Float[Tensor, "n t c"]:
        """x with what is added to it."""
        if self.kind == "learned":
            return x + self.weight[positions]
        if self.kind == "sinusoidal":
            return x + sinusoidal(positions, self.width).to(x.dtype)
        return x

    def rotation(self, positions: Int[Tensor, "*s"]) -> Rotation | None:
        """What turns queries and keys, if anything does."""
        return Rotation.at(positions, self.head_width) if self.kind == "rotary" else None

    def check(self, length: int) -> None:
        """Raise SkipwayError for a sequence that is longer than a learned table."""
        if self.limit is not None and length > self.limit:
            raise SkipwayError(
                f"a sequence of {length} tokens, where this model learned {self.limit} positions: shorten it, or build "
                f"the model with length={length} or positions='rotary'"
            )

    def extra_repr(self) -> str:
        return f"{self.kind!r}" + (f", length={self.length}" if self.kind == "learned" else "")


def counted(
    t: int, start: int, padding: Bool[Tensor, "n s"] | None, device: torch.device
) -> Int[Tensor, "t"] | Int[Tensor, "n t"]:
    """The positions of t tokens behind `start` others; padding, on whichever side, is not counted.

    >>> counted(3, 0, torch.tensor([[True, False, False]]), torch.device("cpu"))
    tensor([[0, 0, 1]])
    """
    if padding is None:
        return torch.arange(start, start + t, device=device)
    return ((~padding).long().cumsum(1) - 1).clamp(min=0)[:, start:]
