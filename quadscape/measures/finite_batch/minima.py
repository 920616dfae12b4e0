"""Minima of many lines at once, and their slopes and curvatures at the centre, from splines and differences."""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

LEAST_POINTS = 4
"""Fewest points of a line that has a minimum."""

ROUNDING = 1e-9
"""Parts of an interval by which a minimum may lie outside of it."""


@dataclass(frozen=True)
class Minima:
    """Where each of M lines is least.

    Attributes:
        place: Shape (M,); −∞ or ∞ where the line is least at its negative or positive end.
        value: The line's value there, or at that end.
        curvature: Second derivative there; NaN at an end.
    """

    place: np.ndarray
    value: np.ndarray
    curvature: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """Which of them have a minimum on the line."""
        return np.isfinite(self.place)


def minima(t: np.ndarray, values: np.ndarray) -> Minima:
    """The least place of each line, from the cubic spline through its points.

    On one interval a spline is y = ax³ + bx² + cx + d; where it is least, x = −c/(b + s), s = √(b² − 3ac), and its
    second derivative is 2s.

    Args:
        t: Ascending points, at least `LEAST_POINTS`, shape (T,).
        values: Finite values of the lines, float64, shape (T, M).

    Returns:
        Their minima.
    """
    a, b, c, d = CubicSpline(t, values).c
    width = np.diff(t)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        s = np.sqrt(b * b - 3 * a * c)
        # Of the two forms of the root the one that loses no digits.
        x = np.where(b >= 0, -c / (b + s), (s - b) / (3 * a))
        # At a point of the grid rounding may put it just outside of both intervals.
        found = (x >= -ROUNDING * width) & (x <= (1 + ROUNDING) * width) & (s > 0)
        heights = np.where(found, d + x * (c + x * (b + x * a)), np.inf)
    best, every = heights.argmin(axis=0), np.arange(values.shape[1])
    value, ends = heights[best, every], values[[0, -1]]
    inside = value < ends.min(axis=0)
    side = np.where(ends[0] < ends[1], -np.inf, np.inf)
    return Minima(
        np.where(inside, t[best] + x[best, every], side),
        np.where(inside, value, ends.min(axis=0)),
        np.where(inside, 2 * s[best, every], np.nan),
    )


def thinned(t: np.ndarray, spacing: float) -> np.ndarray:
    """Which points of a symmetric grid to keep, so that none are nearer to each other than a spacing.

    Args:
        t: Symmetric grid with 0 in the middle, denser near it.
        spacing: The least distance.

    Returns:
        Booleans; 0 stays, and what stays is symmetric.
    """
    half = len(t) // 2
    keep = np.zeros(len(t), dtype=bool)
    keep[half] = True
    last = 0.0
    for place in range(half + 1, len(t)):
        if t[place] - last >= spacing:
            keep[place] = keep[2 * half - place] = True
            last = t[place]
    return keep


def derivatives(t: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivative of many lines at the centre of a grid, from differences from there.

    (f(t) − f(−t))/2t = f′ + f‴t²/6 + … and (f(t) + f(−t))/t² = f″ + f⁗t²/12 + …; the second term is removed with the
    point at twice the place on the grid (Richardson). Of all such pairs of points the one is taken that changes least
    towards its neighbours, root mean square over the lines: far out the next terms change it, near the centre rounding.

    Args:
        t: Symmetric grid with 0 in the middle, at least 5 points, shape (T,).
        values: f(t) − f(0), finite, shape (T, M).

    Returns:
        f′ and f″ at 0, shape (M,) each.
    """
    half = len(t) // 2
    side, ahead, behind = t[half + 1 :, None], values[half + 1 :], values[:half][::-1]
    return _extrapolated(side, (ahead - behind) / (2 * side)), _extrapolated(side, (ahead + behind) / side**2)


def _extrapolated(side: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The limit at 0 of values that depend on the square of a distance."""
    near = np.arange(max(len(side) // 2, 1))
    far = np.minimum(2 * near + 1, len(side) - 1)
    if len(side) < 2:
        return values[0]
    squares = (side[far] / side[near]) ** 2
    estimates = (squares * values[near] - values[far]) / (squares - 1)
    steps = np.sqrt(np.square(np.diff(estimates, axis=0)).mean(axis=1))
    change = np.maximum(np.append(steps, 0), np.insert(steps, 0, 0))
    return estimates[int(change.argmin())]
