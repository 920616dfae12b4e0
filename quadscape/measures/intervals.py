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
