"""How rough a measured curve or surface is, in two numbers that a convex one has at exactly zero."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Float

from skipway.errors import SkipwayError

# Levels at which the shape of the contours is looked at: quantiles of the loss, so that no scale enters.
_LEVELS = np.linspace(0.05, 0.95, 19)
# Differences of losses below this share of their size are rounding, not curvature.
_ROUNDING = 1e-6


def contour_roughness(loss: Float[np.ndarray, "*grid"]) -> float:
    """How far the contours are from convex: 0 for convex ones, towards 1 where they are scattered islands.

    With S_c = {points of the grid whose loss is at most c} and H_c = {points of the grid in the convex hull of S_c},

        R = mean over c of 1 - |S_c| / |H_c|,    c at the 5 %, 10 %, ... 95 % quantiles of the loss.

    It is what the eye judges in a contour plot. It depends on the order of the losses alone, so neither on their scale
    nor on a logarithm, and is 0 for every convex (and every quasi-convex) loss. A loss that is not finite counts as
    higher than all others. A curve or a surface; raises SkipwayError for fewer than 3 points along an axis.

    >>> x = np.linspace(-1, 1, 21)
    >>> contour_roughness(x[:, None] ** 2 + 3 * x**2), contour_roughness(1 - x**2) > 0.4
    (0.0, True)
    """
    values = _checked(loss)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return float("nan")
    # A level is one of the losses: between two of them nothing changes.
    levels = np.quantile(finite, _LEVELS, method="lower")
    return float(np.mean([1 - (values <= level).sum() / _hull_points(values <= level) for level in levels]))


def negative_curvature(loss: Float[np.ndarray, "*grid"]) -> float:
    """The share of the grid's inner points at which the measured curve or surface bends downwards along some direction.

    That is, where the smallest eigenvalue of the matrix of second differences is negative, by more than rounding: 0
    for every convex quadratic, 1 for every saddle x^2 - y^2. Points beside a loss that is not finite are left out.
    Raises SkipwayError for fewer than 3 points along an axis.

    >>> x = np.linspace(-1, 1, 21)
    >>> negative_curvature(x[:, None] ** 2 + x**2), negative_curvature(x[:, None] ** 2 - x**2)
    (0.0, 1.0)
    """
    values = _checked(loss)
    # Infinite differences are left out below.
    with np.errstate(invalid="ignore", over="ignore"):
        if values.ndim == 1:
            smallest = values[2:] - 2 * values[1:-1] + values[:-2]
            scale = np.abs(np.stack([values[2:], values[1:-1], values[:-2]])).max(0)
        else:
            middle = values[1:-1, 1:-1]
            along_x = values[2:, 1:-1] - 2 * middle + values[:-2, 1:-1]
            along_y = values[1:-1, 2:] - 2 * middle + values[1:-1, :-2]
            mixed = (values[2:, 2:] - values[2:, :-2] - values[:-2, 2:] + values[:-2, :-2]) / 4
            smallest = (along_x + along_y) / 2 - np.hypot((along_x - along_y) / 2, mixed)
            scale = np.abs(np.stack([values[2:, 2:], values[2:, :-2], middle, values[:-2, 2:], values[:-2, :-2]])).max(
                0
            )
        valid = np.isfinite(smallest)
        return float(np.mean(smallest[valid] < -_ROUNDING * scale[valid])) if valid.any() else float("nan")


def _checked(loss: np.ndarray) -> np.ndarray:
    values = np.asarray(loss, dtype=float)
    if values.ndim not in (1, 2) or min(values.shape) < 3:
        raise SkipwayError(f"roughness needs a curve or a surface of at least 3 points an axis, not {values.shape}")
    return values


def _hull_points(inside: np.ndarray) -> int:
    """How many points of the grid lie in the convex hull of those that are marked."""
    if inside.ndim == 1:
        (marked,) = np.nonzero(inside)
        return int(marked[-1] - marked[0] + 1)
    # In integers, so that a point on the hull's edge is inside it without a doubt.
    rows = [(i, np.flatnonzero(row)) for i, row in enumerate(inside)]
    ends = [(i, int(columns[0]), int(columns[-1])) for i, columns in rows if columns.size]
    lower = _chain([(i, low) for i, low, _ in ends])
    upper = _chain([(i, -high) for i, _, high in ends])
    count = 0
    for i in range(ends[0][0], ends[-1][0] + 1):
        count += max(0, -_ceiling(upper, i) - _ceiling(lower, i) + 1)
    return count


def _chain(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The lower hull of points whose first coordinates grow."""
    chain: list[tuple[int, int]] = []
    for x, y in points:
        while len(chain) > 1:
            (x0, y0), (x1, y1) = chain[-2:]
            if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                break
            chain.pop()
        chain.append((x, y))
    return chain


def _ceiling(chain: list[tuple[int, int]], x: int) -> int:
    """The smallest integer that is not below the chain at `x`."""
    for (x0, y0), (x1, y1) in pairwise(chain):
        if x0 <= x <= x1:
            return -((-(y0 * (x1 - x) + y1 * (x - x0))) // (x1 - x0))
    return chain[0][1]
