"""Branches under connections: one (`Skip`), or a stage of them (`Stack`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.connection import Connection, Kind
from skipway.connect.presets import resolve
from skipway.connect.site import Site
from skipway.errors import SkipwayError


class Skip(nn.Module):
    """One branch of yours under a connection: y = close(write(open(x), F(read(open(x))))).

    A stream that is open already, as between the branches of a `Stack`, stays open.

    `channels` is what comes in, `out_channels` (default: the same) what the branch puts out, `stride` how much it
    shrinks the map; `dims` is 2 for images, 1 or 3 for other maps, 0 for tokens whose channels come last. `index` and
    `depth` place it among its like, for choices that follow depth. Further arguments of a call go to the branch.

    Raises SkipwayError for an unknown name, or a connection that cannot serve these shapes.

    >>> import torch
    >>> block = Skip(nn.Linear(64, 64), skip="rezero", channels=64, dims=0)
    >>> bool((block(torch.ones(2, 64)) == 1).all())
    True
    """

    branch: Callable[..., Any]
    connection: Connection

    def __init__(
        self,
        branch: nn.Module | Callable[..., Any],
        skip: str | Kind = "residual",
        channels: int = 0,
        out_channels: int | None = None,
        stride: int = 1,
        dims: int = 2,
        index: int = 0,
        depth: int = 1,
    ) -> None:
        super().__init__()
        if not callable(branch):
            raise SkipwayError(f"a branch is a module or a function of a tensor, not {type(branch).__name__}")
        if channels == 0:
            raise SkipwayError("say how many channels the stream has: channels=64, for one")
        site = Site(channels, channels if out_channels is None else out_channels, stride, index, depth, dims)
        self.branch = branch
        self.connection = resolve(skip).build(site)

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        alone = isinstance(x, Tensor)
        stream = self.connection(self.connection.open(x) if alone else x, self.branch, *args, **kwargs)
        return self.connection.close(stream) if alone else stream


class Stack(nn.Module):
    """A stage: branches F_0 ... F_{L-1} on one stream, all under one kind of connection.

    `channels` is what the stage takes in; `branch_channels` what the branches put out (one number, one a branch, or
    the channels of the stream before each), `strides` likewise. Branches that are `Skip`s already keep their own
    connection. Further arguments of a call (masks, conditioning) go to every branch.

    Raises SkipwayError for no branches, lists of the wrong length, and what `Skip` raises.

    >>> import torch
    >>> stack = Stack([nn.Conv2d(8 + 4 * k, 4, 1) for k in range(3)], skip="dense", channels=8, branch_channels=4)
    >>> stack(torch.ones(1, 8, 5, 5)).shape
    torch.Size([1, 20, 5, 5])
    """

    def __init__(
        self,
        branches: Iterable[nn.Module | Callable[..., Any]],
        skip: str | Kind = "residual",
        channels: int = 0,
        branch_channels: int | Sequence[int] | None = None,
        strides: int | Sequence[int] = 1,
        dims: int = 2,
    ) -> None:
        super().__init__()
        given = list(branches)
        if not given:
            raise SkipwayError("a stack needs at least one branch")
        kind = resolve(skip)
        widths = _one_each(branch_channels, len(given), "branch_channels")
        steps = _one_each(strides, len(given), "strides")
        for index, (branch, width, step) in enumerate(zip(given, widths, steps, strict=True)):
            if not isinstance(branch, Skip):
                stride = 1 if step is None else step
                branch = Skip(branch, kind, channels, width, stride, dims, index, len(given))
            channels = branch.connection.out_channels
            self.add_module(str(index), branch)
        self.out_channels = channels

    def forward(self, x: Float[Tensor, "..."], *args: Any, **kwargs: Any) -> Float[Tensor, "..."]:
        stream: Any = None
        connection: Connection | None = None
        for skip in self:
            if connection is None:
                stream = skip.connection.open(x)
            elif type(connection).open is not type(skip.connection).open:
                # Skips of one's own may run on streams of different kinds: one ends where the next begins.
                stream = skip.connection.open(connection.close(stream))
            connection = skip.connection
            stream = skip(stream, *args, **kwargs)
        assert connection is not None
        return connection.close(stream)

    def __iter__(self) -> Iterator[Skip]:
        return cast("Iterator[Skip]", iter(self._modules.values()))

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: int) -> Skip:
        return list(self)[index]


def _one_each(given: int | Sequence[int] | None, n: int, name: str) -> list[int | None]:
    if given is None or isinstance(given, int):
        return [given] * n
    if len(given) != n:
        raise SkipwayError(f"{name} has {len(given)} entries for {n} branches: give one number, or one a branch")
    return list(given)
