"""Plain stand-ins with closed forms: an eigenbasis in memory and losses that are sums of functions of projections."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from quadscape.measures import MEASURES


def chosen(measure: str, **given: Any) -> SimpleNamespace:
    """Options of a measure, by default those of its declaration."""
    return SimpleNamespace(**{option.name: option.default for option in MEASURES[measure].options} | given)


class PlainBasis:
    """An eigenbasis held as an array."""

    def __init__(self, eigenvalues: np.ndarray, vectors: np.ndarray, zero_threshold: float = 0.0) -> None:
        self.eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
        self._vectors = vectors
        self.zero_threshold = zero_threshold

    def vectors(self, start: int, stop: int) -> np.ndarray:
        return self._vectors[:, start:stop]


def random_orthogonal(size: int, seed: int) -> np.ndarray:
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return q * np.sign(np.diag(r))


class SeparableObjective:
    """L(θ) = offset + Σᵢ fᵢ(qᵢᵀ(θ − θ₀)): every line through θ₀ along qᵢ is fᵢ, exactly.

    Examples differ by terms that cancel in the mean, so that differences of single losses are exercised.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        functions: list[Callable[[float], float]],
        centre: np.ndarray,
        count: int = 16,
        offset: float = 1.0,
    ) -> None:
        self._vectors, self._functions, self._centre, self._offset = vectors, functions, centre, offset
        self.size, self.count = len(vectors), count
        noise = np.random.default_rng(5).standard_normal((count, self.size))
        self._noise = noise - noise.mean(axis=0)

    def _along(self, theta: np.ndarray) -> np.ndarray:
        return self._vectors.T @ (theta - self._centre)

    def example_losses(self, theta: np.ndarray) -> np.ndarray:
        along = self._along(theta)
        mean = self._offset + sum(f(a) for f, a in zip(self._functions, along, strict=True))
        return mean + 0.01 * self._noise @ along

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        h = 1e-5
        along = self._along(theta)
        slopes = [(f(a + h) - f(a - h)) / (2 * h) for f, a in zip(self._functions, along, strict=True)]
        return self._vectors @ np.array(slopes)

    def hessian_product(self, theta: np.ndarray, v: np.ndarray) -> np.ndarray:
        h = 1e-3
        along = self._along(theta)
        curvatures = [
            (-f(a + 2 * h) + 16 * f(a + h) - 30 * f(a) + 16 * f(a - h) - f(a - 2 * h)) / (12 * h * h)
            for f, a in zip(self._functions, along, strict=True)
        ]
        return self._vectors @ (np.array(curvatures) * (self._vectors.T @ v))


class InFloat32:
    """An objective whose parameters and losses are rounded to float32, as a network in that precision does."""

    def __init__(self, objective: SeparableObjective) -> None:
        self._objective = objective
        self.size, self.count, self.evaluations = objective.size, objective.count, 0

    def example_losses(self, theta: np.ndarray) -> np.ndarray:
        self.evaluations += 1
        losses = self._objective.example_losses(theta.astype(np.float32).astype(np.float64))
        return losses.astype(np.float32).astype(np.float64)


class GivenGradients:
    """An objective of which only the gradients of single examples are wanted."""

    def __init__(self, gradients: np.ndarray) -> None:
        self._gradients = gradients
        self.count, self.size = gradients.shape

    def example_gradients(self, theta: np.ndarray, examples: slice) -> np.ndarray:
        return self._gradients[examples]
