"""Directions in the space of a model's parameters: random and filter-normalised, or from one model to another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph.state import Inventory

NORMALIZATIONS = ("filter", "layer", "none")
Changes = dict[str, Tensor]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
# What is added to a drawn filter's norm before dividing by it, as published.
_EPSILON = 1e-10


def random_direction(
    model: nn.Module, seed: int, number: int = 0, normalize: str = "filter"
) -> tuple[Changes, tuple[str, ...]]:
    """A Gaussian direction with the scale of each filter, and the names of the parameters that it leaves alone.

    d_i <- d_i * |w_i| / (|d_i| + 1e-10) for every filter i, d ~ N(0, 1) (Li et al. 2018, arXiv 1712.09913, section 4).
    A filter is what makes one output: of a convolution, grouped ones too, all weights of an output channel; of a
    transposed one the same, though its axes are swapped; a row of a linear layer, an embedding or any other matrix.
    `normalize="layer"` scales whole parameters instead, "none" not at all. Biases, parameters of norms, vectors and
    scalars (the learned scales of ReZero or SkipInit among them) stay: their direction is zero. Tied weights are one
    parameter and are moved once; a filter of norm zero has none to be scaled to, and stays.

    The draw depends on `seed`, `number` and the parameter's name alone: not on the device, nor on other parameters.

    >>> direction, ignored = random_direction(nn.Linear(4, 2), seed=0)
    >>> list(direction), ignored
    (['weight'], ('bias',))
    """
    choose("normalisation", normalize, NORMALIZATIONS)
    inventory = Inventory.of(model)
    owners = _owners(inventory)
    changes: Changes = {}
    ignored: list[str] = []
    for name, parameter in inventory.parameters:
        owner = owners[id(parameter)]
        if parameter.ndim < 2 or isinstance(owner, _NORMS) or not parameter.is_floating_point():
            ignored.append(name)
            continue
        weight = parameter.detach()
        drawn = _draw(name, weight.shape, seed, number).to(weight)
        if normalize == "filter":
            size = _norms(weight, owner)
            drawn *= size / (_norms(drawn, owner) + _EPSILON)
        elif normalize == "layer":
            drawn *= weight.norm() / (drawn.norm() + _EPSILON)
        changes[name] = drawn
    return changes, tuple(ignored)


def _owners(inventory: Inventory) -> dict[int, nn.Module]:
    owners: dict[int, nn.Module] = {}
    for _, module in inventory.modules:
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), module)
    return owners


def _draw(name: str, shape: torch.Size, seed: int, number: int) -> Tensor:
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    state = int(np.random.SeedSequence((seed, number, digest)).generate_state(1, np.uint64)[0])
    # Always on the CPU and in single precision, so that every device and precision gets the same direction.
    return torch.randn(shape, generator=torch.Generator().manual_seed(state), dtype=torch.float32)


def _norms(tensor: Tensor, owner: nn.Module) -> Tensor:
    """The norm of each filter, of a shape that broadcasts against the tensor."""
    if isinstance(owner, _TRANSPOSED):
        # (inputs, outputs / groups, *space): an output's filter reaches over its group's inputs.
        grouped = tensor.reshape(owner.groups, tensor.shape[0] // owner.groups, *tensor.shape[1:])
        norms = _norm_over(grouped, [1, *range(3, grouped.ndim)])
        return norms.expand(-1, grouped.shape[1], *[-1] * (grouped.ndim - 2)).reshape(
            tensor.shape[0], tensor.shape[1], *[1] * (tensor.ndim - 2)
        )
    # The Conv1D of GPT-2 is a linear layer that holds its matrix as (inputs, outputs).
    filters = 1 if type(owner).__name__ == "Conv1D" and tensor.ndim == 2 else 0
    return _norm_over(tensor, [axis for axis in range(tensor.ndim) if axis != filters])


def _norm_over(tensor: Tensor, axes: list[int]) -> Tensor:
    return torch.linalg.vector_norm(tensor, dim=axes, keepdim=True)


def state_of(model: nn.Module, other: Any) -> Changes:
    """The parameters and buffers by name of another model, a state dictionary or a weight file, as `model` names them.

    Raises SkipwayError where they do not fit.
    """
    if isinstance(other, (str, Path)):
        import copy

        from skipway.models.weights import load_weights

        scratch = copy.deepcopy(model)
        load_weights(scratch, other)
        other = scratch
    if isinstance(other, nn.Module):
        # Of tied tensors, a model's state dictionary holds all names; the inventory knows each by its first.
        other = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    if not isinstance(other, Mapping):
        raise SkipwayError(
            f"another point is a model, a state dictionary or a weight file, not a {type(other).__name__}"
        )
    inventory = Inventory.of(model)
    state: Changes = {}
    for name, tensor in (*inventory.parameters, *inventory.buffers):
        if name not in other:
            if any(name == buffer for buffer, _ in inventory.buffers):
                continue
            raise SkipwayError(f"the other model has no parameter '{name}'; both must be of one architecture")
        if other[name].shape != tensor.shape:
            raise SkipwayError(
                f"'{name}' is of shape {tuple(tensor.shape)} here and {tuple(other[name].shape)} in the other model; "
                "both must be of one architecture"
            )
        state[name] = other[name].detach().to(tensor)
    return state


def check_direction(model: nn.Module, given: Any) -> Changes:
    """A direction that the user gave, by parameter name; raises SkipwayError where it does not fit the model."""
    if not isinstance(given, Mapping):
        raise SkipwayError(f"a direction is a dictionary of tensors by parameter name, not a {type(given).__name__}")
    own = dict(Inventory.of(model).parameters)
    changes: Changes = {}
    for name, tensor in given.items():
        choose("parameter", name, own)
        if not isinstance(tensor, Tensor) or tensor.shape != own[name].shape:
            raise SkipwayError(f"the direction of '{name}' must be a tensor of shape {tuple(own[name].shape)}")
        if not torch.isfinite(tensor).all():
            raise SkipwayError(f"the direction of '{name}' is not finite")
        changes[name] = tensor.detach().to(own[name])
    return changes


def cosine(a: Changes, b: Changes) -> float:
    """The cosine of the angle between two directions; NaN if one of them is zero.

    >>> cosine({"w": torch.ones(2)}, {"w": torch.tensor([1.0, -1.0])})
    0.0
    """
    product = sum(_dot(a[name], b[name]) for name in a.keys() & b.keys())
    size = [sum(_dot(tensor, tensor) for tensor in part.values()) ** 0.5 for part in (a, b)]
    return product / (size[0] * size[1]) if size[0] and size[1] else float("nan")


def _dot(a: Tensor, b: Tensor) -> float:
    """In double precision, in pieces: a copy of a whole direction in it would be twice the direction's size."""
    pieces = zip(a.flatten().split(2**14), b.flatten().split(2**14), strict=True)
    return sum(float(one.double() @ other.double()) for one, other in pieces)
