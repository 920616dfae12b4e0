"""Scores of ruggedness of a plain objective, without a matrix where it has many parameters."""

from collections.abc import Callable
from typing import Any

import torch

from quadscape.curvature.matrix_free import CurvatureOperator, extreme_eigenpairs, spectral_density
from quadscape.library.curvature import DenseEigenbasis, eigenbasis
from quadscape.library.loss import NetworkObjective
from quadscape.measures.interfaces import checkpoint_head
from quadscape.measures.ruggedness import compute as ruggedness
from quadscape.measures.ruggedness.spectral import estimated_scores, exact_scores
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
        ends = extreme_eigenpairs(operator, 1, 1, tolerance=ENDS)
        log(f"largest and smallest eigenvalue after {ends.products} products")
        spectrum = estimated_scores(spectral_density(operator, VECTORS, STEPS), ends)
        leading = ends.eigenvectors[:, 0]
    else:
        basis = of if isinstance(of, DenseEigenbasis) else eigenbasis(loss)
        spectrum, leading = exact_scores(basis.eigenvalues), basis.vectors(0, 1)[:, 0]
    log("spectrum done")
    head, epsilon = checkpoint_head(loss.checked, loss.size, loss.count), torch.finfo(loss.dtype).eps
    return ruggedness.measure(loss, theta, spectrum, leading, options, head, epsilon=epsilon, log=progress)
