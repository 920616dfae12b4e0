"""Lines that were searched, as functions of the distance along them, and between them as functions of λ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import CubicSpline

from quadscape.measures.line_search.analysis import finite_part
from quadscape.tables import Table

LEAST_POINTS = 5
"""Finite points below which a line is left out."""

ROUNDING = 1e-3
"""Largest share that rounding may have in a value over ½|λ|x² that is read off a line."""


@dataclass(frozen=True)
class Line:
    """One line of the training loss.

    Attributes:
        index: Of the eigenvector.
        eigenvalue: λ.
        is_zero: Whether λ is within the numerical zero.
        slope: gᵀq.
        curvature: qᵀHq.
        t: Points where the loss is finite, symmetric about 0.
        rise: L(θ + tq) − L(θ) at them.
        rounding: Rounding floors of these.
        radii: Quadratic radius at t < 0 and at t > 0; infinite where none was reached.
    """

    index: int
    eigenvalue: float
    is_zero: bool
    slope: float
    curvature: float
    t: np.ndarray
    rise: np.ndarray
    rounding: np.ndarray
    radii: tuple[float, float]

    @property
    def reach(self) -> float:
        """Largest |t|."""
        return float(self.t[-1])

    def beyond_slope(self, x: float) -> float:
        """f(x) − xg from the cubic spline through all points."""
        return float(self._spline(x)) - x * self.slope

    @cached_property
    def _spline(self) -> CubicSpline:
        return CubicSpline(self.t, self.rise)

    def floor(self, x: float) -> float:
        """Rounding floor of the line around x."""
        after = min(max(int(np.searchsorted(self.t, x)), 1), len(self.t) - 1)
        return float(self.rounding[after - 1 : after + 1].max())

    def left(self, x: float) -> bool:
        """Whether x lies beyond the quadratic radius of its side."""
        return abs(x) > self.radii[int(x > 0)]


def lines_of(points: Table, fits: Table) -> list[Line]:
    """The training lines of a checkpoint.

    Args:
        points: `line_search`.
        fits: `line_fit`.

    Returns:
        In descending order of eigenvalue, each as far from the centre as its losses are finite on both sides; without
        those that then have less than `LEAST_POINTS` points.
    """
    training = points.where(points["split"] == "train")
    found = []
    for row in range(len(fits)):
        own = training.where(training["index"] == fits["index"][row])
        own = own.where(np.argsort(own["t"]))
        part = finite_part(np.isfinite(own["difference"]))
        if part.stop - part.start < LEAST_POINTS:
            continue
        radii = (_radius(fits, row, "negative"), _radius(fits, row, "positive"))
        eigenvalue, slope, curvature = (float(fits[name][row]) for name in ("eigenvalue", "gradient", "curvature"))
        arrays = (own["t"][part], own["difference"][part], own["rounding"][part])
        index, is_zero = int(fits["index"][row]), bool(fits["is_zero"][row])
        found.append(Line(index, eigenvalue, is_zero, slope, curvature, *arrays, radii))
    return sorted(found, key=lambda line: line.index)


def _radius(fits: Table, row: int, side: str) -> float:
    reached = fits[f"radius_{side}_status"][row] in ("measured", "bounded")
    return float(fits[f"radius_{side}"][row]) if reached else math.inf


def sets_of(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Sets of lines that directions are made of.

    Args:
        lines: From `lines_of`.

    Returns:
        `top`: the larger half of positive λ; `bulk`: the smaller half of |λ|; `bottom`: negative λ; `all`: all. Lines
        of numerically zero λ are in none: they would make up much of the length of d, and go nowhere.
    """
    told = [line for line in lines if not line.is_zero]
    positive = [line for line in told if line.eigenvalue > 0]
    by_size = sorted(told, key=lambda line: abs(line.eigenvalue))
    return {
        "top": positive[: (len(positive) + 1) // 2],
        "bulk": by_size[: len(told) // 2],
        "bottom": [line for line in told if line.eigenvalue < 0],
        "all": told,
    }


def pairs_of(lines: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Pairs whose interaction is measured.

    Args:
        lines: From `lines_of`.

    Returns:
        The two largest λ; the largest and the middle one of the positive; the largest and the most negative. Without
        those that do not exist, or are the same pair.
    """
    told = [line for line in lines if not line.is_zero]
    positive = [line for line in told if line.eigenvalue > 0]
    others = [*positive[1:2], *positive[len(positive) // 2 :][:1], *told[len(positive) :][-1:]]
    pairs: list[tuple[Line, Line]] = []
    for other in others if positive else ():
        if other is not positive[0] and all(other is not second for _, second in pairs):
            pairs.append((positive[0], other))
    return pairs


def fractions(line: Line, most: float, count: int, least: float) -> np.ndarray:
    """Multiples t of the reach, on the line's own grid: there nothing is interpolated, on any line of such a grid.

    Args:
        line: A line.
        most: The largest t.
        count: How many are wanted, about even in the logarithm.
        least: The smallest over the largest.

    Returns:
        Ascending, at most `count`; off the grid if all of it lies beyond `most`.
    """
    grid = line.t[line.t > 0] / line.reach
    grid = grid[grid <= most * (1 + 1e-9)]
    wanted = np.geomspace(least, 1, count) if count > 1 else np.ones(1)
    if not len(grid):
        return most * wanted
    distance = np.abs(np.log(grid)[:, None] - np.log(grid[-1] * wanted)[None, :])
    return np.unique(grid[np.argmin(distance, axis=0)])


class Between:
    """Lines of any λ, by interpolation between those of the same sign that were searched.

    What is interpolated, linearly in log |λ| and at equal u = ½|λ|x², are an even and an odd part over ½λx²: numbers
    that hardly depend on λ where lines of different λ have the same form.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        """Leaves out lines of numerically zero λ, and those whose curvature has another sign than λ.

        Args:
            lines: Lines that were searched.
        """
        self._of_sign: dict[int, tuple[np.ndarray, list[_Ratios]]] = {}
        for sign in (1, -1):
            own = [line for line in lines if not line.is_zero and line.eigenvalue * sign > 0 < line.curvature * sign]
            own = sorted(own, key=lambda line: abs(line.eigenvalue))
            if own:
                logs = np.log([abs(line.eigenvalue) for line in own])
                self._of_sign[sign] = logs, [_Ratios.of(line) for line in own]

    def parts(self, eigenvalues: np.ndarray, x: np.ndarray, told: np.ndarray) -> tuple[float, float, float]:
        """What all lines add to the quadratic.

        Args:
            eigenvalues: λ, shape (P,).
            x: Distance along each.
            told: Whether λ is more than numerically zero; others add nothing.

        Returns:
            The sum of the even parts less ½λx², the root of the sum of the squares of the odd parts less slopes, and
            what the sum of the even parts is worth: the rounding of single lines is that of all between them.
        """
        even, odd, rounding = 0.0, 0.0, 0.0
        for sign, (logs, ratios) in self._of_sign.items():
            chosen = np.flatnonzero(told & (eigenvalues * sign > 0) & (x != 0))
            if not len(chosen):
                continue
            value = np.abs(eigenvalues[chosen])
            place = np.interp(np.log(value), logs, np.arange(len(logs)))
            u = 0.5 * value * x[chosen] ** 2
            for number, ratio in enumerate(ratios):
                weight = 1 - np.abs(place - number)
                near = weight > 0
                departure, square, floor = ratio(u[near])
                even += sign * float(weight[near] @ (u[near] * departure))
                odd += float(weight[near] @ (u[near] ** 2 * square))
                rounding += float(weight[near] @ (u[near] * floor))
        return even, math.sqrt(odd), rounding


@dataclass(frozen=True)
class _Ratios:
    """One line over ½λx², against |x|√|λ|.

    Attributes:
        root: √(2u) of the knots, ascending from 0.
        even: Even part over ½λx², less 1, at the knots.
        odd: Odd part less slope, over ½λx².
        floor: Rounding floor over ½|λ|x².
    """

    root: np.ndarray
    even: np.ndarray
    odd: np.ndarray
    floor: np.ndarray

    @classmethod
    def of(cls, line: Line) -> "_Ratios":
        half = len(line.t) // 2
        x, up, down = line.t[half + 1 :], line.rise[half + 1 :], line.rise[:half][::-1]
        quadratic = 0.5 * line.curvature * x**2
        floors = np.maximum(line.rounding[half + 1 :], line.rounding[:half][::-1])
        # Nearer than where rounding would show the departure is taken to go to 0 with x.
        size = np.maximum(np.abs(quadratic), np.maximum(np.abs(up - line.slope * x), np.abs(down + line.slope * x)))
        spoilt = np.flatnonzero(floors > ROUNDING * size)
        first = int(spoilt[-1]) + 1 if len(spoilt) else 0
        keep = slice(first, None)
        even = (0.5 * (up + down) / quadratic - 1)[keep]
        odd = ((0.5 * (up - down) - line.slope * x) / quadratic)[keep]
        root = np.sqrt(abs(line.curvature)) * x[keep]
        floor = (floors / np.abs(quadratic))[keep]
        return cls(*(np.append(0.0, values) for values in (root, even, odd, floor)))

    @cached_property
    def _splines(self) -> tuple[CubicSpline, CubicSpline]:
        # The even ratio is even in x, so that its slope at 0 is 0.
        even = CubicSpline(self.root, self.even, bc_type=((1, np.zeros(())), "not-a-knot"))
        return even, CubicSpline(self.root, self.odd)

    def __call__(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Even part over ½λx² less 1, the square of the odd part's ratio, and the floor; beyond the end as there."""
        if len(self.root) < 3:
            return np.zeros_like(u), np.zeros_like(u), np.zeros_like(u)
        at = np.minimum(np.sqrt(2 * u), self.root[-1])
        even, odd = self._splines
        return even(at), np.square(odd(at)), np.interp(at, self.root, self.floor)
