"""The largest eigenvalue of one θ after another, by block Lanczos from the eigenvectors at the one before.

What `quadscape.curvature.matrix_free.extreme_eigenpairs` gives, eigenpairs at both ends to one tolerance, takes 80 to
220 products at the iterates of a small network. Where only the largest eigenvalue is wanted, and of the others no more
than whether they come near it, a space of blocks of two vectors takes 14 to 20 (from random vectors two to four more).
Two vectors, so that a multiple eigenvalue is seen as one: the space of a single vector holds one of its eigenvectors
alone. All of the basis is kept and orthogonal, and so are its images, from which residuals are exact.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator

State = Literal["converged", "small gap", "negative", "not converged", "not finite"]

WIDTH = 2
"""Vectors of a block."""

GAP = 1e-3
"""Distance of the two largest eigenvalues, over the largest |λ|, up to which it is chance which of them is followed."""

TOLERANCE = 1e-5
"""Largest residual, over the largest |λ|; the eigenvalue is then off by about its square."""

_RANDOM_PART = 1e-2
"""Random part of a warm start: it keeps every eigenvector in reach."""


@dataclass(frozen=True)
class LeadingEigenpair:
    """The largest eigenvalue, and whether it can be relied on.

    Attributes:
        eigenvalue: Largest Ritz value.
        residual: ‖Aq − λq‖ of its vector: there is an eigenvalue no further away than that.
        second: Second largest Ritz value; NaN where there is one dimension.
        smallest: Smallest Ritz value; no smaller than the smallest eigenvalue.
        state: `converged`, or what went wrong: `small gap` to the second; `negative`, the largest in magnitude is
            negative; `not converged`, one of this could not be told within the budget; `not finite`, a product was not.
        products: Products used.
        near: What a solution for a neighbouring operator may begin with, shape (P, `WIDTH` or fewer).
    """

    eigenvalue: float
    residual: float
    second: float
    smallest: float
    state: State
    products: int
    near: np.ndarray | None


def leading_eigenpair(
    operator: LinearOperator,
    *,
    budget: int,
    near: np.ndarray | None = None,
    seed: int | list[int] = 0,
    tolerance: float = TOLERANCE,
) -> LeadingEigenpair:
    """The largest eigenvalue of a symmetric operator.

    Args:
        operator: The operator, of size P.
        budget: Most products.
        near: `near` of the result for a neighbouring operator; None: a random start.
        seed: Seed of the random part of the start.
        tolerance: Largest residual, over the largest |λ|.

    Returns:
        The eigenvalue; the same for the same arguments.
    """
    size = operator.shape[0]
    width, rows = min(WIDTH, size), min(max(budget, WIDTH), size)
    start = np.random.default_rng(seed).standard_normal((width, size)) / np.sqrt(size)
    if near is not None:
        start = near.T + _RANDOM_PART * start
    basis, images = np.empty((2, rows, size))
    block, stop, found = np.linalg.qr(start.T)[0].T, 0, None
    while len(block):
        first, stop = stop, stop + len(block)
        for row, vector in enumerate(block, first):
            basis[row], images[row] = vector, operator.matvec(vector)
        if not np.isfinite(images[first:stop]).all():
            nothing = float("nan")
            return LeadingEigenpair(nothing, nothing, nothing, nothing, "not finite", stop, None)
        found = _ritz(basis[:stop], images[:stop], tolerance)
        if found.state != "not converged":
            break
        block = _next_block(images[first:stop], basis[:stop])[: rows - stop]
    assert found is not None
    return found


def _ritz(basis: np.ndarray, images: np.ndarray, tolerance: float) -> LeadingEigenpair:
    """What the space tells, with its state."""
    projected = basis @ images.T
    values, vectors = np.linalg.eigh((projected + projected.T) / 2)
    places = [-1, -2, 0] if len(values) > 1 else [-1, -1, -1]
    ritz, largest = values[places], float(np.abs(values).max())
    pairs = vectors[:, places].T @ basis
    residuals = np.linalg.norm(vectors[:, places].T @ images - ritz[:, None] * pairs, axis=1)
    near = np.stack([pairs[0], pairs[1] + pairs[2]], axis=1) if len(values) > 1 else pairs[:1].T
    second = float(ritz[1]) if len(values) > 1 else float("nan")
    return LeadingEigenpair(
        float(ritz[0]),
        float(residuals[0]),
        second,
        float(ritz[2]),
        _state(ritz, residuals, largest, tolerance, len(values) > 1),
        len(values),
        near,
    )


def _state(ritz: np.ndarray, residuals: np.ndarray, largest: float, tolerance: float, several: bool) -> State:
    # Ritz values lie within the spectrum: one below −λ₁ proves that an eigenvalue does, whatever its residual.
    negative, positive = -ritz[2] > ritz[0], residuals[2] - ritz[2] <= ritz[0]
    known = not several or residuals[1] <= GAP * largest
    if residuals[0] > tolerance * largest or not (known and (negative or positive)):
        return "not converged"
    if negative:
        return "negative"
    return "small gap" if several and ritz[0] - ritz[1] <= GAP * largest else "converged"


def _next_block(images: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Orthonormal rows that, with the basis, span the images too; none where the space is invariant."""
    scale = float(np.linalg.norm(images, axis=1).max())
    rounding = 10 * np.finfo(np.float64).eps * np.sqrt(basis.shape[1]) * scale
    found = np.empty((0, basis.shape[1]))
    for row in images:
        for _ in range(2):  # twice is enough
            row = row - (basis @ row) @ basis - (found @ row) @ found
        length = float(np.linalg.norm(row))
        if length > rounding:
            found = np.vstack([found, row / length])
    return found
