"""Bands of eigenvectors of the checkpoint at which members start, and how the loss curves along them elsewhere."""

from collections.abc import Sequence

import numpy as np

from quadscape.measures.costs import TILE_COLUMNS
from quadscape.measures.interfaces import BasisLike, ObjectiveLike, as_array
from quadscape.measures.ranks import indices_by_band
from quadscape.measures.stationary.declaration import BANDS, PROBES


def bands_of(eigenvalues: np.ndarray, weight_decay: float, zero: float) -> list[np.ndarray]:
    """Bands that are even in log λ̃, of λ̃ > 0 and without null directions, along which nothing but rounding moves.

    Args:
        eigenvalues: λ, descending, shape (P,).
        weight_decay: δ.
        zero: Numerical zero of λ.

    Returns:
        Ascending indices of the directions of each band, the flattest band first; at most `BANDS`.
    """
    curvature = eigenvalues + weight_decay
    return indices_by_band(curvature, (curvature > 0) & (np.abs(eigenvalues) > zero), BANDS)


def band_curvatures(
    objective: ObjectiveLike, theta: np.ndarray, basis: BasisLike, bands: Sequence[np.ndarray], seed: int
) -> np.ndarray:
    """Mean of qᵀHq over the directions of bands, of the Hessian at any point.

    All directions of a band of `PROBES` or fewer are taken; of a larger one random signs ±1 are added up along its
    directions, vᵀHv of which is n times that mean in expectation.

    Args:
        objective: The loss.
        theta: θ, shape (P,).
        basis: The eigenvectors q, of another point.
        bands: Indices of the directions of each.
        seed: Of the random signs.

    Returns:
        Without weight decay, float64, shape (bands,).
    """
    found = np.empty(len(bands))
    for number, inside in enumerate(bands):
        generator = np.random.default_rng([seed, number])
        count = len(inside)
        few = count <= PROBES
        weights = np.eye(count) if few else generator.choice([-1.0, 1.0], (count, PROBES))
        probes = np.zeros((len(basis.eigenvalues), weights.shape[1]))
        first = int(inside[0])
        for start in range(first, int(inside[-1]) + 1, TILE_COLUMNS):
            stop = min(start + TILE_COLUMNS, int(inside[-1]) + 1)
            own = (inside >= start) & (inside < stop)
            probes += as_array(basis.vectors(start, stop))[:, inside[own] - start] @ weights[own]
        bends = [as_array(objective.hessian_product(theta, v)) @ v / (v @ v) for v in probes.T]
        found[number] = np.mean(bends)
    return found
