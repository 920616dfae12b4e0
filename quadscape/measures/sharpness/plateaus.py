"""Means over plateaus of constant learning rate, and whether sharpening has stopped there."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import stdtrit

from quadscape.measures.embedding.nulls import correlation_time
from quadscape.measures.intervals import student
from quadscape.measures.sharpness.declaration import BLOCKS

MOST_BLOCKS = 20
"""Most blocks: longer ones are less correlated."""

SEEN = 0.25
"""Half-width of the relative change up to which a trend would have been seen."""

_NOTHING = (math.nan,) * 3


def plateau_row(columns: Mapping[str, np.ndarray], first: int, last: int, rate: float) -> dict[str, Any]:
    """One row of `sharpness_plateaus`.

    Args:
        columns: Columns of `sharpness`, ascending in iteration, and `limit_ratio`, (λ₁ + δ) over the limit.
        first: Steps taken before the plateau.
        last: Steps taken at its end.
        rate: η.

    Returns:
        Values by column. The later half of the plateau counts, without iterates that failed.
    """
    steps = columns["iteration"]
    inside = (steps > first + (last - first) / 2) & (steps <= last) & (columns["state"] == "converged")
    of = {name: values[inside] for name, values in columns.items() if values.dtype.kind == "f"}
    steps, count = steps[inside].astype(np.float64), int(np.count_nonzero(inside))
    time = _time(steps, of["largest"])
    # A mean over 2τ knows little of the next.
    blocks = min(MOST_BLOCKS, count // max(1, math.ceil(2 * time))) if count >= BLOCKS else 0
    blocks = blocks if blocks >= BLOCKS else 0
    change = _change(steps, of["largest"], blocks)
    row: dict[str, Any] = {"first": first, "last": last, "learning_rate": rate, "iterates": count}
    row |= {"correlation_time": time, "blocks": blocks}
    row["settled"] = bool(change[1] <= 0 <= change[2] and change[2] - change[1] <= 2 * SEEN)
    means = {
        "change": change,
        "largest": _mean(of["largest"], blocks),
        "limit_ratio": _mean(of["limit_ratio"], blocks),
        "batch_sharpness": _mean(of["batch_sharpness"], blocks),
        "batch_ratio": _mean(of["batch_sharpness"] * rate / 2, blocks),
        "loss": _mean(of["loss"], blocks),
    }
    for name, values in means.items():
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    return row


def _time(steps: np.ndarray, values: np.ndarray) -> float:
    """Correlation time about a straight line, in iterates."""
    if len(steps) < BLOCKS:
        return math.nan
    residual = values - np.polynomial.Polynomial.fit(steps, values, 1)(steps)
    return correlation_time(residual[:, None])


def _mean(values: np.ndarray, blocks: int) -> tuple[float, float, float]:
    if not len(values):
        return _NOTHING
    if not blocks:
        return float(values.mean()), math.nan, math.nan
    _, low, high = student(np.array([part.mean() for part in np.array_split(values, blocks)]))
    return float(values.mean()), low, high


def _change(steps: np.ndarray, values: np.ndarray, blocks: int) -> tuple[float, float, float]:
    """Relative change along the line through the means of blocks, with its interval."""
    if not blocks:
        return _NOTHING
    times = np.array([part.mean() for part in np.array_split(steps, blocks)])
    means = np.array([part.mean() for part in np.array_split(values, blocks)])
    times, level = times - times.mean(), float(means.mean())
    slope = float(times @ means) / float(times @ times)
    residual = means - level - slope * times
    error = math.sqrt(float(residual @ residual) / (blocks - 2) / float(times @ times))
    unit = float(steps[-1] - steps[0]) / abs(level) if level else math.nan
    half = float(stdtrit(blocks - 2, 0.975)) * error * unit
    return slope * unit, slope * unit - half, slope * unit + half
