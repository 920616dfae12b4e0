"""Rank correlations over few networks: with a bootstrap, given covariates, and with permutations."""

from itertools import permutations

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 2000
"""Of the bootstrap."""

LEAST = 5
"""Fewest networks for an interval."""

_SEED = 20_260_101
_EXACT = 7
"""Most networks of which all permutations are tried."""
_PERMUTATIONS = 9_999
_ROUNDING = 1e-9

Interval = tuple[float, float, float]


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of rows.

    Args:
        x: Values, infinite ones allowed, shape (…, n).
        y: Values of the same shape.

    Returns:
        Correlations, shape (…); NaN where all values of a row are equal.
    """
    return _correlation(rankdata(x, axis=-1), rankdata(y, axis=-1))


def partial_spearman(x: np.ndarray, y: np.ndarray, covariates: np.ndarray) -> np.ndarray:
    """Correlation of what is left of the ranks of x and y after straight lines in the ranks of covariates.

    Args:
        x: Values, shape (…, n).
        y: Values of the same shape.
        covariates: Shape (…, k, n).

    Returns:
        Correlations, shape (…); NaN where nothing is left of one of them, or fewer than two degrees of freedom are.
    """
    given = rankdata(covariates, axis=-1)
    given -= given.mean(axis=-1, keepdims=True)
    # Orthonormal rows of what the covariates span, of whatever rank: some resamples hold one of them constant.
    _, sizes, span = np.linalg.svd(given, full_matrices=False)
    span = span * (sizes > _ROUNDING * given.shape[-1])[..., None]
    freedom = given.shape[-1] - 2 - np.count_nonzero(sizes > _ROUNDING * given.shape[-1], axis=-1)

    def rest(values: np.ndarray) -> np.ndarray:
        ranks = rankdata(values, axis=-1)
        ranks -= ranks.mean(axis=-1, keepdims=True)
        return ranks - np.einsum("...k,...kn->...n", np.einsum("...kn,...n->...k", span, ranks), span)

    return np.where(freedom >= 2, _correlation(rest(x), rest(y)), np.nan)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (values - values.mean(axis=-1, keepdims=True) for values in (a, b))
    spread = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    # Ranks are multiples of a half: what is smaller than rounding is nothing.
    is_there = np.minimum((a**2).sum(axis=-1), (b**2).sum(axis=-1)) > _ROUNDING
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(is_there, np.clip((a * b).sum(axis=-1) / spread, -1, 1), np.nan)


def resamples(count: int) -> np.ndarray:
    """Networks drawn with replacement, the same for every pair of so many.

    Args:
        count: Number of networks n.

    Returns:
        Their places, shape (RESAMPLES, n).
    """
    return np.random.Generator(np.random.PCG64(_SEED)).integers(0, count, (RESAMPLES, count))


def percentiles(value: float, values: np.ndarray, count: int) -> Interval:
    """A value with its 95 % bootstrap interval.

    Args:
        value: The value.
        values: Those of the resamples.
        count: Number of networks.

    Returns:
        Value, lower and upper end; no ends below `LEAST` networks, or where a tenth of the resamples have no value.
    """
    finite = values[np.isfinite(values)]
    if count < LEAST or not np.isfinite(value) or len(finite) < 0.9 * len(values):
        return value, np.nan, np.nan
    low, high = np.percentile(finite, [2.5, 97.5])
    return value, float(low), float(high)


def p_value(x: np.ndarray, y: np.ndarray) -> float:
    """Probability of a correlation as large if the networks of one of them were permuted, of either sign.

    Args:
        x: Values, shape (n,).
        y: Values of the same shape.

    Returns:
        Exact for at most 7 networks, else from 9,999 permutations and the identity; NaN where there is no correlation.
    """
    count, found = len(x), float(spearman(x, y)) if len(x) else np.nan
    if not np.isfinite(found):
        return np.nan
    if count <= _EXACT:
        places = np.array(list(permutations(range(count))))
    else:
        generator = np.random.Generator(np.random.PCG64(_SEED))
        places = generator.permuted(np.tile(np.arange(count), (_PERMUTATIONS, 1)), axis=1)
        places = np.concatenate([np.arange(count)[None], places])
    ranks, other = rankdata(x), rankdata(y)
    others = _correlation(np.broadcast_to(ranks, places.shape), other[places])
    return float(np.mean(np.abs(others) >= abs(found) - _ROUNDING))


def half_width(count: int) -> float:
    """Half-width of a 95 % interval around no correlation (Fieller, Hartley & Pearson, Biometrika 44, 1957).

    Args:
        count: Number of networks n.

    Returns:
        tanh(1.96 √(1.06/(n − 3))): 0.46 for 20; 1 below 4.
    """
    return float(np.tanh(1.96 * np.sqrt(1.06 / (count - 3)))) if count > 3 else 1.0
