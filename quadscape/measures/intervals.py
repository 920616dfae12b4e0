"""Intervals over repeats."""

import math

import numpy as np
from scipy.special import stdtrit


def student(values: np.ndarray) -> tuple[float, float, float]:
    """Mean with its 95 % interval by Student's t.

    Args:
        values: Independent values, shape (n,); what is not finite makes the mean so, and takes the interval away.

    Returns:
        Mean, lower and upper end; the ends are NaN below two values, all three for none.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return (math.nan,) * 3
    mean = float(values.mean())
    if len(values) < 2 or not math.isfinite(mean):
        return mean, math.nan, math.nan
    half = float(stdtrit(len(values) - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def jackknife(value: float, without: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a value by the jackknife, with Student's t.

    Args:
        value: The value.
        without: What it is without each part in turn, shape (n,).

    Returns:
        Lower and upper end; the value itself where there are no parts, so that nothing was estimated; NaN for one.
    """
    count = len(without)
    if not count:
        return value, value
    if count < 2:
        return math.nan, math.nan
    half = float(stdtrit(count - 1, 0.975)) * math.sqrt((count - 1) * float(np.var(without)))
    return value - half, value + half


def relative_variance(values: np.ndarray) -> float:
    """Variance about a straight line, over the squared mean.

    A norm that falls steadily has no noise; the line takes that out.

    Args:
        values: A series of positive numbers at equal distances, shape (n,).

    Returns:
        The residual sum of squares over n − 2 and the squared mean; NaN below 8 values, or where any is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 8 or not np.isfinite(values).all() or values.mean() == 0:
        return math.nan
    place = np.arange(len(values)) - (len(values) - 1) / 2
    residual = values - values.mean() - place * (place @ values) / (place @ place)
    return float(residual @ residual) / (len(values) - 2) / float(values.mean()) ** 2
