"""Scores of ruggedness and surfaces of a plain objective, without a matrix where it has many parameters."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from quadscape.curvature.matrix_free import CurvatureOperator, ExtremeEigenpairs, extreme_eigenpairs, spectral_density
from quadscape.errors import ConfigError
from quadscape.library.curvature import DenseEigenbasis, eigenbasis
from quadscape.library.loss import NetworkObjective
from quadscape.measures.interfaces import checkpoint_head
from quadscape.measures.ruggedness import compute as ruggedness
from quadscape.measures.ruggedness.spectral import estimated_scores, exact_scores
from quadscape.measures.surface import compute as surface
from quadscape.measures.surface.declaration import planes_of
from quadscape.network.filters import Filters
from quadscape.tables import Table

EXACT_SIZE = 1000
"""Up to so many parameters all eigenvalues are computed: about as many products as the estimate takes."""

VECTORS, STEPS = 6, 24
"""Random vectors and Lanczos steps of the estimated spectrum."""

ENDS = 1e-3
"""Residual of the largest and smallest eigenpair, in units of the largest |λ|."""


def scores(
    of: NetworkObjective | DenseEigenbasis,
    loss: NetworkObjective,
    options: Any,
    log: Callable[[str], object] = str,
    progress: Callable[[Any, int, int], object] | None = None,
) -> dict[str, Table]:
    """Scores of ruggedness at the network's own parameters.

    Args:
        of: The objective, or an eigenbasis of its Hessian.
        loss: The objective.
        options: Those of the measure `ruggedness`.
        log: Told when the spectrum is done.
        progress: Told after every probe which it was, how many are done, and of how many.

    Returns:
        The tables of `quadscape.measures.ruggedness.compute.tabulate`. With an eigenbasis, and up to `EXACT_SIZE`
        parameters, the scores of the spectrum are exact; beyond, they are estimated, and their intervals say how well.
    """
    theta = of.theta
    if isinstance(of, NetworkObjective) and loss.size > EXACT_SIZE:
        operator = CurvatureOperator(loss, theta)
        ends = _ends(operator, log)
        spectrum = estimated_scores(spectral_density(operator, VECTORS, STEPS), ends)
        leading = ends.eigenvectors[:, 0]
    else:
        basis = of if isinstance(of, DenseEigenbasis) else eigenbasis(loss)
        spectrum, leading = exact_scores(basis.eigenvalues), basis.vectors(0, 1)[:, 0]
    log("spectrum done")
    head, epsilon = checkpoint_head(loss.checked, loss.size, loss.count), torch.finfo(loss.dtype).eps
    return ruggedness.measure(loss, theta, spectrum, leading, options, head, epsilon=epsilon, log=progress)


def _ends(operator: CurvatureOperator, log: Callable[[str], object]) -> ExtremeEigenpairs:
    found = extreme_eigenpairs(operator, 1, 1, tolerance=ENDS)
    log(f"largest and smallest eigenvalue after {found.products} products")
    return found


class _EndsAlone:
    """The two ends of a spectrum in place of a whole eigenbasis; what lies between is not known."""

    zero_threshold = 0.0

    def __init__(self, found: ExtremeEigenpairs, size: int) -> None:
        self._vectors = {0: found.eigenvectors[:, :1], size - 1: found.eigenvectors[:, 1:]}
        self.eigenvalues = np.full(size, np.nan)
        self.eigenvalues[[0, -1]] = found.eigenvalues

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """The first or the last eigenvector as a column, shape (P, 1)."""
        return self._vectors[start]


def surfaces(
    loss: NetworkObjective,
    options: SimpleNamespace,
    log: Callable[[str], object] = str,
    progress: Callable[[Any, int, int], object] | None = None,
) -> dict[str, Table]:
    """The loss on planes through the network's own parameters, from Hessian products alone.

    Args:
        loss: The objective.
        options: Those of the measure `surface`; planes may be random ones and `extreme`.
        log: Told when the ends of the spectrum are known.
        progress: Told after every row of a grid how many are done, and of how many.

    Returns:
        The tables of `quadscape.measures.surface.compute.measure`; that of further random planes is empty, since their
        curvatures take a whole eigenbasis.

    Raises:
        ConfigError: A plane takes eigenvectors between the ends.
    """
    for plane in planes_of(options.planes):
        if plane.ranks is not None and {abs(rank) for rank in plane.ranks} != {1}:
            raise ConfigError(f"The plane '{plane.name}' takes a whole eigenbasis; valid here are random and extreme.")
    basis = _EndsAlone(_ends(CurvatureOperator(loss, loss.theta), log), loss.size)
    filters = Filters.of(loss.layout)
    chosen = SimpleNamespace(**vars(options) | {"samples": 0})
    planes = surface.Surfaces(loss, basis, loss.theta, filters, chosen, loss.device)
    rows = []
    for row in range(planes.rows):
        rows.append(planes.values(slice(row, row + 1))["difference"])
        if progress is not None:
            progress(row, row + 1, planes.rows)
    head = checkpoint_head(loss.checked, loss.size, loss.count) | {"zero_threshold": 0.0}
    return planes.tables({"difference": np.concatenate(rows)}, head, torch.finfo(loss.dtype).eps)
