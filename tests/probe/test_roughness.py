"""The two numbers of roughness on curves and surfaces for which they are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial import ConvexHull, Delaunay

from skipway.errors import SkipwayError
from skipway.probe import contour_roughness, negative_curvature

X = np.linspace(-1, 1, 31)
GRID = np.meshgrid(X, X[::2], indexing="ij")


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.floats(-1, 1), st.floats(-1, 1))
def test_convex_surfaces_have_none(entries: list[float], a: float, b: float):
    x, y = GRID[0] - a, GRID[1] - b
    # A positive definite form, from its Cholesky factor.
    loss = (entries[0] * x + entries[1] * y) ** 2 + (entries[2] * y) ** 2 + 0.1 * (x**2 + y**2) + 1
    assert negative_curvature(loss) == 0
    assert contour_roughness(loss) == pytest.approx(0, abs=1e-12)
    # The order of losses is all that enters, so neither a logarithm nor a spike that is cut changes it.
    assert contour_roughness(np.exp(np.minimum(loss, 50))) == pytest.approx(0, abs=1e-12)


def test_surfaces_that_are_known():
    x, y = GRID
    assert negative_curvature(x**2 - y**2) == 1
    assert negative_curvature(x + y) == 0
    assert negative_curvature(-(x**2)) == 1
    # A cubic bends down where x < 0: 14 of 29 inner columns, x = 0 being flat.
    assert negative_curvature(x**3 + 0 * y) == pytest.approx(14 / 29)
    # Two basins at x = -1/2 and 1/2: half of |x| lies inside the inflections at 1 / sqrt(12).
    double = (x**2 - 0.25) ** 2
    assert negative_curvature(double) == pytest.approx(1 / np.sqrt(12), abs=1 / 15)


@pytest.mark.parametrize("seed", range(4))
def test_downward_bends_are_those_of_the_second_derivatives(seed: int):
    """Sums of waves, of which numpy finds the eigenvalues of the Hessian as it stands in a textbook."""
    generator = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, 121)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    loss, hessian = np.zeros_like(x), np.zeros((*x.shape, 2, 2))
    for a, b, phase, height in generator.normal(size=(5, 4)):
        loss += height * np.cos(a * x + b * y + phase)
        hessian -= (height * np.cos(a * x + b * y + phase))[..., None, None] * np.outer((a, b), (a, b))
    expected = (np.linalg.eigvalsh(hessian)[1:-1, 1:-1, 0] < 0).mean()
    assert negative_curvature(loss) == pytest.approx(expected, abs=2e-3)


def test_curves_that_are_known():
    assert contour_roughness(X**2) == negative_curvature(X**2) == 0
    assert negative_curvature(-(X**2)) == 1
    # Points at or below each level lie at both ends, and their hull is everything: the levels' own shares remain.
    levels = np.linspace(0.05, 0.95, 19)
    expected = np.mean([np.mean(-np.quantile(-(X**2), q, method="lower") > X**2) for q in levels])
    assert contour_roughness(-(X**2)) == pytest.approx(expected)


def test_rougher_is_more():
    x, y = GRID
    bowl = x**2 + y**2
    waves = [bowl + height * np.sin(12 * x) * np.cos(12 * y) for height in (0.0, 0.1, 0.3, 1.0)]
    for number in (contour_roughness, negative_curvature):
        found = [number(wave) for wave in waves]
        assert found == sorted(found)
        assert found[0] == 0
        assert found[-1] > 0.3


@given(arrays.arrays(float, st.tuples(st.integers(3, 7), st.integers(3, 7)), elements=st.integers(0, 5)))
def test_the_hull_against_scipy(loss: Any):
    levels = np.quantile(loss, np.linspace(0.05, 0.95, 19), method="lower")
    points = np.argwhere(np.ones_like(loss, dtype=bool))
    shares = []
    for level in levels:
        inside = np.argwhere(loss <= level)
        rank = np.linalg.matrix_rank(inside - inside[0])
        if rank < 2:
            # On a line, or a point: lattice points between the ends.
            step = inside[-1] - inside[0]
            count = int(np.gcd(*step)) + 1
        else:
            hull = Delaunay(inside[ConvexHull(inside).vertices])
            count = int((hull.find_simplex(points, tol=1e-9) >= 0).sum())
        shares.append(1 - len(inside) / count)
    assert contour_roughness(loss) == pytest.approx(np.mean(shares))


def test_what_diverged():
    loss = GRID[0] ** 2 + GRID[1] ** 2
    broken = loss.copy()
    broken[0, 0], broken[-1, -1] = np.nan, np.inf
    assert negative_curvature(broken) == 0
    assert contour_roughness(broken) == 0
    assert np.isnan(contour_roughness(np.full((4, 4), np.nan)))
    assert np.isnan(negative_curvature(np.full((4, 4), np.nan)))


@pytest.mark.parametrize("shape", [(2,), (2, 5), (3, 3, 3)])
def test_too_few_points(shape: tuple[int, ...]):
    for number in (contour_roughness, negative_curvature):
        with pytest.raises(SkipwayError, match="at least 3 points an axis"):
            number(np.zeros(shape))
