"""The spectral density of the Hessian from Hessian products alone, for networks with and without an eigenbasis."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse.linalg import LinearOperator
from scipy.special import stdtrit

from quadscape.measures.density.declaration import SCHEMA
from quadscape.measures.interfaces import merged
from quadscape.measures.job import Job
from quadscape.tables import Table

if TYPE_CHECKING:
    from quadscape.curvature.matrix_free import SpectralDensity

POINTS = 400
"""Points of the grid, from beyond the smallest to beyond the largest node."""

WIDTH = 0.3
"""Standard deviation of the kernel in asinh(λ / linear), where linear is the range of the nodes over their number."""


def tabulate(found: "SpectralDensity", options: Any, attributes: Mapping[str, Any]) -> Table:
    """The spectral density from quadratures.

    Args:
        found: The quadratures of all start vectors.
        options: `vectors` and `steps`, the numbers of start vectors and Lanczos steps.
        attributes: Head of the table; see `quadscape.measures.job.Job.head`.

    Returns:
        A table under `SCHEMA`. Attributes: vectors, steps, width and linear of the kernel, trace with trace_low and
        trace_high (of the same kind of interval), largest and smallest node.
    """
    from quadscape.curvature.matrix_free import Kernel

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


def measure(operator: LinearOperator, options: Any, attributes: Mapping[str, Any], *, seed: int = 0) -> Table:
    """The spectral density of an operator.

    Args:
        operator: The Hessian.
        options: `vectors` and `steps`.
        attributes: Head of the table.
        seed: Seed of the start vectors.

    Returns:
        The table of `tabulate`.
    """
    from quadscape.curvature.matrix_free import spectral_density

    return tabulate(spectral_density(operator, options.vectors, options.steps, seed), options, attributes)


class Work:
    """The start vectors as items of a long measure."""

    def __init__(self, job: Job) -> None:
        from quadscape.curvature.matrix_free import CurvatureOperator

        self._job = job
        self._operator = CurvatureOperator(job.objective("train"), job.checkpoint.theta)

    @property
    def items(self) -> int:
        """Number of start vectors."""
        return self._job.options.vectors

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is stored of each start vector."""
        steps = min(self._job.options.steps, self._operator.shape[0])
        return {"nodes": (steps,), "weights": (steps,)}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Quadratures of some of the start vectors."""
        from quadscape.curvature.matrix_free import spectral_density

        found = spectral_density(self._operator, part.stop, self._job.options.steps, first=part.start)
        return {"nodes": found.nodes, "weights": found.weights}

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """The density from all of them."""
        from quadscape.curvature.matrix_free import SpectralDensity

        found = SpectralDensity(self._operator.shape[0], values["nodes"], values["weights"])
        return {"density": tabulate(found, self._job.options, self._job.head)}


def compute(job: Job) -> dict[str, Table]:
    """The spectral density of one checkpoint, in one piece.

    Args:
        job: Reads checkpoint and data.

    Returns:
        The table of `tabulate`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(0, work.items)))
