"""The losses of one data split along lines: in float32 where that is enough, else in the precision asked for.

A difference from the centre is taken within one precision always: that of a value in float32 from a centre in float64
would be the rounding of the centre.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from quadscape.measures.interfaces import ObjectiveLike, as_array
from quadscape.measures.line_search.analysis import rounding_floor

ROUNDINGS = 1e4
"""How many rounding floors of float32 must lie in what is read off a value for float32 to be enough.

A value is then right to 1e-4 of that (to 3e-4, where the worst of thousands is three times the largest of the samples):
a hundredth of the error with which forms are accepted, and a thousandth of the tolerance of the quadratic radius, which
is a tenth of ½|λ|t².
"""

SAMPLES = 8
"""Displacements that the rounding floor of float32 is measured with."""

SHORT_EPSILON = float(np.finfo(np.float32).eps)
"""Machine epsilon of float32."""


@dataclass(frozen=True)
class Line:
    """The losses of one split along one line, at T points.

    Attributes:
        mean: Mean difference from the centre, float64, shape (T,); exactly 0 at t = 0.
        error: Its standard error over examples.
        rounding: Its rounding floor, as measured at the centre in the precision of the point.
        examples: Differences of single examples, float32, shape (T, N); without a row where they are not kept.
    """

    mean: np.ndarray
    error: np.ndarray
    rounding: np.ndarray
    examples: np.ndarray


class SplitLosses:
    """The loss of one split at θ and along lines through it."""

    def __init__(
        self, exact: ObjectiveLike, theta: np.ndarray, epsilon: float, seed: int, short: ObjectiveLike | None = None
    ) -> None:
        """Evaluates nothing yet.

        Args:
            exact: The loss in the precision asked for.
            theta: θ, float64, shape (P,).
            epsilon: Machine epsilon of that precision.
            seed: Seed of the displacements that measure rounding floors.
            short: The same loss in float32; None: everything in the precision asked for.
        """
        self.exact, self._short = exact, short
        self._theta, self._epsilon, self._seed = theta, epsilon, seed

    @cached_property
    def gradient(self) -> np.ndarray:
        """∇L(θ), shape (P,)."""
        return as_array(self.exact.gradient(self._theta))

    @cached_property
    def floor(self) -> float:
        """Rounding floor of a difference from the centre, near it."""
        return rounding_floor(self.exact, self._theta, self.gradient, self._epsilon, self._seed)

    @cached_property
    def short_floor(self) -> float:
        """The same in float32: the largest difference between both precisions under a few random displacements.

        They are as far from θ as takes every parameter to other digits: nearer, what rounds alike would cancel.
        """
        assert self._short is not None
        generator = np.random.default_rng(self._seed)
        size = math.sqrt(SHORT_EPSILON) * max(float(np.linalg.norm(self._theta)), np.finfo(float).tiny)
        worst = SHORT_EPSILON * float(np.abs(self._centre).mean()) / math.sqrt(len(self._centre))
        for _ in range(SAMPLES):
            step = generator.standard_normal(len(self._theta))
            place = self._theta + step * size / np.linalg.norm(step)
            short = as_array(self._short.example_losses(place)) - self._short_centre
            exact = as_array(self.exact.example_losses(place)) - self._centre
            worst = max(worst, abs(float((short - exact).mean())))
        return worst

    @cached_property
    def _centre(self) -> np.ndarray:
        return as_array(self.exact.example_losses(self._theta))

    @cached_property
    def _short_centre(self) -> np.ndarray:
        assert self._short is not None
        return as_array(self._short.example_losses(self._theta))

    def curvature(self, direction: np.ndarray) -> float:
        """qᵀHq from one product with the Hessian."""
        return float(direction @ as_array(self.exact.hessian_product(self._theta, direction)))

    def along(
        self, direction: np.ndarray, t: np.ndarray, curvature: float, weight_decay: float, *, keep: bool = False
    ) -> Line:
        """The losses at all points of a line.

        Float32 is tried from the ends inwards, on each side until `read_off` is no longer `ROUNDINGS` of its floors.

        Args:
            direction: Unit vector q, shape (P,).
            t: Symmetric grid with 0 in the middle, shape (T,).
            curvature: qᵀHq of this split.
            weight_decay: δ.
            keep: Whether to keep differences of single examples.

        Returns:
            The line.
        """
        slope = float(self.gradient @ direction)
        mean, error = np.zeros(len(t)), np.zeros(len(t))
        rounding = np.full(len(t), self.floor)
        examples = np.zeros((len(t), self.exact.count if keep else 0), dtype=np.float32)

        def enter(place: int, losses: ObjectiveLike, centre: np.ndarray) -> None:
            difference = as_array(losses.example_losses(self._theta + t[place] * direction)) - centre
            count = len(difference)
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is seen to be not finite
                mean[place] = difference.mean()
                error[place] = difference.std(ddof=1) / math.sqrt(count) if count > 1 else np.nan
            if keep:
                examples[place] = difference

        half, done = len(t) // 2, np.zeros(len(t), dtype=bool)
        done[half] = True
        for side in (range(half), range(len(t) - 1, half, -1)) if self._short is not None else ():
            for place in side:
                enter(place, self._short, self._short_centre)  # type: ignore[arg-type]
                floor = self.short_floor + SHORT_EPSILON * (abs(mean[place]) + abs(slope * t[place]))
                needed = read_off(t[place], mean[place], slope, curvature, weight_decay)
                if not (math.isfinite(mean[place]) and needed >= ROUNDINGS * floor):
                    break
                done[place], rounding[place] = True, floor
        for place in np.flatnonzero(~done).tolist():
            enter(place, self.exact, self._centre)
        return Line(mean, error, rounding, examples)


def read_off(t: float, rise: float, slope: float, curvature: float, weight_decay: float) -> float:
    """The least of what is read off one value of a line.

    Forms are fitted to ΔL itself. Radii compare the departure ΔL − gt − ½λt² with ½|λ|t², and with ½|λ̃|t²: where it is
    the larger of the two it need only be right by itself.

    Args:
        t: The point.
        rise: ΔL there.
        slope: g.
        curvature: λ.
        weight_decay: δ, λ̃ = λ + δ.

    Returns:
        A size of losses; an error that is small beside it changes nothing.
    """
    departure = abs(rise - slope * t - 0.5 * curvature * t**2)
    quadratic = 0.5 * min(abs(curvature), abs(curvature + weight_decay)) * t**2
    return min(abs(rise), max(departure, quadratic))
