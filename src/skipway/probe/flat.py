"""`Moved`: a copy of a model whose moving tensors are views of one vector, so that a step is one addition."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph.state import Inventory
from skipway.probe.directions import Changes
from skipway.probe.plane import Plane


class Moved:
    """A model's copy at any point of a plane.

    The model itself is only read. Beyond it, this holds one copy and one vector for each direction: the weights at a
    point are copied from the model and the directions added, each in one operation on all of them.
    """

    def __init__(self, model: nn.Module, plane: Plane, channels_last: bool = False):
        inventory = Inventory.of(model)
        own = {name: tensor.detach() for name, tensor in (*inventory.parameters, *inventory.buffers)}
        names = [name for name in own if name in set(plane.names())]
        first = own[names[0]]
        if any(own[name].dtype != first.dtype or own[name].device != first.device for name in names):
            raise SkipwayError("the model's weights are of several precisions or on several devices; bring it to one")
        self._plane = plane
        self._formats = [_order(own[name], channels_last) for name in names]
        self._sizes = [own[name].numel() for name in names]
        self._sources = [(plane.centre or {}).get(name, own[name]) for name in names]
        # The directions first: while one is laid out it is held twice.
        self._steps = [self._flatten(names, changes, first) for changes in plane.vectors]
        self._vector = first.new_empty(sum(self._sizes))
        self._views = self._split(self._vector)
        places = dict(zip(names, self._views, strict=True))
        memo: dict[int, Any] = {}
        for name, tensor in inventory.parameters:
            if name in places:
                memo[id(tensor)] = nn.Parameter(places[name], requires_grad=False)
        for name, tensor in inventory.buffers:
            if name in places:
                memo[id(tensor)] = places[name]
        # deepcopy asks the memo before it copies, so that the copy is built around the views.
        with torch.no_grad():
            self._vector.zero_()
            try:
                self.model = copy.deepcopy(model, memo)
            except Exception as error:
                raise SkipwayError(
                    f"the model cannot be copied ({type(error).__name__}: {error}), which moving its weights needs; "
                    "give the plain module out of its wrapper"
                ) from error
        if channels_last:
            views = {id(part) for part in memo.values()}
            for parameter in self.model.parameters():
                if parameter.ndim == 4 and id(parameter) not in views:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.model.requires_grad_(False)
        for module in self.model.modules():
            module.training = False
        self._variances = [
            module.running_var
            for module in self.model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and isinstance(module.running_var, Tensor)
        ]

    def at(self, coordinates: Sequence[float]) -> nn.Module:
        """The copy, with the weights at these coordinates."""
        whole, *shares = self._plane.shares(coordinates)
        with torch.no_grad():
            torch._foreach_copy_(self._views, self._sources)  # pyright: ignore[reportPrivateImportUsage]
            if whole != 1.0:
                self._vector.mul_(whole)
            for share, step in zip(shares, self._steps, strict=True):
                if share != 0.0:
                    self._vector.add_(step, alpha=share)
            if self._plane.mixes:
                for variance in self._variances:
                    # Beyond either model, a line through two variances may fall below zero.
                    variance.clamp_(min=0.0)
        return self.model

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split(self._sizes)
        return [part.view(shape).permute(order) for part, (shape, order) in zip(parts, self._formats, strict=True)]

    def _flatten(self, names: list[str], changes: Changes, like: Tensor) -> Tensor:
        vector = like.new_zeros(sum(self._sizes))
        for name, view in zip(names, self._split(vector), strict=True):
            if name in changes:
                view.copy_(changes[name])
                # From here on the direction is held once, here.
                changes[name] = view
        return vector


def _order(tensor: Tensor, channels_last: bool) -> tuple[list[int], list[int]]:
    """In which shape a tensor lies in the vector, and the permutation that brings it back."""
    if channels_last and tensor.ndim == 4:
        n, c, h, w = tensor.shape
        return [n, h, w, c], [0, 3, 1, 2]
    return list(tensor.shape), list(range(tensor.ndim))
