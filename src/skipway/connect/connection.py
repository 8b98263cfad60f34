"""The algebra: branches read from a stream and write to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.gates import SqueezeExcite
from skipway.connect.layers import normalization, overwritable
from skipway.connect.placement import Placement, Slot
from skipway.connect.site import Site


class Connection(nn.Module):
    """How one branch F reads from a stream and writes to it.

    A stage of branches computes ``stream = open(x)``, then ``stream = write(stream, F(read(stream)))`` for each
    branch with its own connection, then ``y = close(stream)``. The stream is x itself unless a subclass makes more of
    it: then it is no bare tensor, so that `Skip` can tell it from an x. `out_channels` is what the stream carries
    behind this connection.

    >>> import torch
    >>> connection = Connection(out_channels=8)
    >>> bool(connection.read(connection.open(torch.ones(1))) == 1)
    True
    """

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self._lent: dict[str, tuple[nn.Module, str]] = {}

    def open(self, x: Tensor) -> Any:
        """The stream that starts from a stage's input."""
        return x

    def read(self, stream: Any) -> Tensor:
        """What the branch sees of the stream."""
        return stream

    def write(self, stream: Any, value: Tensor, read: Tensor | None = None) -> Any:
        """The stream after the branch put out `value`; `read` is what the branch read, where it is at hand."""
        raise NotImplementedError

    def close(self, stream: Any) -> Tensor:
        """A stage's output from its last stream."""
        return stream

    def leaves_out(self) -> bool:
        """Whether this pass is to do without the branch: drawn anew at each call where that is left to chance."""
        return False

    def without(self, stream: Any) -> Any:
        """The stream past a branch that is not run."""
        raise NotImplementedError

    def forward(self, stream: Any, branch: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Any:
        """Run the branch on what is read, and write: further arguments go to the branch as they are."""
        if self.leaves_out():
            return self.without(stream)
        read = self.read(stream)
        return self.write(stream, branch(read, *args, **kwargs), read)

    def lend(self, part: str, home: nn.Module, name: str) -> None:
        """Let `home` own one of this connection's modules under `name`, the one that published weights know it by.

        The connection goes on using whatever `home` holds there.
        """
        home.register_module(name, self._modules.pop(part, None))
        self._lent[part] = (home, name)

    def part(self, name: str) -> nn.Module | None:
        """One of this connection's modules, lent or not."""
        lent = self._lent.get(name)
        return self._modules.get(name) if lent is None else getattr(*lent)


@runtime_checkable
class Kind(Protocol):
    """A kind of connection, as a value: it can make the connection for a site."""

    def build(self, site: Site) -> Connection: ...


class PlacedConnection(Connection):
    """A connection with norms and activations in the three slots of a `Placement`; alone it is the plain one.

    y = after(reweight(out(F(before(x))))): the stream is what the last branch put out.
    """

    def __init__(
        self, site: Site, placement: Placement, out_channels: int, reweight: SqueezeExcite | None = None
    ) -> None:
        super().__init__(out_channels)
        self.site, self.placement = site, placement
        self.reweight = None if reweight is None else reweight.build(site)
        for slot, channels in (("before", site.in_channels), ("out", site.out_channels), ("after", out_channels)):
            if "norm" in getattr(placement, slot):
                self.add_module(f"norm_{slot}", normalization(placement.norm, channels, site.dims))

    def read(self, stream: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        self.site.check_stream(stream)
        return self._fill("before", self.placement.before, stream, fresh=False)

    def write(
        self, stream: Float[Tensor, "..."], value: Any, read: Float[Tensor, "..."] | None = None, fresh: bool = False
    ) -> Float[Tensor, "..."]:
        """The stream after the branch put out `value`, which may be overwritten if it is `fresh`."""
        value, fresh = self._receive(value, fresh)
        return self._finish(value, fresh)

    def _receive(self, value: Any, fresh: bool) -> tuple[Tensor, bool]:
        """What the branch put out, behind the `out` slot and reweighted, and whether it may be overwritten.

        A ReLU keeps its output for the backward pass, and what came from the branch itself is the user's.
        """
        value = self.site.check_value(value)
        if self.placement.out:
            value = self._fill("out", self.placement.out, value, fresh=False)
            fresh = self.placement.out == ("norm",) and overwritable(self.part("norm_out"))
        reweight = self.part("reweight")
        return (value, fresh) if reweight is None else (reweight(value), True)

    def _finish(self, merged: Tensor, fresh: bool) -> Tensor:
        return self._fill("after", self.placement.after, merged, fresh) if self.placement.after else merged

    def _fill(self, slot: str, content: Slot, x: Tensor, fresh: bool) -> Tensor:
        """Apply what stands in a slot; `fresh` says that x may be overwritten."""
        if "norm" in content:
            norm = self.part(f"norm_{slot}")
            assert norm is not None
            x, fresh = norm(x), overwritable(norm)
        return F.relu(x, inplace=fresh) if "relu" in content else x
