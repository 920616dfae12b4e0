"""Noise of gradients along eigenvectors: the variance of single examples' slopes."""

from typing import Any

import numpy as np

from quadscape.measures.interfaces import BasisLike, ObjectiveLike


def noise_along(
    basis: BasisLike, objective: ObjectiveLike, theta: np.ndarray, *, memory: int | None = None, device: Any = "cpu"
) -> np.ndarray:
    """qᵀCq of all eigenvectors, float64, shape (P,), with the population's denominator N − 1.

    Args:
        basis: The eigenvectors.
        objective: The loss whose single examples' gradients are meant.
        theta: θ, float64, shape (P,).
        memory: Bytes that tiles may take.
        device: Device of the products.

    Returns:
        Variances; NaN below two examples.
    """
    import torch

    from quadscape.curvature.projections import project

    size, count = len(basis.eigenvalues), objective.count
    linear, square = np.zeros(size), np.zeros(size)

    def read(examples: slice) -> Any:
        return torch.as_tensor(objective.example_gradients(theta, examples)).to(device)

    for tile in project(read, count, basis, memory=memory, device=device):
        along = tile.values.double()
        linear[tile.columns] += along.sum(dim=0).cpu().numpy()
        square[tile.columns] += along.square().sum(dim=0).cpu().numpy()
    if count < 2:
        return np.full(size, np.nan)
    return np.maximum(square - linear**2 / count, 0.0) / (count - 1)
