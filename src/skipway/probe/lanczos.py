"""Lanczos: the ends of a symmetric operator's spectrum, and its quadrature, from products with vectors alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Product = Callable[[Tensor], Tensor]
# A new direction shorter than this share of the operator's size is rounding: the Krylov space is exhausted.
_EXHAUSTED = 1e-6


@dataclass(frozen=True, eq=False)
class Ends:
    """The largest and the smallest eigenvalues that were found, each end from its extreme inwards.

    `residuals` are |A x - lambda x| for unit x: an eigenvalue lies that near to lambda. `converged` says that it is at
    most the tolerance times the largest eigenvalue's size. `nodes` and `weights` are the quadrature, as of
    `quadrature`, of the first steps that were asked for, or of fewer where they span an invariant space.
    """

    top: Float[np.ndarray, " top"]
    bottom: Float[np.ndarray, " bottom"]
    top_residuals: Float[np.ndarray, " top"]
    bottom_residuals: Float[np.ndarray, " bottom"]
    top_converged: Bool[np.ndarray, " top"]
    bottom_converged: Bool[np.ndarray, " bottom"]
    vectors: Tensor
    products: int
    nodes: Float[np.ndarray, " m"]
    weights: Float[np.ndarray, " m"]


def random_vector(like: Tensor, generator: torch.Generator, signs: bool = False) -> Tensor:
    """A random unit vector; of equal sizes and random signs (Rademacher), if asked. Drawn on the CPU."""
    if signs:
        drawn = torch.randint(0, 2, like.shape, generator=generator).to(torch.float32) * 2 - 1
    else:
        drawn = torch.randn(like.shape, generator=generator)
    drawn = drawn.to(like)
    return drawn / drawn.norm()


def extreme_eigenvalues(
    product: Product, like: Tensor, top: int, bottom: int, tolerance: float, most: int, generator: torch.Generator,
    steps: int = 0,
) -> Ends:  # fmt: skip
    """Lanczos with full re-orthogonalisation and thick restarts (Wu & Simon 2000), for both ends at once.

    A basis of at most 2 (top + bottom) + 30 vectors is kept, or of `steps`; when it is full, the best Ritz vectors and
    the residual start the next. Stops when all wanted values have converged, after `most` products, or with the whole
    space spanned, but not before `steps` products, which give a quadrature of the spectrum as well.
    """
    n = like.numel()
    wanted = min(top + bottom, n)
    room = min(n, max(2 * (top + bottom) + 30, steps))
    most = max(most, steps)
    nodes, weights = np.zeros(0), np.zeros(0)
    basis = like.new_empty(room, n)
    projected = np.zeros((room, room))
    basis[0] = random_vector(like, generator)
    count, products, coupling, scale = 1, 0, 0.0, 0.0
    while True:
        w = product(basis[count - 1])
        products += 1
        # Twice is enough (Kahan); the coefficients are then those of a symmetric matrix to rounding.
        first = basis[:count] @ w
        w = w - first @ basis[:count]
        second = basis[:count] @ w
        w = w - second @ basis[:count]
        column = (first + second).double().cpu().numpy()
        projected[:count, count - 1] = projected[count - 1, :count] = column
        scale = max(scale, float(np.abs(column).max()))
        coupling = float(w.norm())
        spanned = coupling <= _EXHAUSTED * max(scale, 1e-30)
        values, vectors = np.linalg.eigh(projected[:count, :count])
        if not len(nodes) and (spanned or count >= steps):
            nodes, weights = values, vectors[0] ** 2
        residuals = np.zeros(count) if spanned and count == n else np.abs(coupling * vectors[count - 1])
        picked = _ends(count, top, bottom)
        size = float(np.abs(values).max())
        settled = count >= wanted and bool((residuals[picked] <= tolerance * size).all())
        # A space closed under A holds only one eigenvector of each repeated eigenvalue: look outside it once.
        if (settled and not spanned and len(nodes)) or products >= most or count == n:
            break
        if spanned:
            if settled and coupling == 0.0 and size == 0.0:
                break
            w = random_vector(like, generator)
            for _ in range(2):
                w = w - (basis[:count] @ w) @ basis[:count]
            coupling = 0.0
        if count == room:
            keep = _ends(count, top + 5, bottom + 5)[: room - 2]
            rotation = torch.from_numpy(np.ascontiguousarray(vectors[:, keep].T)).to(basis)
            basis[: len(keep)] = rotation @ basis[:count]
            projected[:] = 0.0
            projected[: len(keep), : len(keep)] = np.diag(values[keep])
            count = len(keep)
        basis[count] = w / w.norm()
        count += 1
    size = float(np.abs(values).max())
    high = np.argsort(values)[::-1][: min(top, count)]
    low = np.argsort(values)[: min(bottom, count)]
    rotation = torch.from_numpy(np.ascontiguousarray(vectors[:, [*high, *low]].T)).to(basis)
    passed = residuals <= tolerance * size
    return Ends(
        values[high], values[low], residuals[high], residuals[low], passed[high], passed[low],
        rotation @ basis[:count], products, nodes, weights,
    )  # fmt: skip


def _ends(count: int, top: int, bottom: int) -> np.ndarray:
    """Places of the smallest and the largest of `count` sorted values."""
    low = range(min(bottom, count))
    high = range(max(count - top, 0), count)
    return np.array(sorted({*low, *high}), dtype=int)


def quadrature(
    product: Product, like: Tensor, steps: int, generator: torch.Generator
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Nodes and weights with sum_k weight_k f(node_k) close to v^T f(A) v, v a random vector of signs and length 1.

    Lanczos with full re-orthogonalisation: nodes are the eigenvalues of the tridiagonal matrix, weights the squares of
    its eigenvectors' first components; they sum to 1 (Golub & Welsch 1969; Ubaru, Chen & Saad 2017). A run that spans
    an invariant space earlier has fewer nodes; the rest have weight 0.
    """
    steps = min(steps, like.numel())
    basis = like.new_empty(steps, like.numel())
    basis[0] = random_vector(like, generator, signs=True)
    diagonal, beside = np.zeros(steps), np.zeros(max(steps - 1, 0))
    count = 0
    for step in range(steps):
        w = product(basis[step])
        diagonal[step] = float(basis[step].double() @ w.double())
        count = step + 1
        for _ in range(2):
            w = w - (basis[:count] @ w) @ basis[:count]
        length = float(w.norm())
        if count == steps or length <= _EXHAUSTED * max(np.abs(diagonal[:count]).max(), np.abs(beside).max(initial=0)):
            break
        beside[step] = length
        basis[count] = w / length
    matrix = np.diag(diagonal[:count]) + np.diag(beside[: count - 1], 1) + np.diag(beside[: count - 1], -1)
    values, vectors = np.linalg.eigh(matrix)
    nodes, weights = np.full(steps, values[0]), np.zeros(steps)
    nodes[:count], weights[:count] = values, vectors[0] ** 2
    return nodes, weights


def trace(product: Product, like: Tensor, products: int, generator: torch.Generator) -> tuple[float, float]:
    """An estimate of the trace and its standard error: Hutch++ (Meyer, Musco, Musco & Woodruff 2021, arXiv 2010.09649).

    A third of the products finds a subspace Q that holds most of A, a third gives the trace within it exactly, and the
    rest estimates the trace outside it by Hutchinson's method, whose spread over the vectors is the standard error.
    With room for the whole space the trace is exact and the error 0.
    """
    n = like.numel()
    sketch = min(products // 3, n)
    q = like.new_zeros(0, n)
    if sketch:
        images = torch.stack([product(random_vector(like, generator, signs=True)) for _ in range(sketch)])
        q = torch.linalg.qr(images.T.double()).Q.T.to(like)
    within = float(sum(float(row.double() @ product(row).double()) for row in q))
    if len(q) == n:
        return within, 0.0
    estimates = []
    for _ in range(max(products - 2 * sketch, 2)):
        v = random_vector(like, generator, signs=True) * n**0.5
        v = v - (q @ v) @ q
        estimates.append(float(v.double() @ product(v).double()))
    return within + float(np.mean(estimates)), float(np.std(estimates, ddof=1) / len(estimates) ** 0.5)
