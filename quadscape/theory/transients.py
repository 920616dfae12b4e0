"""How mean and variance of a direction change from step to step, whatever the learning rate does meanwhile."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from quadscape.theory.batches import Sampling
from quadscape.theory.momentum import Momentum
from quadscape.theory.stationary import REFUSED


@dataclass(frozen=True)
class Moments:
    """Moments of the state (x, v) of directions after some steps.

    Attributes:
        mean: Shape (n, 2).
        covariance: Shape (n, 2, 2).
    """

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def square(self) -> np.ndarray:
        """E x², shape (n,)."""
        return self.covariance[:, 0, 0] + self.mean[:, 0] ** 2


def second_moments(
    rules: Iterable[Momentum],
    sampling: Sampling,
    curvature: np.ndarray,
    noise: np.ndarray,
    start: Moments,
    *,
    position: int = 0,
    curvature_variance: np.ndarray | None = None,
) -> Iterator[Moments]:
    """Exact moments after every step.

    Noise of reshuffled batches is kept as what the examples of the present epoch have done so far: with m that
    response, the covariance is S² times Σ_t (1/b_t)(response to step t)² − (1/N)(Σ mmᵀ over epochs), for any remainder.

    Args:
        rules: The step of each iteration; rates may change, which v does not.
        sampling: How batches are drawn.
        curvature: λ̃, any sign, shape (n,).
        noise: c, shape (n,).
        start: Moments before the first step, which the batches to come know nothing of. Within an epoch that is so
            only if x is not random.
        position: Number of steps taken before in the stream of batches.
        curvature_variance: Var hₙ over examples, shape (n,), where `noise` is c at the minimum.

    Yields:
        The moments after 1, 2, … steps.

    Raises:
        ValueError: Multiplicative noise was given for reshuffled batches.
    """
    if curvature_variance is not None and sampling.reshuffled:
        raise ValueError(REFUSED)
    curvature, noise = np.asarray(curvature, dtype=np.float64), np.asarray(noise, dtype=np.float64)
    mean, covariance = start.mean.copy(), start.covariance.copy()
    past, present = np.zeros_like(covariance), np.zeros_like(mean)
    for step, rule in enumerate(rules, start=position):
        matrix, response = rule.transition(curvature), rule.response
        slopes = sampling.variance * noise
        if curvature_variance is not None:
            slopes = slopes + sampling.variance * curvature_variance * (covariance[:, 0, 0] + mean[:, 0] ** 2)
        mean = np.einsum("nij,nj->ni", matrix, mean)
        covariance = _turned(matrix, covariance)
        if not sampling.reshuffled:
            covariance = covariance + slopes[:, None, None] * np.outer(response, response)
            yield Moments(mean, covariance)
            continue
        size, parts = _parts(sampling, step)
        own = sampling.spread * noise / size
        covariance = covariance + own[:, None, None] * np.outer(response, response)
        past, present = _turned(matrix, past), np.einsum("nij,nj->ni", matrix, present)
        present = present + parts[0] / size * response
        for share in parts[1:]:  # examples of the next epoch: nothing of this one comes any more
            past = past + present[:, :, None] * present[:, None, :]
            present = np.broadcast_to(share / size * response, present.shape).copy()
        together = past + present[:, :, None] * present[:, None, :]
        known = (sampling.spread * noise / sampling.examples)[:, None, None]
        yield Moments(mean, covariance - known * together)


def _turned(matrix: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return matrix @ covariance @ matrix.transpose(0, 2, 1)


def _parts(sampling: Sampling, step: int) -> tuple[int, list[int]]:
    """Examples of the batch of a step, and how many of them are of the present epoch, and of the next if that began."""
    count, size = sampling.examples, sampling.batch
    if sampling.remainder == "wrap":
        left = count - step * size % count
        return size, [size] if left > size else [left, size - left]
    sizes = sampling.sizes
    place = step % len(sizes)
    # The last batch of an epoch ends it.
    return int(sizes[place]), [int(sizes[place])] + [0] * (place == len(sizes) - 1)
