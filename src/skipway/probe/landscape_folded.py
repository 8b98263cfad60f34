"""The fastest way over a landscape: the model folded once, with its directions, so that a point is one addition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipway.edit.folding import Folded, fold
from skipway.errors import SkipwayError
from skipway.probe.batches import Batch, Batches
from skipway.probe.plane import Plane

Pieces = Sequence[Sequence[Batch]]
# Constants that are linear in the weights add up to this, relative to their size; products of two weights do not.
_LINEAR = 1e-4


class NotFolded(Exception):
    """The model cannot be folded over this plane; the message says why."""


class FoldedPoints:
    """The model at any point of a plane, as a folded program: its constants are those of the centre plus the steps.

    Norms with frozen statistics go into the weights beside them, and into both directions, once. Raises NotFolded where
    that is not exact: a direction moves a norm, or the constants are not linear in what moves.
    """

    def __init__(self, model: nn.Module, plane: Plane, sets: Sequence[Pieces], dtype: torch.dtype | None):
        if plane.mixes or plane.centre is not None:
            raise NotFolded("norms move with the weights")
        moved = set(plane.names())
        for path, module in model.named_modules():
            if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
                dot = f"{path}." if path else ""
                if any(dot + name in moved for name in module._parameters):
                    raise NotFolded("norms move with the weights")
        with torch.no_grad():
            folded = _fold(model, sets, None)
            own = dict(model.named_parameters())
            centre = folded.constants()
            steps = []
            for vector in plane.vectors:
                ahead = folded.constants({name: own[name].detach() + change for name, change in vector.items()})
                steps.append([after - before for after, before in zip(ahead, centre, strict=True)])
                del ahead
            self._check_linear(folded, own, plane, centre, steps)
            self._folded = folded if dtype is None else _fold(model, sets, dtype)
            self._pack(centre, steps)
            self._cast = self._views if dtype is None else self._in_precision(centre)
        self._constants = list(centre) if dtype is None else list(self._folded.constants())
        for place, view in zip(self._places, self._cast, strict=True):
            self._constants[place] = view

    def at(self, coordinates: Sequence[float]) -> Callable[..., Any]:
        """The function of the model with the weights at these coordinates."""
        self._vector.copy_(self._centre)
        for share, step in zip(coordinates, self._steps, strict=True):
            if share != 0.0:
                self._vector.add_(step, alpha=share)
        if self._cast is not self._views:
            torch._foreach_copy_(self._cast, self._views)  # pyright: ignore[reportPrivateImportUsage]
        constants = tuple(self._constants)
        return lambda *args, **kwargs: self._folded.run(constants, *args, **kwargs)

    def _check_linear(
        self, folded: Folded, own: dict[str, Any], plane: Plane, centre: Sequence[Tensor], steps: list[list[Tensor]]
    ) -> None:
        # Twice each direction at once: what is not linear in one, or mixes both, is off by its own size.
        state = {name: own[name].detach().clone() for name in plane.names()}
        for vector in plane.vectors:
            for name, change in vector.items():
                state[name] += 2 * change
        for number, far in enumerate(folded.constants(state)):
            expected = centre[number] + 2 * sum(step[number] for step in steps)
            if float((far - expected).norm()) > _LINEAR * float(far.norm() + centre[number].norm()):
                raise NotFolded("products of weights were joined")

    def _pack(self, centre: Sequence[Tensor], steps: list[list[Tensor]]) -> None:
        """All constants that move in one vector, each in its own order of memory."""
        self._places = [n for n, tensor in enumerate(centre) if any(bool(step[n].any()) for step in steps)]
        if not self._places:
            raise NotFolded("the directions do not reach the output")
        tensors = [_dense(centre[place]) for place in self._places]
        self._shapes = [(tensor.shape, tensor.stride(), tensor.numel()) for tensor in tensors]
        self._centre = self._flatten(tensors)
        self._steps = []
        while steps:
            step = steps.pop(0)
            self._steps.append(self._flatten([step[place] for place in self._places]))
        self._vector = self._centre.clone()
        self._views = self._split(self._vector)

    def _flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        vector = tensors[0].new_empty(sum(size for _, _, size in self._shapes))
        for view, tensor in zip(self._split(vector), tensors, strict=True):
            view.copy_(tensor)
        return vector

    def _split(self, vector: Tensor) -> list[Tensor]:
        views, start = [], 0
        for shape, stride, size in self._shapes:
            views.append(vector.as_strided(shape, stride, start))
            start += size
        return views

    def _in_precision(self, centre: Sequence[Tensor]) -> list[Tensor]:
        """The places that the low-precision program reads; it must read what the exact one does, rounded."""
        low = self._folded.constants()
        if len(low) != len(centre) or not all(
            a.shape == b.shape and torch.equal(a, b.to(a.dtype)) for a, b in zip(low, centre, strict=True)
        ):
            raise NotFolded("the programs of the two precisions differ")
        return [_dense(low[place]).clone() for place in self._places]


def _fold(model: nn.Module, sets: Sequence[Pieces], dtype: torch.dtype | None) -> Folded:
    first = sets[0][0][0]
    try:
        # Programs of two precisions have to compute with the same constants.
        folded = fold(model, *first.args, dtype=dtype, keep_zeros=True, winograd=False, **first.kwargs)
        for batches in sets:
            for batch in batches:
                for piece in batch:
                    folded.prepare(*piece.args, **piece.kwargs)
    except SkipwayError as error:
        raise NotFolded(str(error).split(";")[0].split(":")[0]) from error
    return folded


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself where it fills its memory without gaps, else a contiguous copy."""
    order = sorted(range(tensor.ndim), key=lambda axis: (tensor.stride(axis), tensor.shape[axis]))
    expected = 1
    for axis in order:
        if tensor.shape[axis] > 1 and tensor.stride(axis) != expected:
            return tensor.contiguous()
        expected *= tensor.shape[axis]
    return tensor


def foldable(batches: Batches, batch_norm: str) -> bool:
    """Whether folding may be tried: statistics stay as they are, and the loss is one of what the model puts out."""
    return batch_norm in ("frozen", "none") and batches.loss.function is not None
