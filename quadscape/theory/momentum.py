"""Gradient descent with momentum on a quadratic of one variable: matrices, roots, relaxation, frequency, stability.

PyTorch's convention: v ← μv + g, then x ← x − ηv, or x ← x − η(g + μv) with Nesterov's momentum. With g = λx + ξ the
state s = (x, v) goes by s ← As + bξ.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Momentum:
    """The rule of a step.

    Attributes:
        rate: Learning rate η > 0.
        momentum: μ, at least 0 and below 1.
        nesterov: Whether the momentum is Nesterov's.
    """

    rate: float
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"the learning rate is {self.rate}; it must be above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"the momentum is {self.momentum}; it must be at least 0 and below 1")

    @property
    def limit(self) -> float:
        """Largest h = ηλ̃ that is stable, exclusive: 2(1+μ), or 2(1+μ)/(1+2μ) with Nesterov's momentum."""
        return 2 * (1 + self.momentum) / (1 + 2 * self.momentum if self.nesterov else 1)

    def is_stable(self, curvature: np.ndarray) -> np.ndarray:
        """Whether there is a stationary state, 0 < h < `limit`.

        Args:
            curvature: λ̃, shape (n,).

        Returns:
            Booleans, shape (n,).
        """
        h = self.rate * np.asarray(curvature, dtype=np.float64)
        return (h > 0) & (h < self.limit)

    def transition(self, curvature: np.ndarray) -> np.ndarray:
        """A.

        Args:
            curvature: λ̃, any sign, shape (n,).

        Returns:
            [[1 − h, −ημ], [λ̃, μ]], or [[1 − h(1+μ), −ημ²], [λ̃, μ]] with Nesterov's momentum; shape (n, 2, 2).
        """
        curvature = np.asarray(curvature, dtype=np.float64)
        h, mu = self.rate * curvature, self.momentum
        found = np.empty((len(curvature), 2, 2))
        found[:, 0, 0] = 1 - h * (1 + mu if self.nesterov else 1)
        found[:, 0, 1] = -self.rate * mu * (mu if self.nesterov else 1)
        found[:, 1, 0], found[:, 1, 1] = curvature, mu
        return found

    @property
    def response(self) -> np.ndarray:
        """b: what one unit of noise in the gradient does to the state, (−η, 1), or (−η(1+μ), 1) with Nesterov's."""
        return np.array([-self.rate * (1 + self.momentum if self.nesterov else 1), 1.0])

    def trace(self, curvature: np.ndarray) -> np.ndarray:
        """Tr A = z₁ + z₂, shape (n,)."""
        h, mu = self.rate * np.asarray(curvature, dtype=np.float64), self.momentum
        return 1 + mu - h * (1 + mu if self.nesterov else 1)

    def determinant(self, curvature: np.ndarray) -> np.ndarray:
        """Det A = z₁z₂, shape (n,): μ, or μ(1 − h) with Nesterov's momentum."""
        h, mu = self.rate * np.asarray(curvature, dtype=np.float64), self.momentum
        return mu * (1 - h) if self.nesterov else np.full(h.shape, mu)

    def roots(self, curvature: np.ndarray) -> np.ndarray:
        """Eigenvalues of A.

        Args:
            curvature: λ̃, any sign, shape (n,).

        Returns:
            Both roots z of z² − (tr A)z + det A, the larger modulus first, complex, shape (n, 2).
        """
        trace, determinant = self.trace(curvature), self.determinant(curvature)
        root = np.sqrt(trace.astype(np.complex128) ** 2 / 4 - determinant)
        # The larger root without cancellation, the other one by their product.
        first = np.where(trace >= 0, trace / 2 + root, trace / 2 - root)
        second = np.divide(determinant, first, out=np.zeros_like(first), where=first != 0)
        second = np.where(root.imag != 0, np.conj(first), second)
        return np.stack([first, second], axis=1)

    def relaxation(self, curvature: np.ndarray) -> np.ndarray:
        """τ = −1/ln|z| of the slower root, in steps.

        Args:
            curvature: λ̃, any sign, shape (n,).

        Returns:
            Shape (n,); infinite where nothing decays, 0 where a single step ends it.
        """
        curvature = np.asarray(curvature, dtype=np.float64)
        modulus = np.abs(self.roots(curvature)[:, 0])
        # Of flat directions |z| is 1 to rounding, its distance from 1 is not: (1 − z₁)(1 − z₂) = h.
        h, second = self.rate * curvature, self.roots(curvature)[:, 1]
        gap = np.where(h < 1e-3 * (1 - self.momentum) ** 2, h / np.abs(1 - second), 1 - modulus)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(
                self.is_stable(curvature), np.where(gap < 1, -1 / np.log1p(-np.minimum(gap, 1)), 0.0), np.inf
            )

    def frequency(self, curvature: np.ndarray) -> np.ndarray:
        """By which angle the slower root turns in a step.

        Args:
            curvature: λ̃, any sign, shape (n,).

        Returns:
            Radians a step, from 0 (no oscillation) to π, shape (n,).
        """
        return np.abs(np.angle(self.roots(curvature)[:, 0]))
