"""Principal components of the iterates of a run, and the training loss on the plane of the first two.

A random walk in many dimensions also has most of its variance in a plane: the centred walk of n points is L⁺ᐟ² times
independent noise, L being the Laplacian of a path of n vertices, whose eigenvalues are 4 sin²(πk/2n). So the share of
its k-th component is 6 / ((n² − 1) 4 sin²(πk/2n)), which goes to 6/(πk)²: 61 % for the first
(Antognini & Sohl-Dickstein, arXiv 1806.08805). What a plane shows of a run is to be read beside that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from quadscape.measures.job import Job
from quadscape.measures.path.declaration import COMPONENTS, DIMENSIONS, LISTED, PLANE, POINTS
from quadscape.measures.run_losses import RunLosses, run_head
from quadscape.tables import Table

MARGIN = 0.15
"""By how much of its extent the plane reaches beyond the path, on each side."""

_SEED = 1806
_ROWS = 64


def evenly_spaced(stride: int, iterations: int, most: int) -> np.ndarray:
    """Iterations at a uniform distance, a multiple of the stride, from 0 on.

    Args:
        stride: Distance of the iterates that were kept.
        iterations: T.
        most: Largest number of them.

    Returns:
        Iterations, int64; 0 and T where the stride is longer than the run.
    """
    if stride > iterations:
        return np.array([0, iterations], dtype=np.int64)
    kept = iterations // stride + 1
    return np.arange(0, iterations + 1, stride * -(-(kept - 1) // (most - 1)), dtype=np.int64)


def compute(job: Job) -> dict[str, Table]:
    """The path of one run.

    Args:
        job: Reads data and trajectory.

    Returns:
        The tables of `measure`, empty where the run diverged.
    """
    trajectory, losses = job.trajectory(), RunLosses(job, ("train",))
    head = run_head(job, trajectory, losses.counts["train"], losses.batch_norm)
    if trajectory.diverged is not None:
        job.log(f"run '{job.run}' diverged at iteration {trajectory.diverged}: its path is not taken apart")
        return measure(np.empty(0, dtype=np.int64), np.empty((0, head["P"])), None, job.options, head)
    section = trajectory.training
    iterations = evenly_spaced(section.trajectory.stride, section.iterations, job.options.iterates)
    iterates = np.stack([trajectory.theta(int(iteration)) for iteration in iterations])
    return measure(iterations, iterates, lambda theta: losses.at(theta)["train"].loss, job.options, head)


def measure(
    iterations: np.ndarray,
    iterates: np.ndarray,
    loss: Callable[[np.ndarray], float] | None,
    options: Any,
    attributes: Mapping[str, Any],
) -> dict[str, Table]:
    """Components, points and plane of a path.

    Args:
        iterations: Steps taken, int64, shape (n,).
        iterates: θ at these, float64, shape (n, P); overwritten.
        loss: Training loss at a θ; None where there is no iterate.
        options: resolution and walks.
        attributes: Head of the tables.

    Returns:
        Tables `path_components`, `path_points` and `path_plane`. Attributes: iterates, n; spacing, the steps between
        them; rank, how many components have variance beyond rounding; variance, the sum over all of them; and
        walk_dimensions. There is no component where no iterate differs, and no plane with less than two.
    """
    path = principal(iterates)
    count, dimensions = len(iterations), min(iterates.shape[1], DIMENSIONS)
    head = {
        **attributes,
        "iterates": count,
        "spacing": int(iterations[1] - iterations[0]) if count > 1 else 0,
        "rank": path.rank,
        "variance": path.variance,
        "walk_dimensions": dimensions,
    }
    listed = min(path.rank, LISTED)
    low, high = simulated_shares(count, dimensions, listed, options.walks)
    components = {
        "component": np.arange(1, listed + 1),
        "share": path.shares[:listed],
        "walk": walk_shares(count, listed),
        "walk_low": low,
        "walk_high": high,
    }
    points = {
        "iteration": iterations,
        "pc1": path.coordinates[:, 0],
        "pc2": path.coordinates[:, 1],
        "distance": path.distance,
        "radius": path.radius,
    }
    plane = _plane(path, loss, options.resolution) if loss is not None and path.rank >= 2 else np.empty((0, 3))
    return {
        "path_components": Table(COMPONENTS, components, head),
        "path_points": Table(POINTS, points, head),
        "path_plane": Table(PLANE, dict(zip(("pc1", "pc2", "loss"), plane.T, strict=True)), head),
    }


@dataclass(frozen=True)
class Path:
    """A path and its principal components.

    Attributes:
        centre: Mean of the iterates, shape (P,).
        axes: Directions of the first two components as columns, orthonormal, shape (P, 2); 0 where there is none.
        coordinates: Of the iterates on these, from the centre, shape (n, 2).
        shares: Shares of the variance, descending, shape (n,).
        variance: Sum of the variances, mean |θ − centre|².
        rank: Number of components whose variance is more than rounding: above nε times the largest.
        distance: Of the iterates from the plane, shape (n,).
        radius: Of the iterates from the centre, shape (n,).
    """

    centre: np.ndarray
    axes: np.ndarray
    coordinates: np.ndarray
    shares: np.ndarray
    variance: float
    rank: int
    distance: np.ndarray
    radius: np.ndarray


class Components(NamedTuple):
    """Principal components of points in a space of many dimensions, as combinations of the points.

    Attributes:
        centre: Mean of the points, shape (P,).
        values: Eigenvalues of their Gram matrix, descending, none negative, shape (n,).
        vectors: Its eigenvectors as columns, shape (n, n).
        rank: Number of components whose variance is more than rounding: above nε times the largest.
        total: Sum of the squared distances from the centre.
    """

    centre: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    rank: int
    total: float


def components_of(iterates: np.ndarray) -> Components:
    """Principal components by the Gram matrix of the centred iterates, n × n.

    Args:
        iterates: Shape (n, P), n at least 1, float64; overwritten by the centred ones.

    Returns:
        The components.
    """
    # From the first iterate, so that a path that stays there has exactly no variance.
    origin = iterates[0].copy()
    iterates -= origin
    shift = iterates.mean(axis=0)
    iterates -= shift
    values, vectors = np.linalg.eigh(iterates @ iterates.T)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    rank = int(np.count_nonzero(values > len(iterates) * np.finfo(np.float64).eps * values[0]))
    return Components(origin + shift, values, vectors, rank, float(np.square(iterates).sum()))


def principal(iterates: np.ndarray) -> Path:
    """A path and its principal components.

    The first component points from start to end, the second to where the path goes furthest.

    Args:
        iterates: Shape (n, P), float64; overwritten by the centred ones.

    Returns:
        Components, coordinates and distances.
    """
    count, size = iterates.shape
    if not count:
        return Path(np.zeros(size), np.zeros((size, 2)), np.empty((0, 2)), *(np.empty(0), 0.0, 0), *(np.empty(0),) * 2)
    centre, values, vectors, rank, total = components_of(iterates)
    axes, coordinates = np.zeros((size, 2)), np.zeros((count, 2))
    if found := min(rank, 2):
        along = iterates.T @ (vectors[:, :found] / np.sqrt(values[:found]))
        axes[:, :found] = np.linalg.qr(along)[0]
        coordinates[:] = iterates @ axes
        furthest = np.argmax(np.abs(coordinates[:, 1]))
        signs = np.where([coordinates[-1, 0] < coordinates[0, 0], coordinates[furthest, 1] < 0], -1.0, 1.0)
        axes, coordinates = axes * signs, coordinates * signs
    starts = range(0, count, _ROWS)
    parts = [iterates[a : a + _ROWS] - coordinates[a : a + _ROWS] @ axes.T for a in starts]
    return Path(
        centre=centre,
        axes=axes,
        coordinates=coordinates,
        shares=values / total if total else np.zeros(count),
        variance=total / count,
        rank=rank,
        distance=np.concatenate([np.linalg.norm(part, axis=1) for part in parts]),
        radius=np.linalg.norm(iterates, axis=1),
    )


def walk_shares(count: int, components: int) -> np.ndarray:
    """Shares of the components of a random walk in infinitely many dimensions.

    Args:
        count: Number of points n.
        components: How many, at most n − 1.

    Returns:
        6 / ((n² − 1) 4 sin²(πk/2n)) for k = 1, 2, ….
    """
    k = np.arange(1, components + 1)
    return 6 / ((count**2 - 1) * 4 * np.sin(np.pi * k / (2 * max(count, 1))) ** 2)


def simulated_shares(count: int, dimensions: int, components: int, walks: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the shares of random walks with normal steps.

    Args:
        count: Number of points n.
        dimensions: Of the space.
        components: How many.
        walks: Number of walks.

    Returns:
        2.5 % and 97.5 % quantiles, shape (components,) each.
    """
    from scipy.linalg import eigh

    if not components:
        return np.empty(0), np.empty(0)
    generator, found = np.random.default_rng([_SEED, count, dimensions]), []
    for _ in range(walks):
        walk = np.cumsum(generator.standard_normal((count, dimensions)), axis=0)
        walk -= walk.mean(axis=0)
        gram = walk @ walk.T
        values = eigh(gram, eigvals_only=True, subset_by_index=(count - components, count - 1))[::-1]
        found.append(np.maximum(values, 0.0) / np.trace(gram))
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return low, high


def _plane(path: Path, loss: Callable[[np.ndarray], float], resolution: int) -> np.ndarray:
    """Coordinates and losses on a grid, shape (resolution², 3), the second coordinate fastest."""
    first, second = (extent(path.coordinates[:, k], resolution) for k in (0, 1))
    rows: Sequence[tuple[float, float, float]] = [
        (a, b, loss(path.centre + path.axes @ np.array([a, b]))) for a in first for b in second
    ]
    return np.array(rows, dtype=np.float64)


def extent(coordinates: np.ndarray, resolution: int) -> np.ndarray:
    """Evenly spaced coordinates that reach a little beyond a path's.

    Args:
        coordinates: Shape (n,).
        resolution: How many.

    Returns:
        Shape (resolution,), ascending.
    """
    low, high = float(coordinates.min()), float(coordinates.max())
    return np.linspace(low - MARGIN * (high - low), high + MARGIN * (high - low), resolution)
