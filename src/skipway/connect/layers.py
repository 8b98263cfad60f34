"""The few layers connections are made of, for maps of 1 to 3 spatial axes and for tokens."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.site import Site
from skipway.errors import SkipwayError, choose

NormKind = Literal["batch", "layer", "group", "instance", "rms"]

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
_BATCH_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_OVERWRITABLE = frozenset(
    {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm}
)


class _AvgPool3d(nn.AvgPool3d):
    """Takes axes shorter than its window too, as the pools of one and two axes do."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self.stride, int)
        window = [min(self.stride, size) for size in input.shape[2:]]
        return F.avg_pool3d(input, window, self.stride, 0, self.ceil_mode, self.count_include_pad)


_AVERAGE_POOLS: dict[int, type[nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: _AvgPool3d}


def convolution(dims: int) -> type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]:
    """The convolution over as many spatial axes."""
    return _CONVOLUTIONS[dims]


def pointwise(in_channels: int, out_channels: int, dims: int, stride: int = 1, bias: bool = False) -> nn.Module:
    """A linear map of the channels at every position: a 1x1 convolution, or `nn.Linear` for tokens."""
    if dims == 0:
        return nn.Linear(in_channels, out_channels, bias=bias)
    return _CONVOLUTIONS[dims](in_channels, out_channels, kernel_size=1, stride=stride, bias=bias)


def normalization(kind: NormKind | None, channels: int, dims: int) -> nn.Module:
    """A norm over `channels`; None is the usual one: batch norm for maps, layer norm for tokens.

    For maps, "layer" is group norm with one group, "instance" with one a channel, and "group" has 32 groups, or fewer
    where 32 does not divide.
    """
    if kind is None:
        kind = "batch" if dims else "layer"
    choose("norm", kind, ("batch", "layer", "group", "instance", "rms"))
    if kind == "batch" and dims:
        return _BATCH_NORMS[dims](channels)
    if kind == "layer":
        return nn.GroupNorm(1, channels) if dims else nn.LayerNorm(channels)
    if kind == "group" and dims:
        return nn.GroupNorm(math.gcd(32, channels), channels)
    if kind == "instance" and dims:
        return nn.GroupNorm(channels, channels)
    if kind == "rms" and not dims:
        return nn.RMSNorm(channels)
    raise SkipwayError(
        f"norm '{kind}' is not for {'maps' if dims else 'tokens'}: "
        + ("allowed are batch, layer, group, instance" if dims else "allowed are layer, rms")
    )


def average_pool(site: Site) -> nn.Module:
    """Mean over windows of the stride; a ragged border averages what is there, as ResNet-D's shortcut does."""
    return _AVERAGE_POOLS[site.dims](site.stride, stride=site.stride, ceil_mode=True, count_include_pad=False)


def overwritable(norm: nn.Module | None) -> bool:
    """Whether what a norm put out may be overwritten: these keep their input for the backward pass, not their output.

    What a user put in a norm's place is not trusted so: an identity hands on the stream itself, an activation needs
    its output again.
    """
    return type(norm) in _OVERWRITABLE


def hands_on(module: nn.Module | None) -> bool:
    """Whether a module gives back what it is given, and has no hook that watches it do so."""
    return type(module) is nn.Identity and not (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def asked_for_again() -> bool:
    """Whether a backward pass may ask for what is computed now, so that it must not be overwritten.

    Where something watches the operations (a trace, an edit planned on one), they are the same without gradients.
    """
    return torch.is_grad_enabled() or torch._C._len_torch_function_stack() > 0


def spatial_mean(x: Tensor, dims: int) -> Tensor:
    """The mean of a map over its spatial axes, or of tokens `[n, t, c]` over t, keeping the axes."""
    axes = tuple(range(2, 2 + dims)) if dims else tuple(range(1, x.ndim - 1))
    # Over no axes torch would take the mean of everything.
    return x.mean(dim=axes, keepdim=True) if axes else x


def along_channels(vector: Float[Tensor, " c"], dims: int) -> Tensor:
    """View a vector of one number a channel so that it broadcasts against a map or tokens."""
    return vector.view(-1, *(1,) * dims)
