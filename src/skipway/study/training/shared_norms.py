"""Batch norms over the examples of all processes that torchrun started, so that as many as one likes train as one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from skipway.connect.drop import Dropper
from skipway.torchrun import processes


@contextlib.contextmanager
def shared_norms(network: nn.Module) -> Iterator[None]:
    """Let batch norms that train take mean and variance over the batch of all processes together.

    torch's own `SyncBatchNorm` does so on accelerators alone. A network whose branches stochastic depth leaves out
    batch by batch stays as it is: one process would wait for another that does without the branch in this step.
    """
    found: list[nn.Module] = []
    if processes() > 1 and not _draws_branches(network):
        found = [module for module in network.modules() if _is_plain(module)]
    for norm in found:
        norm.forward = functools.partial(_normalise, norm)
    try:
        yield
    finally:
        for norm in found:
            del norm.forward


def _draws_branches(network: nn.Module) -> bool:
    return any(isinstance(module, Dropper) and module.rate and module.mode == "batch" for module in network.modules())


def _is_plain(module: nn.Module) -> bool:
    return (
        isinstance(module, _BatchNorm) and type(module).forward is _BatchNorm.forward and "forward" not in vars(module)
    )


def _normalise(norm: Any, x: Tensor) -> Tensor:
    if not norm.training:
        return _BatchNorm.forward(norm, x)
    norm._check_input_dim(x)
    axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    count = exact.new_tensor([x.numel() / x.shape[1]])
    *sums, count = _over_all(torch.cat([exact.sum(axes), count])).tensor_split([x.shape[1]])
    mean = sums[0] / count
    centred = exact - mean.view(shape)
    var = _over_all(centred.square().sum(axes)) / count
    y = centred * (var + norm.eps).rsqrt().view(shape)
    if norm.weight is not None:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    if norm.track_running_stats and norm.running_mean is not None:
        with torch.no_grad():
            _move(norm, mean, var * (count / (count - 1).clamp(min=1)))
    return y.to(x.dtype)


def _move(norm: Any, mean: Tensor, var: Tensor) -> None:
    """One step of the running statistics, as the norm itself would make it."""
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(var.to(norm.running_var.dtype), share)


def _over_all(x: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow back to each."""
    return _Sum.apply(x)  # pyright: ignore[reportReturnType]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return _summed(gradients[0])


def _summed(x: Tensor) -> Tensor:
    import torch.distributed as dist

    total = x.clone()
    dist.all_reduce(total)
    return total
