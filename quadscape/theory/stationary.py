"""How a direction fluctuates in a stationary state: variance, structure function, and what a finite window shows.

x is the coordinate of a direction of curvature λ̃ (with weight decay), noise its c. Of all lags k the model gives
ρ_k = Σ_t g_t g_{t+k}, g the response of x to one unit of noise, by the closed form of ρ₀ and the recursion
ρ_{k+1} = (tr A)ρ_k − (det A)ρ_{k−1}. In flat directions everything cancels but a small part, so that differences
d_k = ρ₀ − ρ_k are what is computed: d_{k+1} = (tr A)d_k − (det A)d_{k−1} + hρ₀, d₀ = 0.

With replacement these are in closed form (Liu, Ziyin & Ueda, arXiv 2012.03636; Gitman et al., arXiv 1910.13962).
Without, noise of an epoch sums to zero, which reduces the variance of flat directions (Kühn & Rosenow, arXiv
2306.05300); the sum over lags here is exact for any N and B.
"""

import math

import numpy as np
from scipy.signal import correlate, fftconvolve

from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum

REFUSED = "multiplicative noise of reshuffled batches has no formula here; give the plateau's mean c"

_CHUNK = 1 << 22
"""Numbers in an array of lags and directions."""


def unit_variance(rule: Momentum, curvature: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ρ₀ and d₁ = ρ₀ − ρ₁: variance and first step of the structure function, for white noise of variance 1.

    Args:
        rule: The step.
        curvature: λ̃, shape (n,).

    Returns:
        Both float64, shape (n,); NaN where there is no stationary state.
    """
    curvature = np.asarray(curvature, dtype=np.float64)
    curvature = np.where(rule.is_stable(curvature), curvature, np.nan)
    rate, mu = rule.rate, rule.momentum
    h = rate * curvature
    if rule.nesterov:
        below = curvature * (1 - mu + mu * h) * (2 * (1 + mu) - (1 + 2 * mu) * h)
        variance = rate * (1 + mu + mu * (1 + 2 * mu) * h) / below
        # The noise of a step acts in the next one too, by ημ: ρ₁ = ((tr A)ρ₀ − η²μ(1+μ)) / (1 + det A).
        return variance, (h * variance + rate**2 * mu * (1 + mu)) / (1 + rule.determinant(curvature))
    variance = rate * (1 + mu) / (curvature * (1 - mu) * (2 * (1 + mu) - h))
    return variance, h / (1 + mu) * variance


def stationary_variance(
    rule: Momentum,
    sampling: Sampling,
    curvature: np.ndarray,
    noise: np.ndarray,
    curvature_variance: np.ndarray | None = None,
) -> np.ndarray:
    """Var x of directions in their stationary state, averaged over the phase of the epoch.

    Args:
        rule: The step.
        sampling: How batches are drawn.
        curvature: λ̃ = λ + δ, shape (n,).
        noise: c, the variance of slopes gₙᵀq over examples (divided by N), averaged over the plateau: it then holds all
            multiplicative noise. Shape (n,).
        curvature_variance: Var hₙ over examples, shape (n,), if `noise` is c at the minimum: slopes of a batch then
            vary by Var(hₙ)·x² more. Known for independent batches only.

    Returns:
        Float64, shape (n,). NaN where 0 < h < limit does not hold; infinite where multiplicative noise leaves no finite
        variance.

    Raises:
        ValueError: Multiplicative noise was given for reshuffled batches.
    """
    unit, first = unit_variance(rule, curvature)
    if curvature_variance is not None:
        if sampling.reshuffled:
            raise ValueError(REFUSED)
        more = sampling.variance * np.asarray(curvature_variance) * unit
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(
                more < 1, sampling.variance * noise * unit / (1 - more), np.where(np.isnan(unit), np.nan, np.inf)
            )
    if not sampling.reshuffled:
        return sampling.variance * noise * unit
    trace, determinant = rule.trace(curvature), rule.determinant(curvature)
    h = rule.rate * np.asarray(curvature, dtype=np.float64)
    # Σ_k r_k ρ_k = ρ₀ Σ_k r_k − Σ_k r_k d_k: the first sum is 0 or small, the second has no cancellation.
    before, now, total = np.zeros_like(unit), first, np.zeros_like(unit)
    for share in sampling.shared:
        total += share * now
        before, now = now, trace * now - determinant * before + h * unit
    return sampling.spread * noise * (sampling.surplus * unit + 2 / sampling.examples * total)


def window_variance(
    rule: Momentum,
    sampling: Sampling,
    curvature: np.ndarray,
    noise: np.ndarray,
    steps: int,
    degree: int = 1,
) -> np.ndarray:
    """Expectation of the variance about a trend within a window of the stationary state.

    The statistic is Σ_t (x_t − p(t))²/(T − degree − 1), p the polynomial of least squares; its expectation is averaged
    over the phase of the epoch at which the window begins. It needs differences E(x_t − x_s)² alone, which are exact
    also where a direction takes far longer than the window to come to rest.

    Args:
        rule: The step.
        sampling: How batches are drawn.
        curvature: λ̃ = λ + δ, shape (n,).
        noise: c, averaged over the plateau, shape (n,).
        steps: Iterates T in the window, each a step after the one before; more than degree + 1.
        degree: 1 about a straight line, 0 about the mean.

    Returns:
        Float64, shape (n,); NaN where there is no stationary state.
    """
    curvature, noise = np.asarray(curvature, dtype=np.float64), np.asarray(noise, dtype=np.float64)
    weights = _lag_weights(steps, degree)
    found = np.empty(len(curvature))
    together = max(1, _CHUNK // (steps + 2 * len(sampling.shared)))
    for start in range(0, len(curvature), together):
        part = slice(start, start + together)
        structure = structure_function(rule, sampling, curvature[part], noise[part], steps)
        found[part] = structure @ weights / (steps - degree - 1)
    return found


def structure_function(
    rule: Momentum, sampling: Sampling, curvature: np.ndarray, noise: np.ndarray, steps: int
) -> np.ndarray:
    """½E(x_{t+k} − x_t)² of the stationary state, averaged over the phase of the epoch.

    Args:
        rule: The step.
        sampling: How batches are drawn.
        curvature: λ̃ = λ + δ, shape (n,).
        noise: c, shape (n,).
        steps: Number of lags.

    Returns:
        Var x − Cov(x_t, x_{t+k}) for k = 0 … steps − 1, float64, shape (n, steps).
    """
    unit, first = unit_variance(rule, curvature)
    reach = len(sampling.shared)
    trace, determinant = rule.trace(curvature), rule.determinant(curvature)
    h = rule.rate * np.asarray(curvature, dtype=np.float64)
    differences = np.zeros((steps + reach, len(unit)))
    if len(differences) > 1:
        differences[1] = first
    for lag in range(2, len(differences)):
        differences[lag] = trace * differences[lag - 1] - determinant * differences[lag - 2] + h * unit
    scale = sampling.spread * noise
    if not sampling.reshuffled:
        return (sampling.variance * noise * differences[:steps]).T
    # D_k = Σ_j r_j (d_{k−j} − d_j) over lags j of both signs.
    kernel = np.concatenate([sampling.shared[::-1], [0.0], sampling.shared])
    around = np.concatenate([differences[reach:0:-1], differences])
    found = fftconvolve(around, kernel[:, None], mode="valid", axes=0)
    own = 2 * (sampling.shared @ differences[1 : reach + 1])
    return (scale * (sampling.variance / sampling.spread * differences[:steps] - (found - own) / sampling.examples)).T


def _lag_weights(steps: int, degree: int) -> np.ndarray:
    """How often lags k occur in the part of a window that its trend explains: Σ_t (x_t − p)² = Σ_k weight_k D_k."""
    if steps <= degree + 1:
        raise ValueError(f"a window of {steps} iterates has no variance about a polynomial of degree {degree}")
    time = np.arange(steps) - (steps - 1) / 2
    parts = [np.full(steps, 1 / math.sqrt(steps))]
    if degree:
        parts.append(time / np.linalg.norm(time))
    return 2 * np.sum([correlate(part, part, mode="full")[steps - 1 :] for part in parts], axis=0)
