"""Is the loss fractal at small scales? Lines through θ in nested windows, in two precisions, against rounding.

A function that is fractal at small scales is rough in every window, however narrow; an analytic one is soon a
polynomial, and all that is left of it is rounding. Rounding itself looks fractal: where a window is narrower than the
resolution of θ, its error is a random walk, whose structure function grows as h. So nothing is said of what is not
above the floor of rounding, which is measured at the same places.

The floor is not measured by another order of the examples, which changes the last sum alone: the same losses are added,
and they are where the rounding is. Nor by neighbours closer than resolution: their errors are nearly the same, since
what a large sum rounds away is, and would read too low (by a factor of 3 on the demo's network). It is measured by
fourth differences along random displacements u of ε^⅔ times each parameter: hundreds to hundred thousands of units in
the last place, so that rounding errors are independent, while the fourth difference of the loss itself is of order
ε^(8/3). What is rough at scales below ε^⅔|θ| cannot be told from rounding in this way, and is not claimed.
"""

import math
from collections.abc import Mapping
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from quadscape.measures.fractal.analysis import lags, middle, residual, roughness, rounding
from quadscape.measures.fractal.declaration import (
    DEGREE,
    FACTOR,
    FRACTAL,
    LINES,
    NARROWER,
    POINTS,
    PRECISIONS,
    SAMPLES,
    STENCIL,
    STRUCTURE,
)
from quadscape.measures.interfaces import BasisLike, ObjectiveLike, as_array, merged
from quadscape.measures.job import Job
from quadscape.measures.line_search.analysis import scan
from quadscape.measures.members import columns_of
from quadscape.network.filters import Filters
from quadscape.tables import Table

_LINE, _ROUNDING = 2009, 10588  # seeds of what is random


class Windows:
    """The windows of all lines through one θ.

    Attributes:
        items: Line and window of each, in the order of their values.
    """

    def __init__(
        self,
        objectives: Mapping[str, ObjectiveLike],
        theta: np.ndarray,
        directions: Mapping[str, np.ndarray],
        options: Any,
    ) -> None:
        """Plans them.

        Args:
            objectives: The training loss in each of `PRECISIONS`.
            theta: θ, float64, shape (P,).
            directions: A vector for each of `LINES`, of any length but 0, shape (P,).
            options: windows, points and reach.
        """
        self._objectives, self._theta, self._options = objectives, as_array(theta), options
        self._directions = {name: vector / np.linalg.norm(vector) for name, vector in directions.items()}
        self.items = tuple(product(LINES, range(options.windows)))

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the values of a window: the rise at all points, and around those where rounding is measured."""
        rows = len(PRECISIONS)
        return {"rise": (rows, self._options.points), "stencil": (rows, SAMPLES, STENCIL)}

    def places(self, window: int) -> np.ndarray:
        """Points t of a window, shape (points,)."""
        # θ = 0 has no scale.
        width = self._options.reach * (float(np.linalg.norm(self._theta)) or 1.0) * NARROWER**-window
        side = np.linspace(0.0, width, self._options.points // 2 + 1)
        return np.concatenate([-side[:0:-1], side])

    @property
    def sampled(self) -> np.ndarray:
        """Indices of the points where rounding is measured, evenly through the part of a window that is read."""
        read = middle(self._options.points)
        return np.rint(np.linspace(read.start, read.stop - 1, SAMPLES)).astype(np.int64)

    def values(self, part: slice) -> dict[str, np.ndarray]:
        """Losses in some of the windows, as `layout` says."""
        found = [self._window(line, window) for line, window in self.items[part]]
        return {name: np.array([values[name] for values in found]) for name in self.layout()}

    @cached_property
    def _centres(self) -> dict[str, np.ndarray]:
        return {name: as_array(loss.example_losses(self._theta)) for name, loss in self._objectives.items()}

    def _least(self, precision: str, rise: np.ndarray) -> float:
        """What a loss is rounded by at least: as it is written down in its precision, and as differences in float64."""
        centre = self._centres[precision]
        written = float(np.finfo(precision).eps) * float(np.sqrt(np.mean(centre**2) / len(centre)))
        return math.hypot(written, float(np.finfo(np.float64).eps) * float(np.abs(rise).max()))

    def _window(self, line: str, window: int) -> dict[str, list[np.ndarray]]:
        direction, t = self._directions[line], self.places(window)
        seed = [_ROUNDING, LINES.index(line), window]
        shifts = np.random.default_rng(seed).standard_normal((SAMPLES, len(self._theta))) * self._theta
        found: dict[str, list[np.ndarray]] = {"rise": [], "stencil": []}
        # What overflows far out is no error: such a window is said to be not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            for name in PRECISIONS:
                losses, centre = self._objectives[name].example_losses, self._centres[name]
                found["rise"].append(scan(losses, self._theta, direction, t, centre)[0])
                size = float(np.finfo(name).eps) ** (2 / 3)
                sides = np.array([-2.0, -1.0, 1.0, 2.0]) * size
                around = [
                    scan(losses, self._theta + place * direction, shift, sides, centre)[0]
                    for place, shift in zip(t[self.sampled], shifts, strict=True)
                ]
                found["stencil"].append(np.array(around))
        return found

    def tables(
        self, values: Mapping[str, np.ndarray], index: int, eigenvalues: np.ndarray, attributes: Mapping[str, Any]
    ) -> dict[str, Table]:
        """What all windows say.

        Args:
            values: From `values`, of all items.
            index: Index of the eigenvector of the line `bulk`.
            eigenvalues: In descending order, shape (P,).
            attributes: Head of the tables.

        Returns:
            Tables `fractal`, `fractal_structure` and `fractal_lines`.
        """
        steps, fitted = lags(self._options.points)
        indices = {"top": 0, "bulk": index, "random": -1}
        rows: list[dict[str, Any]] = []
        structure: list[dict[str, Any]] = []
        points: list[dict[str, np.ndarray]] = []
        for item, (line, window) in enumerate(self.items):
            t, which = self.places(window), indices[line]
            of_line = {"index": which, "eigenvalue": float(eigenvalues[which]) if which >= 0 else np.nan}
            for row, precision in enumerate(PRECISIONS):
                rise, around = values["rise"][item, row], values["stencil"][item, row]
                left = residual(rise)
                whole = np.insert(around, STENCIL // 2, rise[self.sampled], axis=1)
                floor = rounding(whole, self._least(precision, rise))
                found = roughness(left, floor.value)
                own: dict[str, Any] = {"line": line, "window": window, "precision": precision}
                rows.append(
                    own
                    | of_line
                    | {
                        "half_width": t[-1],
                        "residual": float(np.sqrt(np.mean(np.square(left[middle(len(left))])))),
                        "floor": floor.value,
                        "floor_low": floor.low,
                        "floor_high": floor.high,
                        "excess": found.excess,
                        "exponent": found.exponent,
                        "exponent_low": found.low,
                        "exponent_high": found.high,
                        "state": found.state,
                    }
                )
                step = t[-1] - t[-2]
                columns = (steps * step, found.structure, found.error, fitted)
                structure += [
                    own
                    | {
                        "lag": lag,
                        "structure": value,
                        "structure_low": value - 1.96 * error,
                        "structure_high": value + 1.96 * error,
                        "floor": 2 * floor.value**2,
                        "fitted": used,
                    }
                    for lag, value, error, used in zip(*columns, strict=True)
                ]
                same = {name: np.repeat(value, len(t)) for name, value in own.items()}
                points.append(same | {"t": t, "rise": rise, "residual": left})
        head = merged(
            attributes,
            theta_norm=float(np.linalg.norm(self._theta)),
            examples=int(self._objectives[PRECISIONS[0]].count),
            points=self._options.points,
            windows=self._options.windows,
            degree=DEGREE,
            factor=FACTOR,
        )
        joined = {name: np.concatenate([part[name] for part in points]) for name in POINTS.all_columns()}
        return {
            "fractal": Table(FRACTAL, columns_of(rows, FRACTAL.all_columns()), head),
            "fractal_structure": Table(STRUCTURE, columns_of(structure, STRUCTURE.all_columns()), head),
            "fractal_lines": Table(POINTS, joined, head),
        }


def directions_of(basis: BasisLike, filters: Filters, theta: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    """The directions of the lines.

    Args:
        basis: Eigenbasis of the Hessian at θ.
        filters: The filters of the network.
        theta: θ, shape (P,).

    Returns:
        A vector for each of `LINES`, and the index of the eigenvector of `bulk`.
    """
    index = len(theta) // 2
    drawn = np.random.default_rng(_LINE).standard_normal(len(theta))
    vectors = (
        as_array(basis.vectors(0, 1))[:, 0],
        as_array(basis.vectors(index, index + 1))[:, 0],
        filters.normalised(drawn, theta),
    )
    return dict(zip(LINES, vectors, strict=True)), index


def measure(
    objectives: Mapping[str, ObjectiveLike],
    basis: BasisLike,
    theta: np.ndarray,
    filters: Filters,
    options: Any,
    attributes: Mapping[str, Any],
) -> dict[str, Table]:
    """Nested line searches through θ.

    Args:
        objectives: The training loss in each of `PRECISIONS`.
        basis: Eigenbasis of the Hessian at θ.
        theta: θ, float64, shape (P,).
        filters: The filters of the network.
        options: windows, points and reach.
        attributes: Head of the tables.

    Returns:
        Tables `fractal`, `fractal_structure` and `fractal_lines`. Attributes besides the head: theta_norm |θ|, the
        number of examples, points, windows, degree of the polynomial, and the factor above the floor.
    """
    directions, index = directions_of(basis, filters, as_array(theta))
    windows = Windows(objectives, theta, directions, options)
    return windows.tables(windows.values(slice(None)), index, np.asarray(basis.eigenvalues), attributes)


class Work:
    """The windows of a checkpoint as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @cached_property
    def _planned(self) -> tuple[Windows, int]:
        import torch

        from quadscape.network.objective import CheckpointObjectives

        job, theta = self._job, self._job.checkpoint.theta
        both = CheckpointObjectives(job.path("checkpoint"), job.path("data"), "train")
        first = slice(0, job.options.examples)
        losses = {name: both.get(getattr(torch, name), job.device).part(first) for name in PRECISIONS}
        directions, index = directions_of(job.basis, Filters.of(losses[PRECISIONS[0]].layout), theta)
        return Windows(losses, theta, directions, job.options), index

    @property
    def items(self) -> int:
        """Number of windows of all lines."""
        return len(self._planned[0].items)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is stored of each."""
        return self._planned[0].layout()

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Losses in some of them."""
        return self._planned[0].values(part)

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """What all of them say."""
        windows, index = self._planned
        return windows.tables(values, index, np.asarray(self._job.basis.eigenvalues), self._job.basis_head)


def compute(job: Job) -> dict[str, Table]:
    """The nested line searches of one checkpoint, in one piece.

    Args:
        job: Reads checkpoint, data and eigenbasis.

    Returns:
        The tables of `measure`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(0, work.items)))
