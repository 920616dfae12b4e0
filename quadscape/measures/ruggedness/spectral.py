"""Scores of a spectrum: exact from all eigenvalues, or with errors from products with random vectors."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from quadscape.measures.intervals import student

if TYPE_CHECKING:
    from quadscape.curvature.matrix_free import ExtremeEigenpairs, SpectralDensity

EXACT = "exact, but for rounding"
VECTORS = "start vectors, Student's t"
BRACKETED = "start vectors, and what the quadrature leaves open"


class Value(NamedTuple):
    """A score's value with its interval.

    Attributes:
        value: The number; NaN where there is none.
        low: Lower end.
        high: Upper end.
        over: What the interval is over, or what it is instead.
        repeats: Number of repeats.
        ranked: Whether it may be compared.
    """

    value: float
    low: float
    high: float
    over: str
    repeats: int = 0
    ranked: bool = True

    def times(self, factor: float) -> "Value":
        """The value in another unit, by a positive factor."""
        return self._replace(value=factor * self.value, low=factor * self.low, high=factor * self.high)

    def above(self, floor: float) -> "Value":
        """The same of what is never below some number."""
        return self._replace(low=max(self.low, floor))


def exact_scores(eigenvalues: np.ndarray) -> dict[str, Value]:
    """Scores from all eigenvalues.

    Args:
        eigenvalues: In descending order, shape (P,).

    Returns:
        All scores of the spectrum by name.
    """
    values = np.asarray(eigenvalues, dtype=np.float64)
    weights = np.full(len(values), 1 / len(values))
    scale = float(np.abs(values).max())
    found = {name: score(values, weights, scale) for name, score in _AVERAGES.items()}
    found |= {"trace": float(values.sum()), "largest": float(values.max()), "smallest": float(values.min())}
    found["trace_over_norm"] *= math.sqrt(len(values))
    return {name: Value(value, value, value, EXACT) for name, value in found.items()}


def estimated_scores(density: "SpectralDensity", extremes: "ExtremeEigenpairs") -> dict[str, Value]:
    """The same from quadratures at random vectors, where there is no eigenbasis.

    Args:
        density: Quadratures.
        extremes: The largest and the smallest eigenpair.

    Returns:
        All scores of the spectrum by name. An interval of a share of the eigenvalues also holds what the quadrature
        leaves open: the weight of the node next to a cut may lie on either side of it (Chebyshev, Markov, Stieltjes).
    """
    count = len(density.nodes)
    scale = float(np.abs(extremes.eigenvalues).max())
    found: dict[str, Value] = {}
    for name, score in _AVERAGES.items():
        each = np.array(
            [score(nodes, weights, scale) for nodes, weights in zip(density.nodes, density.weights, strict=True)]
        )
        found[name] = Value(*student(each), VECTORS, count)
    for name, cut in _CUTS.items():
        pairs = [_below(*row, -cut * scale) for row in zip(density.nodes, density.weights, strict=True)]
        middle = found[name]
        low = min(middle.low, float(np.mean([pair[0] for pair in pairs])))
        high = max(middle.high, float(np.mean([pair[1] for pair in pairs])))
        found[name] = Value(middle.value, max(low, 0.0), min(high, 1.0), BRACKETED, count)
    found["trace"] = found["mean_curvature"].times(density.size)
    found["trace_over_norm"] = found["trace_over_norm"].times(math.sqrt(density.size))
    for name, place in (("largest", 0), ("smallest", -1)):
        value, error = float(extremes.eigenvalues[place]), float(extremes.residuals[place])
        found[name] = Value(value, value - error, value + error, "residual of the eigenpair")
    return found


def _fraction(cut: float) -> Callable[..., float]:
    def below(values: np.ndarray, weights: np.ndarray, scale: float) -> float:
        return float(weights[values < -cut * scale].sum())

    return below


def _mass(cut: float) -> Callable[..., float]:
    def negative(values: np.ndarray, weights: np.ndarray, scale: float) -> float:
        each = weights * np.abs(values)
        total = float(each.sum())
        return float(each[values < -cut * scale].sum()) / total if total > 0 else np.nan

    return negative


def _quantile_ratio(values: np.ndarray, weights: np.ndarray, scale: float) -> float:
    above = values > 1e-3 * scale
    return _ratio(values[above], weights[above], 0.9, 0.5)


def _mass_ratio(values: np.ndarray, weights: np.ndarray, scale: float) -> float:
    above = values > 0
    return _ratio(values[above], (weights * values)[above], 0.9, 0.1)


def _ratio(values: np.ndarray, weights: np.ndarray, upper: float, lower: float) -> float:
    """Quotient of two weighted quantiles: the smallest values below or at which such a share of the weight lies."""
    if not weights.sum() > 0:
        return np.nan
    order = np.argsort(values)
    shares = np.cumsum(weights[order]) / weights.sum()
    # Shares are off by rounding.
    high, low = (values[order][np.argmax(shares > share - 1e-12)] for share in (upper, lower))
    return float(high / low)


def _mean(values: np.ndarray, weights: np.ndarray, scale: float) -> float:
    return float(weights @ values)


def _spread(values: np.ndarray, weights: np.ndarray, scale: float) -> float:
    return float(np.sqrt(weights @ np.square(values - weights @ values)))


def _positivity(values: np.ndarray, weights: np.ndarray, scale: float) -> float:
    square = float(weights @ np.square(values))
    return float(weights @ values) / float(np.sqrt(square)) if square > 0 else np.nan


_CUTS = {"negative_fraction_1e-2": 1e-2, "negative_fraction_1e-3": 1e-3}
_AVERAGES: dict[str, Callable[..., float]] = {
    "mean_curvature": _mean,
    "spread": _spread,
    "trace_over_norm": _positivity,
    **{name: _fraction(cut) for name, cut in _CUTS.items()},
    "negative_mass_1e-2": _mass(1e-2),
    "negative_mass": _mass(0.0),
    "quantile_ratio": _quantile_ratio,
    "mass_ratio": _mass_ratio,
}
"""What is an average over the eigenvalues, given these with weights of sum 1."""


def _below(nodes: np.ndarray, weights: np.ndarray, cut: float) -> tuple[float, float]:
    """Bounds on the weight below a cut of every measure with this quadrature."""
    # Rows are filled up with nodes of weight 0, which are none.
    real = weights > 0
    nodes, weights = nodes[real], weights[real]
    place = int(np.searchsorted(nodes, cut))
    total = np.concatenate([[0.0], np.cumsum(weights)])
    return float(total[max(place - 1, 0)]), float(total[min(place + 1, len(weights))])
