"""Estimates with intervals for statements, each with its target named, by numpy alone."""

import math
from collections.abc import Sequence

import numpy as np

from quadscape.findings.statement import Estimate
from quadscape.measures.slopes import slope

POINTS = 60
"""Points, even in the logarithm, through which a power law is fitted."""

PART = 2 / 3
"""Sub-ranges of a power law have this part of its logarithmic range."""

BLOCKS = 10
"""Fewest blocks of a mean over time."""

_T975 = {
    **{1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262},
    **{10: 2.228, 12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042, 60: 2.000, 10**9: 1.960},
}
"""Quantiles of Student's t by degrees of freedom; between two, the one of fewer holds."""


def finite(values: np.ndarray) -> np.ndarray:
    """The values that are finite."""
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values)]


def median_estimate(values: np.ndarray, over: str, unit: str = "1") -> Estimate:
    """A median with the distribution-free interval between order statistics.

    The interval [x₍ₖ₎, x₍ₙ₊₁₋ₖ₎] holds the median with probability 1 − 2 P(Bin(n, ½) < k) (for example Conover,
    Practical Nonparametric Statistics, 1999, section 3.2).

    Args:
        values: Values; what is not finite is left out.
        over: What the values are drawn from, for example "directions".
        unit: Unit.

    Returns:
        The median; below 6 values it has no 95 % interval.
    """
    ordered = np.sort(finite(values))
    count = len(ordered)
    if not count:
        return Estimate.alone(math.nan, "no values", unit)
    value, tail, place = float(np.median(ordered)), 0.5**count, 0
    while tail <= 0.025:
        place += 1
        # By logarithms: of a thousand values neither factor is a float.
        chosen = math.lgamma(count + 1) - math.lgamma(place + 1) - math.lgamma(count - place + 1)
        tail += math.exp(chosen - count * math.log(2))
    if not place:
        return Estimate.alone(value, f"median of {count} {over}: too few for an interval", unit)
    text = f"95 %, order statistics, over {count} {over}"
    return Estimate(value, float(ordered[place - 1]), float(ordered[count - place]), text, unit)


def power_law(x: np.ndarray, y: np.ndarray, what: str) -> Estimate:
    """The exponent p of y ∝ xᵖ, with its range over parts of the range of x.

    Errors of least squares mean nothing on sorted values: neighbours are not independent. What is told instead is how
    far the exponent depends on where it is read: least squares through values interpolated (in both logarithms) on
    points even in log x, over the whole range, and over parts of two thirds of it.

    Args:
        x: Positive values.
        y: Positive values, of the same shape.
        what: What the parts are of, for example "ranks 10 to 500".

    Returns:
        The exponent, from the smallest to the largest of the parts' exponents.
    """
    keep = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[keep], kind="stable")
    log_x, log_y = np.log(x[keep][order]), np.log(y[keep][order])
    if len(log_x) < 3 or log_x[-1] <= log_x[0]:
        return Estimate.alone(math.nan, "too few values for an exponent")
    grid = np.linspace(log_x[0], log_x[-1], POINTS)
    values = np.interp(grid, log_x, log_y)
    width = max(3, round(PART * POINTS))
    starts = (0, (POINTS - width) // 2, POINTS - width)
    value = slope(grid, values)
    parts = [value, *(slope(grid[start : start + width], values[start : start + width]) for start in starts)]
    text = f"smallest and largest over parts of {what}, on this training set"
    return Estimate(value, min(parts), max(parts), text)


def rank_correlation(x: np.ndarray, y: np.ndarray, over: str) -> Estimate:
    """Spearman's rank correlation with an interval by Fisher's z.

    The standard error of z is √((1 + r²/2)/(n − 3)) (Bonett & Wright, Psychometrika 65, 2000).

    Args:
        x: Values.
        y: Values of the same shape.
        over: What the pairs are drawn from.

    Returns:
        The correlation; without an interval below 6 pairs.
    """
    keep = np.isfinite(x) & np.isfinite(y)
    count = int(np.count_nonzero(keep))
    if count < 3:
        return Estimate.alone(math.nan, "too few pairs")
    a, b = (_ranks(values[keep]) for values in (np.asarray(x), np.asarray(y)))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Estimate.alone(math.nan, "no spread")
    r = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    if count < 6:
        return Estimate.alone(r, f"over {count} {over}: too few for an interval")
    z, half = math.atanh(min(max(r, -1 + 1e-12), 1 - 1e-12)), 1.96 * math.sqrt((1 + r**2 / 2) / (count - 3))
    return Estimate(r, math.tanh(z - half), math.tanh(z + half), f"95 %, Fisher's z, over {count} {over}")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties shared."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def time_mean(values: np.ndarray, unit: str = "1") -> Estimate:
    """Mean of a series, with an interval from the means of blocks.

    Blocks have at least twice the correlation time τ = 1 + 2Σρ(k), summed to the first ρ(k) ≤ 0 (Sokal, Monte Carlo
    methods in statistical mechanics, 1997), and there are at least `BLOCKS`.

    Args:
        values: Values at equal distances.
        unit: Unit.

    Returns:
        The mean; without an interval where the series is too short for the blocks.
    """
    series = finite(values)
    if not len(series):
        return Estimate.alone(math.nan, "no values", unit)
    mean = float(series.mean())
    length = max(1, math.ceil(2 * _correlation_time(series - mean)))
    blocks = min(len(series) // length, 60)
    if blocks < BLOCKS:
        return Estimate.alone(mean, f"{blocks} blocks of two correlation times: {BLOCKS} are needed", unit)
    size = len(series) // blocks
    means = series[: blocks * size].reshape(blocks, size).mean(axis=1)
    half = _student_quantile(blocks - 1) * float(means.std(ddof=1)) / math.sqrt(blocks)
    return Estimate(mean, mean - half, mean + half, f"95 %, Student's t, over {blocks} blocks of time", unit)


def paired_mean(values: np.ndarray, over: str, unit: str = "1") -> Estimate:
    """Mean of independent differences, with Student's interval.

    Args:
        values: One difference of each pair.
        over: What the pairs are drawn from, for example "seeds".
        unit: Unit.

    Returns:
        The mean; without an interval below two pairs, and NaN where a difference is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        return Estimate.alone(math.nan, "no pairs" if not len(values) else "a run diverged", unit)
    mean, count = float(values.mean()), len(values)
    if count < 2:
        return Estimate.alone(mean, f"one of {over}, no interval", unit)
    half = _student_quantile(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, f"95 %, Student's t, paired over {count} {over}", unit)


def _student_quantile(freedom: int) -> float:
    return next(t for least, t in reversed(_T975.items()) if least <= freedom)


def _correlation_time(centred: np.ndarray) -> float:
    power = float(centred @ centred)
    if power == 0:
        return 1.0
    total = 1.0
    for lag in range(1, len(centred) // 2):
        correlation = float(centred[:-lag] @ centred[lag:]) / power
        if correlation <= 0:
            break
        total += 2 * correlation
    return total


def factor(ours: float, theirs: float) -> float:
    """By how much two numbers differ: the larger magnitude over the smaller; ∞ if their signs differ."""
    if math.isnan(ours):
        return math.nan
    if ours * theirs <= 0:
        return math.inf
    return max(ours / theirs, theirs / ours)


def factor_interval(low: float, high: float, theirs: float) -> tuple[float, float]:
    """Smallest and largest `factor` over an interval of ours."""
    ends = (factor(low, theirs), factor(high, theirs))
    least = 1.0 if low <= theirs <= high else min(ends)
    return least, max(ends)


def largest_factor(ours: Sequence[tuple[float, float, float]], theirs: Sequence[float], interval: str) -> Estimate:
    """The largest factor between numbers of ours and published ones.

    Args:
        ours: Value, lower and upper end of each.
        theirs: The published numbers.
        interval: What the intervals of ours are.

    Returns:
        The largest factor; its interval follows from those of ours.
    """
    values = [factor(value, other) for (value, _, _), other in zip(ours, theirs, strict=True)]
    ends = [factor_interval(low, high, other) for (_, low, high), other in zip(ours, theirs, strict=True)]
    lows, highs = zip(*ends, strict=True)
    return Estimate(_largest(values), _largest(lows), _largest(highs), interval)


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)
