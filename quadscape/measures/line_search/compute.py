"""How quadratic is the loss along an eigenvector? L(θ + tq) − L(θ), its form and its quadratic radius.

The curvature of a line is qᵀHq from one product with the Hessian of the objective, independent of the eigenvalue
solver: otherwise an error of the solver would read as a departure from the quadratic. With weight decay δ what is
minimised is L̃ = L + (δ/2)|θ|², so that along q the slope is g̃ = gᵀq + δθᵀq and the curvature λ̃ = λ + δ. The added part
is exactly quadratic: ΔL̃ − g̃t − ½λ̃t² = ΔL − gt − ½λt², and the two radii differ only by the tolerance's λ̃ or λ.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from quadscape.measures.interfaces import BasisLike, ObjectiveLike, as_array, merged
from quadscape.measures.job import Job
from quadscape.measures.line_search.analysis import (
    Centre,
    analyse,
    decay_rise,
    enter_estimate,
    grid,
    minimum,
    rounding_floor,
    scan,
)
from quadscape.measures.line_search.declaration import FITS, LINES, TOLERANCE
from quadscape.measures.ranks import direction_rows, log_ranks
from quadscape.tables import Table

LINE_SHAPES = {
    "t": ("points",),
    "position": (),
    "slope": ("splits",),
    "curvature": ("splits",),
    "difference": ("splits", "points"),
    "error": ("splits", "points"),
}
"""What is stored of each line, by name, with its axes."""


def choose_directions(eigenvalues: np.ndarray, count: int) -> np.ndarray:
    """Eigenvectors on log-spaced ranks of both signs, and evenly spaced through the bulk.

    Args:
        eigenvalues: In descending order, shape (P,).
        count: Number of directions, at most P.

    Returns:
        Increasing distinct int64 indices: a half on positive ranks, a quarter on negative ranks (as far as there are
        any), the rest evenly spaced in index.
    """
    size = len(eigenvalues)
    positive = int(np.count_nonzero(np.asarray(eigenvalues) >= 0))
    top = log_ranks(positive, min(positive, (count + 1) // 2)) - 1
    bottom = size - log_ranks(size - positive, min(size - positive, count // 4))
    chosen = {int(i) for i in top} | {int(i) for i in bottom}
    # Evenly spaced among what is left, so that the number asked for is met whatever coincides.
    free = np.setdiff1d(np.arange(size), sorted(chosen))
    missing = min(count, size) - len(chosen)
    chosen |= {int(free[i]) for i in (np.arange(missing) * len(free) + len(free) // 2) // max(missing, 1)}
    return np.array(sorted(chosen), dtype=np.int64)


class Lines:
    """The lines of one checkpoint: what they share, the values along each, and what they say.

    Attributes:
        splits: The losses by name, `train` and `validation`.
        directions: Indices of the eigenvectors.
    """

    def __init__(
        self,
        training: ObjectiveLike,
        validation: ObjectiveLike,
        basis: BasisLike,
        theta: np.ndarray,
        options: Any,
    ) -> None:
        """Chooses the directions.

        Args:
            training: The training loss L.
            validation: The validation loss.
            basis: Eigenbasis of the Hessian of L at θ.
            theta: θ, float64, shape (P,).
            options: directions, points, loss_rise and reach.
        """
        self.splits = {"train": training, "validation": validation}
        self._basis, self._theta, self._options = basis, as_array(theta), options
        self._eigenvalues = np.asarray(basis.eigenvalues, dtype=np.float64)
        self.directions = choose_directions(self._eigenvalues, options.directions)

    @cached_property
    def _centres(self) -> dict[str, np.ndarray]:
        return {name: as_array(objective.example_losses(self._theta)) for name, objective in self.splits.items()}

    @cached_property
    def _gradients(self) -> dict[str, np.ndarray]:
        return {name: as_array(objective.gradient(self._theta)) for name, objective in self.splits.items()}

    @property
    def limit(self) -> float:
        """Largest |t| of any line."""
        return self._options.reach * float(np.linalg.norm(self._theta))

    def values(self, part: slice) -> dict[str, np.ndarray]:
        """The losses along some of the lines.

        Args:
            part: Which of `directions`.

        Returns:
            t, shape (lines, points); difference and error, shape (lines, splits, points); slope and curvature, shape
            (lines, splits); position θᵀq, shape (lines,).
        """
        return {name: np.array(rows) for name, rows in self._rows(self.directions[part]).items()}

    def _rows(self, directions: np.ndarray) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {name: [] for name in LINE_SHAPES}
        for index in directions:
            direction = as_array(self._basis.vectors(int(index), int(index) + 1))[:, 0]
            # A stored float32 vector is a unit vector to 1e-7 only, and the decay term takes |q| = 1.
            direction /= np.linalg.norm(direction)
            t = grid(self._options.points, float(self._eigenvalues[index]), self._options.loss_rise, self.limit)
            found["t"].append(t)
            found["position"].append(float(self._theta @ direction))
            found["slope"].append([float(self._gradients[name] @ direction) for name in self.splits])
            products = [objective.hessian_product(self._theta, direction) for objective in self.splits.values()]
            found["curvature"].append([float(direction @ as_array(product)) for product in products])
            scans = [
                scan(objective.example_losses, self._theta, direction, t, self._centres[name])
                for name, objective in self.splits.items()
            ]
            found["difference"].append([mean for mean, _ in scans])
            found["error"].append([error for _, error in scans])
        return found

    def tables(
        self, values: Mapping[str, np.ndarray], attributes: Mapping[str, Any], epsilon: float, seed: int = 0
    ) -> dict[str, Table]:
        """What the lines say.

        Args:
            values: From `values`, of all directions.
            attributes: Head of the tables; see `quadscape.measures.job.Job.basis_head`. `weight_decay` and
                `zero_threshold` are used.
            epsilon: Machine epsilon of the objectives' dtype.
            seed: Seed of the displacements that measure the rounding floor.

        Returns:
            Tables `line_search` and `line_fit`.
        """
        decay, threshold = float(attributes["weight_decay"]), float(attributes["zero_threshold"])
        floors = {
            name: rounding_floor(objective, self._theta, self._gradients[name], epsilon, seed)
            for name, objective in self.splits.items()
        }
        head = merged(
            attributes,
            loss_rise=self._options.loss_rise,
            reach_limit=self.limit,
            tolerance=TOLERANCE,
            validation_N=self.splits["validation"].count,
        )
        rows: list[dict[str, Any]] = []
        fitted = np.full_like(values["difference"], np.nan)
        for line, index in enumerate(self.directions):
            t, position = values["t"][line], float(values["position"][line])
            (slope, other_slope), (curvature, other_curvature) = values["slope"][line], values["curvature"][line]
            row, form = analyse(
                t,
                values["difference"][line, 0],
                Centre(float(slope), float(curvature), float(self._eigenvalues[index]), position),
                weight_decay=decay,
                loss_rise=self._options.loss_rise,
                floor=floors["train"],
                epsilon=epsilon,
            )
            fitted[line, 0] = np.where(np.abs(t) <= row["form_reach"], form(t), np.nan)
            row |= {"validation_gradient": other_slope, "validation_curvature": other_curvature}
            enter_estimate(row, "minimum_validation", minimum(t, values["difference"][line, 1], floors["validation"]))
            rows.append(row)
        which = direction_rows(self._eigenvalues, self.directions)
        fits = {name: np.array([row[name] for row in rows]) for name in FITS.all_columns() if rows and name in rows[0]}
        fits |= which | {"is_zero": np.abs(which["eigenvalue"]) <= threshold}
        return {
            "line_search": Table(LINES, self._points(values, fitted, decay), head),
            "line_fit": Table(FITS, fits, head),
        }

    def _points(self, values: Mapping[str, np.ndarray], fitted: np.ndarray, decay: float) -> dict[str, np.ndarray]:
        """Columns of `LINES`: line by line, split by split."""
        difference, error = values["difference"], values["error"]
        t = np.broadcast_to(values["t"][:, None, :], difference.shape)
        position = values["position"][:, None, None]
        slope, curvature = values["slope"][:, :, None], values["curvature"][:, :, None]
        columns = {
            "index": np.broadcast_to(self.directions[:, None, None], difference.shape),
            "split": np.broadcast_to(np.array(list(self.splits))[None, :, None], difference.shape),
            "t": t,
            "difference": difference,
            "difference_low": difference - 1.96 * error,
            "difference_high": difference + 1.96 * error,
            "decayed": difference + decay_rise(t, position, decay),
            "quadratic": slope * t + 0.5 * curvature * t**2,
            "fitted": fitted,
        }
        return {name: column.ravel() for name, column in columns.items()}


def measure(
    training: ObjectiveLike,
    validation: ObjectiveLike,
    basis: BasisLike,
    theta: np.ndarray,
    options: Any,
    attributes: Mapping[str, Any],
    *,
    epsilon: float = float(np.finfo(np.float64).eps),
    seed: int = 0,
) -> dict[str, Table]:
    """Line searches along eigenvectors, on all examples of the training and of the validation split.

    Args:
        training: The training loss L.
        validation: The validation loss.
        basis: Eigenbasis of the Hessian of L at θ.
        theta: θ, float64, shape (P,).
        options: directions, points, loss_rise and reach.
        attributes: Head of the tables; see `Lines.tables`.
        epsilon: Machine epsilon of the objectives' dtype.
        seed: Seed of the displacements that measure the rounding floor.

    Returns:
        Tables `line_search` and `line_fit`.
    """
    lines = Lines(training, validation, basis, theta, options)
    return lines.tables(lines.values(slice(None)), attributes, epsilon, seed)


class Work:
    """The lines of a checkpoint as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lines = Lines(
            job.objective("train"), job.objective("validation"), job.basis, job.checkpoint.theta, job.options
        )

    @property
    def items(self) -> int:
        """Number of lines."""
        return len(self._lines.directions)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is stored of each line."""
        lengths = {"points": self._job.options.points, "splits": 2}
        return {name: tuple(lengths[axis] for axis in axes) for name, axes in LINE_SHAPES.items()}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Losses along some of the lines."""
        return self._lines.values(part)

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """What all of them say."""
        return self._lines.tables(values, self._job.basis_head, self._job.epsilon)


def compute(job: Job) -> dict[str, Table]:
    """Line searches of one checkpoint, in one piece.

    Args:
        job: Reads checkpoint, data and eigenbasis.

    Returns:
        The tables of `measure`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(0, work.items)))
