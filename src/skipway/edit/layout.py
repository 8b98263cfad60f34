"""Which axis of a tensor holds channels, told from the operations that made it: what a connection's site needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from skipway.connect import Site
from skipway.errors import SkipwayError
from skipway.graph.ir import Trace

_FIRST = ("conv", "batch_norm", "group_norm", "instance_norm", "max_pool", "avg_pool", "adaptive_", "interpolate")
_LAST = (
    "linear", "layer_norm", "rms_norm", "embedding", "scaled_dot_product_attention", "multi_head_attention", "lstm",
    "gru",
    "rnn_",
)  # fmt: skip


def channel_axis(trace: Trace, operations: Iterable[int]) -> int | None:
    """The axis of channels of what these operations made: 1, -1, or None where nothing tells.

    The last of them that tells does; where none of them does, the first that follows.
    """
    inside = sorted(operations, reverse=True)
    following = range(inside[0] + 1, len(trace.operations)) if inside else ()
    for index in (*inside, *following):
        name = trace.operations[index].name
        if any(part in name for part in _FIRST):
            return 1
        if name.startswith(_LAST):
            return -1
    return None


def site_for(what: str, taken: Sequence[int], given: Sequence[int], axis: int | None, index: int, depth: int) -> Site:
    """The site of a connection whose stream has the shape `taken` and whose branch puts out the shape `given`.

    Raises SkipwayError where it cannot be known which axis holds the channels, and where the shapes fit no site.
    """
    if len(taken) != len(given) or len(taken) < 2:
        raise SkipwayError(f"{what}: the stream is {tuple(taken)} and the branch puts out {tuple(given)}; a connection "
                           "needs two tensors with the same number of axes, two at least")  # fmt: skip
    rank = len(taken)
    if axis is None:
        # Nothing tells; where channels are counted, 2 axes leave no doubt, and 4 or more are maps by custom.
        axis = -1 if rank == 2 else 1 if rank > 3 else None
    if axis is None:
        raise SkipwayError(f"{what}: it cannot be told which axis of {tuple(given)} holds the channels; put a layer "
                           "with weights last, or build it with skipway.Skip(branch, channels=, dims=)")  # fmt: skip
    if axis == -1 or rank == 2:
        if tuple(taken[1:-1]) != tuple(given[1:-1]):
            raise SkipwayError(f"{what}: the branch turns {tuple(taken)} into {tuple(given)}; a skip past tokens "
                               "needs as many of them after the branch as before")  # fmt: skip
        return Site(taken[-1], given[-1], 1, index, depth, 0)
    strides = {_stride(before, after) for before, after in zip(taken[2:], given[2:], strict=True)}
    stride = next(iter(strides)) if len(strides) == 1 else 0
    if rank > 5 or stride < 1:
        raise SkipwayError(f"{what}: the branch turns {tuple(taken)} into {tuple(given)}; a connection can follow a "
                           "branch that divides every side of a map by one whole number, and nothing else")  # fmt: skip
    return Site(taken[1], given[1], stride, index, depth, rank - 2)


def _stride(before: int, after: int) -> int:
    for stride in range(1, before + 1):
        if (before + stride - 1) // stride == after:
            return stride
    return 0
