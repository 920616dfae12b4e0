"""How well an embedding keeps neighbourhoods: trustworthiness and continuity (Venna & Kaski 2001)."""

import numpy as np


def trustworthiness(original: np.ndarray, embedded: np.ndarray, neighbours: int, gap: float = 0.0) -> float:
    """Whether points that are neighbours in the embedding are so in the original space.

    The mean over the points i of 1 − 2/(k(2m − 3k + 1)) Σ max(0, r(i, j) − k) over the k nearest j in the embedding,
    where r is the rank of j among the m points that may be neighbours of i, by distance in the original space. Without
    a gap that is m = n − 1 and scikit-learn's number; a random embedding has about ½. With the two spaces exchanged it
    is the continuity.

    Args:
        original: Points, one row each in the order of time, shape (n, d).
        embedded: The same points, shape (n, e).
        neighbours: k.
        gap: Points less than this many rows away are no neighbours; they are not ranked either.

    Returns:
        From 0 to 1, over the points that have 2k others or more; NaN where these are less than half of all.
    """
    count = len(original)
    between = np.abs(np.arange(count)[:, None] - np.arange(count))
    allowed = between >= max(gap, 1)
    others = allowed.sum(axis=1)
    usable = others >= 2 * neighbours
    if 2 * np.count_nonzero(usable) < max(count, 1):
        return float("nan")
    ranks, shown = _ranks(original, allowed), _ranks(embedded, allowed)
    excess = np.where(shown <= neighbours, np.maximum(ranks - neighbours, 0), 0).sum(axis=1)
    # The most that the sum can be.
    most = neighbours * (2 * others[usable] - 3 * neighbours + 1) / 2
    return float(np.mean(1 - excess[usable] / most))


def _ranks(points: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Rank of every point among the neighbours of every other, from 1; n + 1 where it is none; shape (n, n)."""
    distances = np.where(allowed, distances_of(points), np.inf)
    order = np.argsort(distances, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, len(points) + 1)[None, :], axis=1)
    return np.where(allowed, ranks, len(points) + 1)


def distances_of(points: np.ndarray) -> np.ndarray:
    """Euclidean distances between all points, shape (n, n)."""
    from scipy.spatial.distance import cdist

    return cdist(points, points)
