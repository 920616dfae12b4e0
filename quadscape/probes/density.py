"""The spectral density of the Hessian from Hessian products alone, for networks with and without an eigenbasis."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator
from scipy.special import stdtrit

from quadscape.config import Density
from quadscape.probes.interfaces import merged
from quadscape.tables import Column, Table, TableSchema

POINTS = 400
"""Points of the grid, from beyond the smallest to beyond the largest node."""

WIDTH = 0.3
"""Standard deviation of the kernel in asinh(λ / linear), where linear is the range of the nodes over their number."""

_INTERVAL = "95 %, Student's t, over start vectors"

SCHEMA = TableSchema(
    "density",
    "The spectrum of the Hessian of the training loss (without weight decay) around one λ, broadened by a kernel.",
    (
        Column("eigenvalue", "loss / parameter²", "Place λ."),
        Column("density", "parameter² / loss", "Share of the eigenvalues per unit of λ.", interval=_INTERVAL),
        Column("below", "1", "Number of eigenvalues below λ.", interval=_INTERVAL),
    ),
)


def measure(operator: LinearOperator, options: Density, attributes: Mapping[str, Any], *, seed: int = 0) -> Table:
    """The spectral density of one checkpoint.

    Args:
        operator: Its Hessian.
        options: Numbers of start vectors and steps.
        attributes: Head of the table; see `checkpoint_head`.
        seed: Seed of the start vectors.

    Returns:
        A table under `SCHEMA`. Attributes: vectors, steps, width and linear of the kernel, trace with trace_low and
        trace_high (of the same kind of interval), largest and smallest node.
    """
    from quadscape.curvature.matrix_free import Kernel, spectral_density  # here, because it loads torch

    found = spectral_density(operator, options.vectors, options.steps, seed)
    largest, smallest = float(found.nodes.max()), float(found.nodes.min())
    reach = max(largest, 0.0) - min(smallest, 0.0)
    kernel = Kernel(WIDTH, (reach or 1.0) / options.steps)
    first, last = (float(np.arcsinh(end / kernel.linear)) for end in (smallest, largest))
    grid = kernel.linear * np.sinh(np.linspace(first - 3 * WIDTH, last + 3 * WIDTH, POINTS))
    quantile = float(stdtrit(options.vectors - 1, 0.975))

    def interval(name: str, estimate: Any, error: Any, floor: float, ceiling: float) -> dict[str, Any]:
        low, high = np.maximum(estimate - quantile * error, floor), np.minimum(estimate + quantile * error, ceiling)
        return {name: estimate, f"{name}_low": low, f"{name}_high": high}

    columns = {
        "eigenvalue": grid,
        **interval("density", *found.density(grid, kernel), 0.0, np.inf),
        **interval("below", *found.count_below(grid, kernel), 0.0, float(found.size)),
    }
    trace = interval("trace", *found.trace(), -np.inf, np.inf)
    head = merged(
        attributes,
        vectors=options.vectors,
        steps=options.steps,
        width=kernel.width,
        linear=kernel.linear,
        largest=largest,
        smallest=smallest,
        **{name: float(value) for name, value in trace.items()},
    )
    return Table(SCHEMA, columns, head)
