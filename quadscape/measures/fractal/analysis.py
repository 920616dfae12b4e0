"""How rough is a window? Its smooth part, structure function, exponent and rounding floor, from plain arrays.

S₂(h), the mean square of r(t + h) − r(t), grows as h^2H for a function with Hölder exponent H < 1, and as h² for one
that is differentiable almost everywhere, with kinks or without. So a kinked function is no fractal here: its exponent
is 2.

The smooth part is a polynomial of degree `DEGREE`. The degree is a compromise. What it leaves of an analytic function
falls by 10^(DEGREE + 1) from window to window, so that after a few windows only rounding is left, whereas a fractal
falls by 10^H and stays. But what it leaves in wide windows is a wave with DEGREE + 1 zeros, whose exponent is 2 only at
lags far below its period; a higher degree would leave no decade of such lags. Least-squares polynomials wave faster
near the ends, which are fitted but not read.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import stdtrit
from scipy.stats import chi2

from quadscape.measures.fractal.declaration import (
    DEGREE,
    DIFFERENTIABLE,
    FACTOR,
    NOT_FINITE,
    NOTHING,
    ROUGH,
    SMOOTH,
    WHITE,
)

BLOCKS = 8
"""Blocks of the jackknife."""

_ENDS = 8
_PERIOD = 64
_ALTERNATING = np.array([1.0, -4.0, 6.0, -4.0, 1.0])


class Floor(NamedTuple):
    """The rounding error of one loss.

    Attributes:
        value: Its standard deviation σ.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


class Roughness(NamedTuple):
    """What a window says.

    Attributes:
        structure: S₂ at all lags, shape (lags,).
        error: Its standard error by the jackknife.
        excess: Smallest S₂/2σ² of the lags that are fitted.
        exponent: ζ, NaN unless the excess is large enough.
        low: Lower end of its 95 % interval.
        high: Upper end.
        state: One of the states of the declaration.
    """

    structure: np.ndarray
    error: np.ndarray
    excess: float
    exponent: float
    low: float
    high: float
    state: str


def lags(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Lags in steps of the grid, about half an octave apart.

    Args:
        points: Points of a window.

    Returns:
        Increasing int64 lags up to a quarter of the window, and which of them are fitted: up to a 64th, where the
        exponent of a wave with DEGREE + 1 zeros is still 2.
    """
    octaves = math.log2(points // 4)
    found = np.unique(np.rint(2.0 ** np.arange(0, octaves + 1e-9, 0.5)).astype(np.int64))
    return found, found <= (points - 1) // _PERIOD


def residual(rise: np.ndarray) -> np.ndarray:
    """What the polynomial of degree `DEGREE` leaves of values on an even grid.

    Args:
        rise: The values, shape (points,).

    Returns:
        The rest, of the same shape; NaN throughout if any value is not finite.
    """
    if not np.isfinite(rise).all():
        return np.full(len(rise), math.nan)
    x = np.linspace(-1.0, 1.0, len(rise))
    return rise - chebyshev.chebval(x, chebyshev.chebfit(x, rise, DEGREE))


def middle(points: int) -> slice:
    """The part of a window that is read: the middle three quarters."""
    return slice(points // _ENDS, points - points // _ENDS)


def rounding(stencil: np.ndarray, least: float) -> Floor:
    """The rounding error of one loss, from fourth differences.

    Args:
        stencil: Losses at θ + td + ku for k = −2 … 2, shape (samples, 5); u is far above the resolution of θ, and so
            small that the fourth difference of the loss itself is far below rounding.
        least: Standard deviation of what fourth differences may miss, added in squares.

    Returns:
        σ with its interval.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.square(stencil @ _ALTERNATING) / float(_ALTERNATING @ _ALTERNATING)
    variance, count = float(squares.mean()), len(squares)
    ends = [count * variance / float(chi2.ppf(share, count)) for share in (0.975, 0.025)]
    return Floor(*(math.sqrt(part + least**2) for part in (variance, *ends)))


def roughness(left: np.ndarray, floor: float) -> Roughness:
    """Structure function of a window and its exponent.

    Args:
        left: What the polynomial leaves, shape (points,).
        floor: σ.

    Returns:
        What the window says.
    """
    read = left[middle(len(left))]
    steps, fitted = lags(len(left))
    if not np.isfinite(read).all():
        nothing = np.full(len(steps), math.nan)
        return Roughness(nothing, nothing, *(math.nan,) * 4, NOT_FINITE)
    structure, without = _structure(read, steps)
    error = np.sqrt((BLOCKS - 1) * without.var(axis=1))
    white = 2 * floor**2
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = float(np.nan_to_num(structure[fitted] / white, nan=0.0, posinf=math.inf).min())
    if not excess >= FACTOR:
        return Roughness(structure, error, excess, *(math.nan,) * 3, NOTHING)
    exponent, low, high = _exponent(steps[fitted], structure[fitted] - white, without[fitted] - white)
    state = SMOOTH
    if high < DIFFERENTIABLE:
        state = ROUGH if low > 0 else WHITE
    return Roughness(structure, error, excess, exponent, low, high, state)


def _structure(read: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S₂, and S₂ without each of the blocks, shape (lags, BLOCKS)."""
    structure, without = [], []
    for lag in steps.tolist():
        blocks = np.array_split(np.square(read[lag:] - read[:-lag]), BLOCKS)
        sums, counts = np.array([block.sum() for block in blocks]), np.array([len(block) for block in blocks])
        structure.append(sums.sum() / counts.sum())
        without.append((sums.sum() - sums) / (counts.sum() - counts))
    return np.array(structure), np.array(without)


def _exponent(steps: np.ndarray, structure: np.ndarray, without: np.ndarray) -> tuple[float, float, float]:
    """Slope in logarithms, with the jackknife; ends are NaN where nothing is left without one of the blocks."""
    place = np.log(steps) - np.log(steps).mean()
    weights = place / (place @ place)
    value = float(weights @ np.log(structure))
    if not (without > 0).all():
        return value, math.nan, math.nan
    error = math.sqrt((BLOCKS - 1) * float((weights @ np.log(without)).var()))
    half = float(stdtrit(BLOCKS - 1, 0.975)) * error
    return value, value - half, value + half
