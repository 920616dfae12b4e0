"""How quadratic is the loss along an eigenvector? L(θ + tq) − L(θ), its form and its quadratic radius.

The curvature of a line is qᵀHq from one product with the Hessian of the objective, independent of the eigenvalue
solver: otherwise an error of the solver would read as a departure from the quadratic. With weight decay δ what is
minimised is L̃ = L + (δ/2)|θ|², so that along q the slope is g̃ = gᵀq + δθᵀq and the curvature λ̃ = λ + δ. The added part
is exactly quadratic: ΔL̃ − g̃t − ½λ̃t² = ΔL − gt − ½λt², and the two radii differ only by the tolerance's λ̃ or λ.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from quadscape.measures.interfaces import BasisLike, ObjectiveLike, as_array, merged, unit_vector
from quadscape.measures.job import Job
from quadscape.measures.line_search.analysis import Centre, analyse, decay_rise, enter_estimate, grid, minimum
from quadscape.measures.line_search.declaration import EXAMPLES, FITS, LINES, TOLERANCE
from quadscape.measures.line_search.losses import SplitLosses
from quadscape.measures.ranks import direction_rows, log_ranks
from quadscape.tables import Table

LINE_SHAPES = {
    "t": ("points",),
    "position": (),
    "slope": ("splits",),
    "curvature": ("splits",),
    "difference": ("splits", "points"),
    "error": ("splits", "points"),
    "rounding": ("splits", "points"),
}
"""What is known of each line, by name, with its axes."""

ROW = "values"
"""All of it in one row, as it is stored."""


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
        training: SplitLosses,
        validation: SplitLosses,
        basis: BasisLike,
        theta: np.ndarray,
        options: Any,
        weight_decay: float,
    ) -> None:
        """Chooses the directions.

        Args:
            training: The training loss L.
            validation: The validation loss.
            basis: Eigenbasis of the Hessian of L at θ.
            theta: θ, float64, shape (P,).
            options: directions, points, loss_rise and reach.
            weight_decay: δ of the training.
        """
        self.splits = {"train": training, "validation": validation}
        self._basis, self._theta, self._options, self._decay = basis, as_array(theta), options, weight_decay
        self._eigenvalues = np.asarray(basis.eigenvalues, dtype=np.float64)
        self.directions = choose_directions(self._eigenvalues, options.directions)

    @property
    def limit(self) -> float:
        """Largest |t| of any line."""
        return self._options.reach * float(np.linalg.norm(self._theta))

    def values(self, part: slice, *, keep: bool = False) -> dict[str, np.ndarray]:
        """The losses along some of the lines.

        Args:
            part: Which of `directions`.
            keep: Whether to keep the differences of single training examples, too.

        Returns:
            t, shape (lines, points); difference, error and rounding, shape (lines, splits, points); slope and
            curvature, shape (lines, splits); position θᵀq, shape (lines,); example_differences, float32, shape (lines,
            points, N), or without examples.
        """
        found = [self._line(int(index), keep) for index in self.directions[part]]
        return {name: np.array([one[name] for one in found]) for name in (*LINE_SHAPES, EXAMPLES)}

    def _line(self, index: int, keep: bool) -> dict[str, Any]:
        direction = unit_vector(self._basis, index)
        t = grid(self._options.points, float(self._eigenvalues[index]), self._options.loss_rise, self.limit)
        curvatures = [losses.curvature(direction) for losses in self.splits.values()]
        lines = [
            losses.along(direction, t, curvature, self._decay, keep=keep and name == "train")
            for (name, losses), curvature in zip(self.splits.items(), curvatures, strict=True)
        ]
        return {
            "t": t,
            "position": float(self._theta @ direction),
            "slope": [float(losses.gradient @ direction) for losses in self.splits.values()],
            "curvature": curvatures,
            "difference": [line.mean for line in lines],
            "error": [line.error for line in lines],
            "rounding": [line.rounding for line in lines],
            EXAMPLES: lines[0].examples,
        }

    def tables(
        self, values: Mapping[str, np.ndarray], attributes: Mapping[str, Any], epsilon: float
    ) -> dict[str, Table]:
        """What the lines say.

        Args:
            values: From `values`, of all directions.
            attributes: Head of the tables; see `quadscape.measures.job.Job.basis_head`. `zero_threshold` is used.
            epsilon: Machine epsilon of the precision asked for.

        Returns:
            Tables `line_search` and `line_fit`.
        """
        threshold = float(attributes["zero_threshold"])
        head = merged(
            attributes,
            loss_rise=self._options.loss_rise,
            reach_limit=self.limit,
            tolerance=TOLERANCE,
            validation_N=self.splits["validation"].exact.count,
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
                values["rounding"][line, 0],
                weight_decay=self._decay,
                loss_rise=self._options.loss_rise,
                floor=self.splits["train"].floor,
                epsilon=epsilon,
            )
            fitted[line, 0] = np.where(np.abs(t) <= row["form_reach"], form(t), np.nan)
            row |= {"validation_gradient": other_slope, "validation_curvature": other_curvature}
            validated = minimum(t, values["difference"][line, 1], values["rounding"][line, 1])
            enter_estimate(row, "minimum_validation", validated)
            rows.append(row)
        which = direction_rows(self._eigenvalues, self.directions)
        fits = {name: np.array([row[name] for row in rows]) for name in FITS.all_columns() if rows and name in rows[0]}
        fits |= which | {"is_zero": np.abs(which["eigenvalue"]) <= threshold}
        return {
            "line_search": Table(LINES, self._points(values, fitted), head),
            "line_fit": Table(FITS, fits, head),
        }

    def _points(self, values: Mapping[str, np.ndarray], fitted: np.ndarray) -> dict[str, np.ndarray]:
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
            "rounding": values["rounding"],
            "decayed": difference + decay_rise(t, position, self._decay),
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
    short: tuple[ObjectiveLike, ObjectiveLike] | None = None,
) -> dict[str, Table]:
    """Line searches along eigenvectors, on all examples of the training and of the validation split.

    Args:
        training: The training loss L.
        validation: The validation loss.
        basis: Eigenbasis of the Hessian of L at θ.
        theta: θ, float64, shape (P,).
        options: directions, points, loss_rise and reach.
        attributes: Head of the tables; see `Lines.tables`. `weight_decay` is used, too.
        epsilon: Machine epsilon of the objectives' dtype.
        short: Both losses in float32, for where that is enough; None: they are not used.

    Returns:
        Tables `line_search` and `line_fit`.
    """
    pairs = zip((training, validation), short or (None, None), strict=True)
    first, second = (SplitLosses(exact, as_array(theta), epsilon, 0, also) for exact, also in pairs)
    lines = Lines(first, second, basis, theta, options, float(attributes["weight_decay"]))
    return lines.tables(lines.values(slice(None)), attributes, epsilon)


def _lines_of(job: Job) -> Lines:
    theta = job.checkpoint.theta
    first, second = (
        SplitLosses(job.objective(split), theta, job.epsilon, 0, job.short_objective(split))
        for split in ("train", "validation")
    )
    return Lines(first, second, job.basis, theta, job.options, job.checkpoint.weight_decay)


class Work:
    """The lines of a checkpoint as items of a long measure."""

    def __init__(self, job: Job) -> None:
        self._job, self._lines = job, _lines_of(job)
        lengths = {"points": job.options.points, "splits": len(self._lines.splits)}
        self._shapes = {name: tuple(lengths[axis] for axis in axes) for name, axes in LINE_SHAPES.items()}

    @property
    def items(self) -> int:
        """Number of lines."""
        return len(self._lines.directions)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """All that is known of a line in one row, which is one file, and the differences of single examples."""
        width = sum(math.prod(shape) for shape in self._shapes.values())
        return {ROW: (width,), EXAMPLES: (self._job.options.points, self._lines.splits["train"].exact.count)}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """Losses along some of the lines."""
        values = self._lines.values(part, keep=True)
        count = len(values["t"])
        row = np.concatenate([values[name].reshape(count, -1) for name in self._shapes], axis=1)
        return {ROW: row, EXAMPLES: values[EXAMPLES]}

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """What all of them say."""
        found, start = {}, 0
        for name, shape in self._shapes.items():
            stop = start + math.prod(shape)
            found[name] = values[ROW][:, start:stop].reshape(-1, *shape)
            start = stop
        return self._lines.tables(found, self._job.basis_head, self._job.epsilon)


def compute(job: Job) -> dict[str, Table]:
    """Line searches of one checkpoint, in one piece; losses of single examples are not kept.

    Args:
        job: Reads checkpoint, data and eigenbasis.

    Returns:
        The tables of `measure`.
    """
    lines = _lines_of(job)
    return lines.tables(lines.values(slice(None)), job.basis_head, job.epsilon)
