"""`Plane`: the line or plane of weights that a landscape or a curvature map runs over."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph.state import Inventory
from skipway.probe.directions import Changes, check_direction, cosine, random_direction, state_of

if TYPE_CHECKING:
    from skipway.probe.trajectory import Trajectory

BATCH_NORMS = ("frozen", "interpolated", "recalibrated")
_MARGIN = 0.15


@dataclass(frozen=True, eq=False)
class Plane:
    """Points in the space of a model's tensors, by one or two coordinates.

    Where `mixes` is false, (a, b) is centre + a * vectors[0] + b * vectors[1]; where it is true, the vectors are
    points themselves and (a, b) is (1 - a - b) * centre + a * vectors[0] + b * vectors[1]. `centre` holds what differs
    from the model; `kind` says in a word where the plane came from.
    """

    kind: str
    vectors: tuple[Changes, ...]
    mixes: bool
    labels: tuple[str, ...]
    span: tuple[tuple[float, float], ...]
    ignored: tuple[str, ...] = ()
    centre: Changes | None = None
    path: np.ndarray | None = None
    drops: tuple[int, ...] = ()

    def shares(self, coordinates: Sequence[float]) -> tuple[float, ...]:
        """What the centre and each vector are multiplied by at these coordinates."""
        return (1.0 - sum(coordinates) if self.mixes else 1.0, *map(float, coordinates))

    def names(self) -> list[str]:
        """The tensors that any point moves."""
        return list(dict.fromkeys(name for part in (*self.vectors, self.centre or {}) for name in part))

    def cosine(self) -> float:
        """The cosine of the angle between the two vectors; NaN for a line, and for mixtures."""
        return cosine(*self.vectors) if len(self.vectors) == 2 and not self.mixes else float("nan")


def make_plane(
    model: nn.Module,
    dims: int | None,
    other: Any,
    directions: Any,
    normalize: str,
    seed: int,
    batch_norm: str,
) -> Plane:
    """The plane that the arguments of a landscape ask for; raises SkipwayError where they ask for none or for two."""
    choose("BatchNorm policy", batch_norm, BATCH_NORMS)
    if dims not in (None, 1, 2):
        raise SkipwayError(f"dims={dims}: a landscape has 1 dimension or 2")
    if other is not None and directions is not None:
        raise SkipwayError("give other models or directions, not both")
    if batch_norm == "interpolated" and other is None:
        raise SkipwayError("batch_norm='interpolated' is between models: give other=, or 'frozen' or 'recalibrated'")
    if other is not None:
        plane = _between(model, other, batch_norm == "interpolated")
    elif directions is None:
        drawn = [random_direction(model, seed, number, normalize) for number in range(dims or 2)]
        if not drawn[0][0]:
            raise SkipwayError(
                "the model has no weight matrix or filter to move: all its parameters are vectors or norms"
            )
        labels = tuple(f"direction {number + 1}" for number in range(len(drawn)))
        span = ((-1.0, 1.0),) * len(drawn)
        plane = Plane("random", tuple(changes for changes, _ in drawn), False, labels, span, drawn[0][1])
    elif hasattr(directions, "plane_of"):
        plane = _along(model, directions)
    else:
        if isinstance(directions, (dict, Tensor)) or not isinstance(directions, Iterable):
            raise SkipwayError("directions are a list of one or two dictionaries of tensors, or a trajectory")
        given = tuple(check_direction(model, part) for part in directions)
        labels = tuple(f"given direction {number + 1}" for number in range(len(given)))
        plane = Plane("given", given, False, labels, ((-1.0, 1.0),) * len(given))
    if not plane.names():
        raise SkipwayError("the directions move no parameter: name some and how far they go")
    if len(plane.vectors) not in (1, 2) or dims not in (None, len(plane.vectors)):
        wanted = "1 or 2" if dims is None else str(dims)
        raise SkipwayError(f"{len(plane.vectors)} directions were given; a landscape of this kind needs {wanted}")
    return plane


def _between(model: nn.Module, other: Any, buffers: bool) -> Plane:
    others = list(other) if isinstance(other, (list, tuple)) else [other]
    inventory = Inventory.of(model)
    moved = [name for name, tensor in inventory.parameters if tensor.is_floating_point()]
    if buffers:
        # Counters and masks are no points between which another could lie.
        moved += [name for name, tensor in inventory.buffers if tensor.is_floating_point()]
    states = []
    for part in others:
        state = state_of(model, part)
        states.append({name: state[name] for name in moved if name in state})
    labels = ("t: 0 this model, 1 the other",)
    if len(states) != 1:
        labels = tuple(f"share of model {number + 2}" for number in range(len(states)))
    return Plane("between models", tuple(states), True, labels, ((-0.5, 1.5),) * len(states))


def _along(model: nn.Module, trajectory: Trajectory) -> Plane:
    centre, vectors = trajectory.plane_of(model)
    low, high = trajectory.coordinates.min(0), trajectory.coordinates.max(0)
    room = _MARGIN * np.maximum(high - low, 1e-12)
    span = tuple((float(a), float(b)) for a, b in zip(low - room, high + room, strict=True))
    return Plane(
        "trajectory", vectors, False, trajectory.labels, span, centre=centre, path=trajectory.coordinates,
        drops=trajectory.drops,
    )  # fmt: skip


def coordinates(plane: Plane, steps: Any, span: Any) -> tuple[np.ndarray, ...]:
    """The coordinates along each axis; raises SkipwayError where steps or span do not say them."""
    axes = len(plane.vectors)
    counts = tuple(steps) if isinstance(steps, (tuple, list)) else (steps,) * axes
    if len(counts) != axes or not all(isinstance(count, int) and count >= 1 for count in counts):
        raise SkipwayError(f"steps={steps!r}: a number of points, at least 1, or one for each of {axes} axes")
    bounds: Any = plane.span if span is None else span
    if isinstance(bounds, (int, float)):
        bounds = ((-abs(bounds), abs(bounds)),) * axes
    elif len(bounds) == 2 and all(isinstance(bound, (int, float)) for bound in bounds):
        bounds = (tuple(bounds),) * axes
    if len(bounds) != axes or not all(len(pair) == 2 and pair[0] < pair[1] for pair in bounds):
        raise SkipwayError(
            f"span={span!r}: give r for -r to r, a pair (from, to), or such a pair for each of {axes} axes"
        )
    return tuple(_spread(float(low), float(high), count) for (low, high), count in zip(bounds, counts, strict=True))


def _spread(low: float, high: float, count: int) -> np.ndarray:
    values = np.linspace(low, high, count) if count > 1 else np.array([0.0 if low <= 0 <= high else low])
    # The centre is exactly the centre, and another model exactly that model.
    for exact in (0.0, 1.0):
        values[np.abs(values - exact) < 1e-9 * (high - low)] = exact
    return values


def fingerprint(parts: Iterable[Any]) -> str:
    """A hash of tensors and of nested containers of them, in order."""
    digest = hashlib.sha256()
    _digest(parts, digest)
    return digest.hexdigest()[:16]


def _digest(item: Any, digest: Any) -> None:
    if isinstance(item, Tensor):
        digest.update(repr((tuple(item.shape), str(item.dtype))).encode())
        digest.update(item.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(item, dict):
        for key, part in item.items():
            digest.update(repr(key).encode())
            _digest(part, digest)
    elif isinstance(item, (str, int, float, type(None))):
        digest.update(repr(item).encode())
    elif isinstance(item, Iterable):
        for part in item:
            _digest(part, digest)
    else:
        digest.update(type(item).__name__.encode())
