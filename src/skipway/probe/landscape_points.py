"""The loss and the error at a point of a plane, each model and policy measured in its fastest way."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe.batches import Batch, Batches, cut, place_of
from skipway.probe.flat import Moved
from skipway.probe.landscape_folded import FoldedPoints, NotFolded, foldable
from skipway.probe.losses import count_errors, scorer
from skipway.probe.plane import Plane
from skipway.probe.points import Values
from skipway.probe.quiet import quiet

# In low precision, one point in so many is measured in full precision too.
EVERY = 20
_FOLDED, _CHANNELS_LAST = "folded", "channels last"
# How far a fast way may be from the plain one, relative, where it is tried before it is used.
_AGREES, _AGREES_LOW = 1e-4, 0.2
_NEAR = 0.1
# Images are passed through a processor in pieces of so many pixels: more do not stay in its caches from one layer to
# the next. Measured on ResNet-20: pieces of 64 to 128 CIFAR images take 0.75 of the time of 512 at once.
_PIXELS = 2**17
_NAN = float("nan")


@dataclass(frozen=True, eq=False)
class LandscapeTask:
    """The loss over a plane: `points` are coordinates, `sets` the training and perhaps the test data.

    The values of a point are loss and error on each set and, if `dtype` is a lower precision, the training loss in the
    model's own precision at every 20th point. `way` and `pieces` (samples at a time, 0 for whole batches) say how they
    are measured: see `with_way`.
    """

    model: nn.Module
    plane: Plane
    points: np.ndarray
    sets: tuple[Batches, ...]
    batch_norm: str
    calibration: Batches | None = None
    dtype: torch.dtype | None = None
    way: str = "plain"
    pieces: int = 0
    folded: FoldedPoints | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process folds for itself."""
        return {**vars(self), "folded": None}

    @property
    def columns(self) -> int:
        return 2 * len(self.sets) + (self.dtype is not None)

    def measure(self) -> Callable[[int], Values]:
        """A function from the number of a point to its values."""
        run = _Run(self, self.dtype)
        if self.dtype is None:
            return run
        exact = _Run(self, None, run)

        def values(point: int) -> Values:
            return (*run(point), _NAN if point % EVERY else exact(point)[0])

        return values


def with_way(task: LandscapeTask) -> LandscapeTask:
    """The task with how its points are measured: by rules, not by a clock, so that a run goes on as it began.

    "folded": norms and weights in one, channels last, where statistics are frozen and directions leave norms alone;
    "channels last": the model with its weights in one vector, in the layout that is fastest for images on a CPU;
    "plain": the same in the model's own layout. On a CPU, images go through in pieces. What is not plain is compared
    with the plain way at one point before it is used.
    """
    device, _ = place_of(task.model)
    if device.type != "cpu" or not any(isinstance(module, nn.Conv2d) for module in task.model.modules()):
        return task
    first = Batches(task.sets[0].items[:1], task.sets[0].loss)
    near = np.array([[_NEAR] * len(task.plane.vectors)])
    plain = _Run(replace(task, sets=(first,), points=near, calibration=None), None)(0)[0]

    def agrees(tried: LandscapeTask, limit: float) -> bool:
        try:
            found = _Run(replace(tried, sets=(first,), points=near, calibration=None), tried.dtype)(0)[0]
        except (RuntimeError, TypeError, SkipwayError):
            return False
        return math.isfinite(found) and abs(found - plain) <= limit * abs(plain)

    pieces = _pieces(first.items[0])
    task = replace(task, way=_CHANNELS_LAST)
    if pieces and agrees(replace(task, pieces=pieces, dtype=None), _AGREES):
        task = replace(task, pieces=pieces)
    if not foldable(first, task.batch_norm):
        return task
    try:
        laid_out = [_laid_out(part, True, task.pieces) for part in task.sets]
        folded = FoldedPoints(task.model, task.plane, laid_out, task.dtype)
    except (NotFolded, SkipwayError, RuntimeError, TypeError) as reason:
        return replace(task, way=f"{_CHANNELS_LAST} (not folded: {reason})")
    tried = replace(task, way=_FOLDED, folded=folded)
    if agrees(tried, _AGREES if task.dtype is None else _AGREES_LOW):
        return tried
    return replace(task, way=f"{_CHANNELS_LAST} (not folded: the folded loss differs)")


def _pieces(batch: Batch) -> int:
    """How many samples of a batch of images to take at a time: a power of 2, or 0 for all of them."""
    images = [part for part in (*batch.args, *batch.kwargs.values()) if isinstance(part, Tensor) and part.ndim == 4]
    if not images:
        return 0
    count = _PIXELS // max(image.shape[-2] * image.shape[-1] for image in images)
    pieces = 2 ** max(0, count.bit_length() - 1)
    return pieces if 0 < pieces < batch.samples else 0


class _Run:
    """Points measured in one precision; `other` is a run whose data and weights it may share."""

    def __init__(self, task: LandscapeTask, dtype: torch.dtype | None, other: _Run | None = None):
        self._task = task
        self._low = dtype
        self._device = place_of(task.model)[0].type
        self._shares = [batches.shares() for batches in task.sets]
        self._scorers = [[scorer(batches.loss, batch.targets) for batch in batches] for batches in task.sets]
        channels_last = task.way != "plain"
        laid_out = [] if other else [_laid_out(batches, channels_last, task.pieces) for batches in task.sets]
        self._sets = other._sets if other else laid_out
        self._moved: Moved | FoldedPoints
        if task.way == _FOLDED:
            ready = task.folded if dtype == task.dtype else None
            self._moved = ready or FoldedPoints(task.model, task.plane, self._sets, dtype)
            # A folded program computes in its own precision.
            self._low = None
        else:
            self._moved = other._moved if other else Moved(task.model, task.plane, channels_last)
        self._centre = dtype is None and task.plane.centre is None and task.batch_norm != "recalibrated"
        self._calibration = None
        if task.calibration is not None and isinstance(self._moved, Moved):
            self._calibration = [batch for (batch,) in _laid_out(task.calibration, channels_last, 0)]
            self._norms = [
                module
                for module in self._moved.model.modules()
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
            ]

    def __call__(self, point: int) -> Values:
        task = self._task
        where = task.points[point].tolist()
        if self._centre and not any(where):
            # The centre is the model itself, in its own layout and order of operations.
            with quiet(task.model), torch.no_grad():
                whole = [[(batch,) for batch in batches] for batches in task.sets]
                found = [
                    measure_set(task.model, items, shares, batches)
                    for batches, items, shares in zip(task.sets, whole, self._shares, strict=True)
                ]
                return tuple(value for pair in found for value in pair)
        with torch.no_grad(), self._precision():
            model = self._moved.at(where)
            if self._calibration is not None:
                recalibrate(self._norms, model, self._calibration)
            return self._measure(model)

    def _precision(self) -> Any:
        return contextlib.nullcontext() if self._low is None else torch.autocast(self._device, dtype=self._low)

    def _measure(self, model: Callable[..., Any]) -> Values:
        values: list[float] = []
        for items, shares, scorers in zip(self._sets, self._shares, self._scorers, strict=True):
            loss, wrong, counted = 0.0, 0, 0
            for pieces, share, score in zip(items, shares, scorers, strict=True):
                value, errors = score(_output(model, pieces))
                loss += share * value
                if errors is not None:
                    wrong, counted = wrong + errors[0], counted + errors[1]
            values += (loss, wrong / counted if counted else _NAN)
        return tuple(values)


def measure_set(
    model: Callable[..., Any], items: Sequence[Sequence[Batch]], shares: Sequence[float], batches: Batches
) -> tuple[float, float]:
    """The mean loss, and the share of targets told wrong (NaN where they are no classes); batches are in pieces."""
    loss, wrong, counted = 0.0, 0, 0
    for whole, pieces, share in zip(batches, items, shares, strict=True):
        output = _output(model, pieces)
        loss += share * float(batches.loss(output, whole.targets))
        if (errors := count_errors(output, whole.targets)) is not None:
            wrong, counted = wrong + errors[0], counted + errors[1]
    return loss, wrong / counted if counted else _NAN


def _output(model: Callable[..., Any], pieces: Sequence[Batch]) -> Any:
    outputs = [piece.run(model) for piece in pieces]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def recalibrate(norms: list[Any], model: Callable[..., Any], calibration: Sequence[Batch]) -> None:
    """Estimate the running statistics of these BatchNorms anew: a mean over samples of batch statistics."""
    with _in_training(norms):
        seen = 0
        for norm in norms:
            norm.running_mean.zero_()
            norm.running_var.fill_(1.0)
        for batch in calibration:
            seen += batch.samples
            for norm in norms:
                # Each batch counts by its samples; a constant momentum would forget the first ones.
                norm.momentum = batch.samples / seen
            try:
                batch.run(model)
            except ValueError as error:
                raise SkipwayError(f"BatchNorm cannot be recalibrated on these batches: {error}") from error


@contextlib.contextmanager
def _in_training(norms: list[Any]) -> Iterator[None]:
    before = [(norm.momentum, norm.training) for norm in norms]
    try:
        for norm in norms:
            norm.training = True
        yield
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum, norm.training = momentum, training


def _laid_out(batches: Batches, channels_last: bool, pieces: int) -> list[tuple[Batch, ...]]:
    """Each batch in pieces of so many samples, whole for 0, in the layout that is asked for."""

    def lay(item: Any) -> Any:
        if channels_last and isinstance(item, Tensor) and item.ndim == 4 and item.is_floating_point():
            return item.contiguous(memory_format=torch.channels_last)
        return item

    laid: list[tuple[Batch, ...]] = []
    for batch in batches:
        args, kwargs = tuple(map(lay, batch.args)), {key: lay(part) for key, part in batch.kwargs.items()}
        whole = Batch(args, kwargs, batch.targets, batch.samples)
        starts = range(0, batch.samples, pieces or batch.samples)
        laid.append(tuple(cut(whole, start, min(pieces or batch.samples, batch.samples - start)) for start in starts))
    return laid
