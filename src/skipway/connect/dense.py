"""Dense connection: every branch reads all that was put out before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skipway.connect.connection import Connection
from skipway.connect.site import Site
from skipway.errors import SkipwayError


@dataclass(frozen=True)
class Dense:
    """v_k = F_k([x, v_0, ..., v_{k-1}]), y = [x, v_0, ..., v_{L-1}]: feature reuse by concatenation.

    The stream is the list of maps; each branch appends its own. Huang, Liu, van der Maaten, Weinberger 2016
    (arXiv:1608.06993). Raises SkipwayError at a site with a stride: maps of two sizes cannot be concatenated.

    >>> Dense().build(Site(in_channels=16, out_channels=12)).out_channels
    28
    """

    def build(self, site: Site) -> DenseConnection:
        if site.stride != 1:
            raise SkipwayError(
                f"a dense connection keeps the size of its maps, but this branch has stride {site.stride}: put the "
                "stride into a transition between two dense stages"
            )
        return DenseConnection(site)


class DenseConnection(Connection):
    """A `Dense` at one site; the stream is a tuple of maps."""

    def __init__(self, site: Site) -> None:
        super().__init__(out_channels=site.in_channels + site.out_channels)
        self.site = site

    def open(self, x: Float[Tensor, "..."]) -> tuple[Float[Tensor, "..."], ...]:
        self.site.check_stream(x)
        return (x,)

    def read(self, stream: tuple[Tensor, ...]) -> Float[Tensor, "..."]:
        return stream[0] if len(stream) == 1 else torch.cat(stream, dim=self.site.channel_axis)

    def write(self, stream: tuple[Tensor, ...], value: Any, read: Tensor | None = None) -> tuple[Tensor, ...]:
        value = self.site.check_value(value)
        first, axis = stream[0], self.site.channel_axis
        expected = list(first.shape)
        expected[axis] = self.site.out_channels
        if list(value.shape) != expected:
            raise SkipwayError(
                f"the branch put out {tuple(value.shape)} where {tuple(expected)} can be appended to the stream: give "
                "the branch's own channels, and let it keep the size of its maps"
            )
        return (*stream, value)

    def close(self, stream: tuple[Tensor, ...]) -> Float[Tensor, "..."]:
        return self.read(stream)
