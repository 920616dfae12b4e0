"""Paths with nothing to see: what any autocorrelated path looks like in the same pipeline."""

import numpy as np

_SEED = 1806


def correlation_time(coordinates: np.ndarray) -> float:
    """Where the autocorrelation of a path falls to 1/e.

    Args:
        coordinates: Centred, at equal distances in time, shape (n, d).

    Returns:
        τ in these distances, linear between two lags: the autocorrelation at lag k is the mean of y(t)·y(t + k) over
        that of |y(t)|². At most n − 1, and at least the value at which one step keeps 1 % of the correlation.
    """
    count, total = len(coordinates), float(np.square(coordinates).sum())
    if count < 2 or not total > 0:
        return 1.0
    before = 1.0
    for lag in range(1, count):
        together = float(np.sum(coordinates[:-lag] * coordinates[lag:])) / (count - lag)
        now = together / (total / count)
        if now < np.exp(-1):
            return float(max(lag - 1 + (before - np.exp(-1)) / (before - now), -1 / np.log(0.01)))
        before = now
    return float(count - 1)


def random_walk(steps: np.ndarray, dimensions: int, seed: int) -> np.ndarray:
    """A walk in random directions.

    Args:
        steps: Length of every step, shape (n − 1,).
        dimensions: Of the space.
        seed: Which walk.

    Returns:
        Points, shape (n, dimensions).
    """
    return _driven(steps, 1.0, np.zeros(dimensions), np.random.default_rng([_SEED, 0, seed]))


def pulled_path(steps: np.ndarray, dimensions: int, time: float, seed: int) -> np.ndarray:
    """An Ornstein–Uhlenbeck path at equal distances in time: x ← exp(−1/τ)x + step, in random directions.

    It is one of noisy steps on a quadratic bowl of the same curvature in all directions. It begins as far out as steps
    of the first length would keep it.

    Args:
        steps: Length of every push, shape (n − 1,).
        dimensions: Of the space.
        time: τ, in distances of the points.
        seed: Which path.

    Returns:
        Points, shape (n, dimensions).
    """
    kept, generator = float(np.exp(-1 / time)), np.random.default_rng([_SEED, 1, seed])
    start = generator.standard_normal(dimensions)
    first = steps[0] if len(steps) else 1.0
    start *= first / np.sqrt(1 - kept**2) / np.linalg.norm(start)
    return _driven(steps, kept, start, generator)


def _driven(steps: np.ndarray, kept: float, start: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    points = [start]
    for length in steps:
        direction = generator.standard_normal(len(start))
        points.append(kept * points[-1] + length * direction / np.linalg.norm(direction))
    return np.stack(points)
