"""What modules take in and put out, told from their layers without running them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from torch import nn

from skipway.connect import Site
from skipway.errors import SkipwayError

_MAPS = {
    nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3,
    nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3,
}  # fmt: skip
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class Ends(NamedTuple):
    """Channels in and out, the stride and the number of spatial axes of one layer."""

    taken: int
    given: int
    stride: int
    dims: int


def static_site(what: str, modules: Sequence[nn.Module], index: int, depth: int) -> Site:
    """The site of a connection around modules that run one after the other.

    The first of their layers that has channels tells what comes in, the last what goes out; strides multiply. Raises
    SkipwayError where there is no such layer, and where strides stand in ways beside each other.
    """
    layers = [ends for module in modules for ends in _layers(module)]
    if not layers:
        raise SkipwayError(
            f"{what}: none of its layers tells how many channels it has; give graph=skipway.trace(model, inputs)"
        )
    in_a_row = all(one.given == other.taken for one, other in pairwise(layers))
    if not in_a_row and max(layer.stride for layer in layers) > 1:
        raise SkipwayError(
            f"{what}: its layers do not follow one another in a row, so it cannot be told how they shrink the map; "
            "give graph=skipway.trace(model, inputs)"
        )
    dims = max(layer.dims for layer in layers)
    strides = [layer.stride for layer in layers]
    strides += [_pooled(pool) for module in modules for pool in module.modules() if isinstance(pool, _POOLS)]
    return Site(layers[0].taken, layers[-1].given, prod(strides) if dims else 1, index, depth, dims)


def _layers(module: nn.Module) -> Iterator[Ends]:
    if isinstance(module, nn.MultiheadAttention):
        yield Ends(module.embed_dim, module.embed_dim, 1, 0)
        return
    dims = next((dims for kind, dims in _MAPS.items() if isinstance(module, kind)), None)
    if isinstance(module, nn.modules.conv._ConvNd):
        if isinstance(module, nn.modules.conv._ConvTransposeNd) and max(module.stride) > 1:
            raise SkipwayError(f"{type(module).__name__} enlarges the map, and no shortcut of ours follows it there")
        yield Ends(module.in_channels, module.out_channels, max(module.stride), dims or len(module.kernel_size))
    elif isinstance(module, nn.Linear):
        yield Ends(module.in_features, module.out_features, 1, 0)
    elif isinstance(module, nn.LayerNorm):
        yield Ends(module.normalized_shape[-1], module.normalized_shape[-1], 1, 0)
    elif dims is not None:
        channels = int(module.num_features)  # pyright: ignore[reportArgumentType]
        yield Ends(channels, channels, 1, dims)
    else:
        for child in module.children():
            yield from _layers(child)


def _pooled(pool: nn.Module) -> int:
    stride = pool.stride
    return int(max(stride)) if isinstance(stride, tuple) else int(stride)  # pyright: ignore[reportArgumentType]
