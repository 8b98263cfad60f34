"""Lanczos, Hutch++ and quadrature on matrices whose spectrum is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skipway.probe.lanczos import Ends, extreme_eigenvalues, quadrature, random_vector, trace


def matrix(spectrum: Any, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(np.asarray(spectrum, dtype=float))
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64)).Q
    return (q * values) @ q.T


def ends(a: Tensor, top: int, bottom: int, tolerance: float = 1e-8, most: int = 10_000, seed: int = 0) -> Ends:
    generator = torch.Generator().manual_seed(seed)
    return extreme_eigenvalues(lambda v: a @ v, a[0], top, bottom, tolerance, most, generator)


class TestEnds:
    @settings(max_examples=40)
    @given(st.integers(1, 60), st.integers(0, 4), st.integers(0, 4), st.integers(0, 1000))
    def test_against_eigvalsh(self, n: int, top: int, bottom: int, seed: int):
        a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        a = a + a.T
        found = ends(a, top, bottom + (top == 0))
        expected = np.linalg.eigvalsh(a.numpy())
        size = np.abs(expected).max()
        np.testing.assert_allclose(found.top, expected[::-1][: min(top, n)], atol=1e-6 * size)
        np.testing.assert_allclose(found.bottom, expected[: min(bottom + (top == 0), n)], atol=1e-6 * size)
        assert found.top_converged.all()
        assert found.bottom_converged.all()

    def test_against_scipy_with_restarts(self):
        from scipy.sparse.linalg import eigsh

        a = matrix(np.concatenate([np.linspace(-1, 1, 395), [3, 2.9, -2, 5, -2.2]]))
        found = ends(a, 3, 2)
        np.testing.assert_allclose(found.top, eigsh(a.numpy(), k=3, which="LA")[0][::-1], rtol=1e-7)
        np.testing.assert_allclose(found.bottom, eigsh(a.numpy(), k=2, which="SA")[0], rtol=1e-7)
        for value, vector, residual in zip(
            [*found.top, *found.bottom], found.vectors, found.top_residuals, strict=False
        ):
            assert float((a @ vector - value * vector).norm()) == pytest.approx(residual, abs=1e-6)

    def test_a_repeated_eigenvalue_is_found_as_often_as_it_is_there(self):
        found = ends(matrix([4, 4, 4, 1, 1, 0]), 4, 1)
        np.testing.assert_allclose(found.top, [4, 4, 4, 1], atol=1e-8)
        np.testing.assert_allclose(found.bottom, [0], atol=1e-8)

    @pytest.mark.parametrize("spectrum", [[0.0] * 5, [2.0] * 5, [-3.0], [1, 0, 0, 0, 0, 0, 0]])
    def test_degenerate_ones(self, spectrum: list[float]):
        found = ends(matrix(spectrum), 1, 1)
        assert found.top[0] == pytest.approx(max(spectrum), abs=1e-10)
        assert found.bottom[0] == pytest.approx(min(spectrum), abs=1e-10)

    def test_the_smallest_is_smallest_and_not_largest_in_size(self):
        """Power iteration, as PyHessian does it, finds -5 first and calls it the top."""
        found = ends(matrix([*np.linspace(-0.5, 0.5, 50), -5, 3]), 1, 1)
        assert (found.top[0], found.bottom[0]) == (pytest.approx(3), pytest.approx(-5))

    def test_what_has_not_converged_says_so(self):
        a = matrix(np.linspace(0, 1, 300))
        found = ends(a, 2, 1, tolerance=1e-10, most=8)
        assert found.products == 8
        assert not found.top_converged.any()
        exact = np.linspace(0, 1, 300)
        assert np.abs(exact - found.top[0]).min() <= found.top_residuals[0]

    @pytest.mark.parametrize("steps", [1, 6, 60])
    def test_its_first_steps_are_a_quadrature(self, steps: int):
        """With m nodes, moments of the spectrum under the first vector are exact up to order 2 m - 1."""
        a = matrix(np.linspace(-1, 1, 200))
        start = random_vector(a[0], torch.Generator().manual_seed(5))
        found = extreme_eigenvalues(lambda v: a @ v, a[0], 1, 1, 1e-2, 4, torch.Generator().manual_seed(5), steps)
        assert len(found.nodes) == steps
        assert found.products == max(4, steps)
        for order in range(min(2 * steps, 20)):
            expected = float(start @ torch.linalg.matrix_power(a, order) @ start)
            assert found.weights @ found.nodes**order == pytest.approx(expected, abs=1e-10)

    def test_a_quadrature_of_a_space_that_is_spanned_earlier(self):
        found = extreme_eigenvalues(
            lambda v: 3 * v, torch.zeros(7).double(), 2, 0, 1e-6, 50, torch.Generator().manual_seed(0), 5
        )
        assert (found.nodes.tolist(), found.weights.tolist()) == ([pytest.approx(3)], [pytest.approx(1)])
        assert found.top.tolist() == [pytest.approx(3)] * 2

    def test_single_precision(self):
        a = matrix([*np.linspace(-0.1, 0.1, 200), 1, 0.7]).float()
        found = ends(a, 2, 1, tolerance=1e-4)
        np.testing.assert_allclose(found.top, [1, 0.7], atol=1e-5)
        assert found.top_converged.all()


class TestTrace:
    def test_exact_for_low_rank_and_for_small(self):
        a = matrix([5, 3, 1] + [0] * 60)
        value, error = trace(lambda v: a @ v, a[0], 30, torch.Generator().manual_seed(0))
        assert value == pytest.approx(9, abs=1e-8)
        assert error == pytest.approx(0, abs=1e-8)
        small = matrix([1.0, -2.0, 4.0])
        assert trace(lambda v: small @ v, small[0], 9, torch.Generator())[0] == pytest.approx(3)

    def test_the_error_covers_the_truth_and_beats_hutchinson(self):
        a = matrix(1 / np.arange(1, 201) ** 1.5)
        exact = float(a.trace())
        found = [trace(lambda v: a @ v, a[0], 30, torch.Generator().manual_seed(seed)) for seed in range(40)]
        inside = np.mean([abs(value - exact) <= 2.5 * error for value, error in found])
        assert inside > 0.85
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (40, 30, 200), generator=generator).double() * 2 - 1
        hutchinson = torch.einsum("sni,ij,snj->sn", signs, a, signs).mean(1) - exact
        ours = np.array([value for value, _ in found]) - exact
        assert ours.std() < 0.5 * float(hutchinson.std())
        assert abs(ours.mean()) < 3 * ours.std() / 40**0.5


class TestQuadrature:
    @settings(max_examples=40)
    @given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000))
    def test_weights_sum_to_one_and_are_real(self, n: int, steps: int, seed: int):
        """PyHessian squares the complex vectors of a general eigensolver."""
        a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        nodes, weights = quadrature(lambda v: (a + a.T) @ v, a[0], steps, torch.Generator().manual_seed(seed))
        assert weights.sum() == pytest.approx(1, abs=1e-10)
        assert (weights >= 0).all()
        assert nodes.dtype == weights.dtype == np.float64

    def test_moments_are_exact(self):
        """m nodes integrate polynomials of degree 2 m - 1 exactly: sum_k w_k t_k^p = v^T A^p v."""
        a = matrix(np.linspace(-1, 2, 30))
        generator = torch.Generator().manual_seed(7)
        nodes, weights = quadrature(lambda v: a @ v, a[0], 4, generator)
        v = torch.randint(0, 2, (30,), generator=torch.Generator().manual_seed(7)).double() * 2 - 1
        v /= v.norm()
        for power in range(8):
            assert (weights * nodes**power).sum() == pytest.approx(float(v @ torch.matrix_power(a, power) @ v))

    def test_a_known_spectrum(self):
        """Two thirds at 0, a third at 1: the mean weight at each node is its share."""
        a = matrix([0.0] * 200 + [1.0] * 100)
        generator = torch.Generator().manual_seed(0)
        drawn = [quadrature(lambda v: a @ v, a[0], 10, generator) for _ in range(20)]
        at_one = np.mean([weights[nodes > 0.5].sum() for nodes, weights in drawn])
        assert at_one == pytest.approx(1 / 3, abs=0.02)

    def test_the_semicircle_of_a_random_matrix(self):
        n = 400
        g = torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        a = (g + g.T) / (2 * n) ** 0.5
        generator = torch.Generator().manual_seed(1)
        drawn = [quadrature(lambda v: a @ v, a[0], 30, generator) for _ in range(10)]
        for power, catalan in ((1, 0), (2, 1), (3, 0), (4, 2), (6, 5)):
            moment = np.mean([(weights * nodes**power).sum() for nodes, weights in drawn])
            assert moment == pytest.approx(catalan, abs=0.1 * max(catalan, 1))
