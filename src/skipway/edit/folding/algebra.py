"""The functions that folded constants and affine operations are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_scale(weight: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    """w / sqrt(variance + eps): the factor of a norm whose statistics are fixed."""
    factor = torch.rsqrt(variance + eps)
    return factor if weight is None else weight * factor


def norm_shift(bias: Tensor | None, mean: Tensor, scale: Tensor) -> Tensor:
    """b - mean * scale: what that norm adds."""
    shift = -mean * scale
    return shift if bias is None else bias + shift


def composed_shift(shift: Tensor, scale: Tensor, other: Tensor | None) -> Tensor:
    """t * scale + other."""
    return shift * scale if other is None else shift * scale + other


def spread(tensor: Tensor, n: int) -> Tensor:
    """One number, or n, as n."""
    return tensor.reshape(-1).expand(n)


def scale_outputs(weight: Tensor, scale: Tensor, transposed: bool, groups: int) -> Tensor:
    """A convolution's or linear layer's weight whose outputs are multiplied by `scale`."""
    if not transposed:
        return weight * spread(scale, weight.shape[0]).reshape(-1, *(1,) * (weight.ndim - 1))
    outputs = spread(scale, weight.shape[1] * groups).reshape(groups, 1, weight.shape[1])
    inputs = weight.shape[0] // groups
    factors = outputs.expand(groups, inputs, weight.shape[1]).reshape(weight.shape[0], weight.shape[1])
    return weight * factors.reshape(*factors.shape, *(1,) * (weight.ndim - 2))


def scale_inputs(weight: Tensor, scale: Tensor, transposed: bool, groups: int) -> Tensor:
    """A weight whose inputs are multiplied by `scale` first."""
    if transposed:
        return weight * spread(scale, weight.shape[0]).reshape(-1, *(1,) * (weight.ndim - 1))
    inputs = spread(scale, weight.shape[1] * groups).reshape(groups, 1, weight.shape[1])
    outputs = weight.shape[0] // groups
    factors = inputs.expand(groups, outputs, weight.shape[1]).reshape(weight.shape[0], weight.shape[1])
    return weight * factors.reshape(*factors.shape, *(1,) * (weight.ndim - 2))


def passed_shift(weight: Tensor, shift: Tensor, groups: int, bias: Tensor | None) -> Tensor:
    """The bias of a convolution without padding, or of a linear layer, whose inputs `shift` was added to."""
    taps = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    inputs = spread(shift, taps.shape[1] * groups).reshape(groups, taps.shape[1], 1)
    added = torch.bmm(taps.reshape(groups, -1, taps.shape[1]), inputs).reshape(-1)
    return added if bias is None else added + bias


def added(*parts: Tensor | None) -> Tensor:
    """The sum of what is there."""
    present = [part for part in parts if part is not None]
    total = present[0]
    for part in present[1:]:
        total = total + part
    return total


def affine(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """scale * x + shift, both in the form in which they broadcast."""
    if scale is None:
        return x if shift is None else x + shift
    return x * scale if shift is None else torch.addcmul(shift, x, scale)


def aligned(vector: Tensor, axis: int, ndim: int) -> Tensor:
    """A vector along `axis`, or one number, as it broadcasts against `ndim` axes."""
    return vector if vector.ndim == 0 else vector.reshape(-1, *(1,) * (ndim - 1 - axis))


def embedded(weight: Tensor, before: tuple[int, ...], after: tuple[int, ...]) -> Tensor:
    """A kernel with zeros around it: as many `before` and `after` along each spatial axis."""
    sides = [side for pair in zip(before[::-1], after[::-1], strict=True) for side in pair]
    return torch.nn.functional.pad(weight, sides)


def identity_kernel(scale: Tensor | None, like: Tensor, groups: int) -> Tensor:
    """The kernel of size 1 that hands each channel on, times `scale`, in the groups of a square convolution `like`."""
    outputs, inputs = like.shape[:2]
    kernel = torch.eye(inputs, dtype=like.dtype, device=like.device).repeat(groups, 1)
    if scale is not None:
        kernel = kernel * spread(scale, outputs).reshape(-1, 1)
    return kernel.reshape(outputs, inputs, *(1,) * (like.ndim - 2))


def mean_kernel(n: int, groups: int, window: tuple[int, ...], like: Tensor) -> Tensor:
    """Average pooling of n channels as a convolution's kernel."""
    size = 1
    for side in window:
        size *= side
    inputs = n // groups
    kernel = torch.eye(inputs, dtype=like.dtype, device=like.device).repeat(groups, 1) / size
    return kernel.reshape(n, inputs, *(1,) * len(window)).expand(n, inputs, *window)


def chained(first: Tensor, second: Tensor) -> Tensor:
    """The kernel of one convolution in place of two, one of them of size 1 (or of two linear layers)."""
    if first[0, 0].numel() == 1:
        return torch.einsum("om...,mi->oi...", second, first.reshape(first.shape[:2]))
    return torch.einsum("om,mi...->oi...", second.reshape(second.shape[:2]), first)
