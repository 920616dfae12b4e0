"""Hessians of batches: the largest eigenvalue of a mean of few is larger than that of a mean of many.

λ₁ is convex in the matrix, so that E λ₁(H_b) ≥ λ₁(H): by how much, and how far the eigenvectors of batches lie in the
leading space of all examples, against B. pᵀHp of the same eigenvector p is no larger than λ₁(H): what a batch sees
beyond it belongs to the batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.errors import VerificationError
from quadscape.measures.batch_hessians.declaration import BROADENED, PAIRS
from quadscape.measures.batches import batch_sizes, draw
from quadscape.measures.interfaces import BasisLike
from quadscape.measures.intervals import student
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.stage.events import Log
from quadscape.tables import Table

if TYPE_CHECKING:
    from quadscape.network.objective import Objective

TOLERANCE = 1e-3
"""Largest residual, over the largest |λ|: far below what batches differ by."""


def compute(job: Job) -> dict[str, Table]:
    """Hessians of batches at one checkpoint.

    Args:
        job: Reads checkpoint, data and eigenbasis.

    Returns:
        The tables of `measure`.
    """
    objective = job.objective("train")
    sizes = batch_sizes(objective.count, (job.training or {}).get("batch_size"))
    return measure(objective, job.basis, job.checkpoint.theta, sizes, job.options, job.basis_head, log=job.log)


def measure(
    objective: "Objective",
    basis: BasisLike,
    theta: np.ndarray,
    sizes: Sequence[int],
    options: Any,
    attributes: Mapping[str, Any],
    *,
    log: Log = print,
) -> dict[str, Table]:
    """Hessians of batches.

    Args:
        objective: The training loss.
        basis: Eigenbasis of its Hessian at θ.
        theta: θ, float64, shape (P,).
        sizes: Sizes of batches.
        options: batches and eigenvalues.
        attributes: Head of the tables.
        log: Receives a line where eigenvalues of a batch were not found.

    Returns:
        Tables `batch_hessians` and `batch_broadening`.
    """
    rows: list[dict[str, Any]] = []
    vectors: list[np.ndarray] = []
    for size in sizes:
        # Of all examples there is one batch.
        several = 1 if size >= objective.count else options.batches
        for number, batch in enumerate(draw(objective.count, size, several, (0, size))):
            values, residuals, found = _largest(objective, theta, batch, options.eigenvalues, log)
            for place in range(options.eigenvalues):
                row: dict[str, Any] = {"batch_size": size, "batch": number, "place": place + 1}
                rows.append({**row, "eigenvalue": values[place], "residual": residuals[place]})
            vectors.append(found)
    for row, seen in zip(rows, _seen(basis, np.concatenate(vectors, axis=1), options.eigenvalues), strict=True):
        row.update(seen)
    full = np.asarray(basis.eigenvalues, dtype=np.float64)
    return {
        "batch_hessians": Table(PAIRS, columns_of(rows, PAIRS.all_columns()), dict(attributes)),
        "batch_broadening": Table(
            BROADENED, columns_of(_broadened(rows, full), BROADENED.all_columns()), dict(attributes)
        ),
    }


def _largest(
    objective: "Objective", theta: np.ndarray, batch: np.ndarray, count: int, log: Log
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest eigenvalues of one batch's Hessian, their residuals, and their eigenvectors as columns."""
    import torch

    from quadscape.curvature.matrix_free import CurvatureOperator, extreme_eigenpairs

    operator = CurvatureOperator(objective.part(torch.from_numpy(batch)), theta)
    try:
        found = extreme_eigenpairs(operator, count, 0, tolerance=TOLERANCE)
    except VerificationError as error:
        log(f"of a batch of {len(batch)}: {error}")
        nothing = np.full(count, np.nan)
        return nothing, nothing, np.full((len(theta), count), np.nan)
    return found.eigenvalues, found.residuals, found.eigenvectors


def _seen(basis: BasisLike, vectors: np.ndarray, count: int) -> list[dict[str, float]]:
    """Where eigenvectors of batches lie to those of all examples; they come in turns of `count`."""
    from quadscape.curvature.projections import project

    values = np.asarray(basis.eigenvalues, dtype=np.float64)
    curvature, leading = np.zeros(vectors.shape[1]), np.zeros((count, vectors.shape[1]))
    for tile in project(lambda part: vectors.T[part], vectors.shape[1], basis):
        along = tile.values.double().numpy().T
        curvature[tile.rows] += values[tile.columns] @ np.square(along)
        first = along[: max(0, count - tile.columns.start)]
        leading[tile.columns.start : tile.columns.start + len(first), tile.rows] = first
    captured = np.square(leading).sum(axis=0)
    return [
        {
            "curvature": float(curvature[column]),
            "cosine": min(1.0, abs(float(leading[column % count, column]))),
            "captured": min(1.0, float(captured[column])),
        }
        for column in range(vectors.shape[1])
    ]


def _broadened(rows: Sequence[Mapping[str, Any]], full: np.ndarray) -> list[dict[str, Any]]:
    """Means over the batches of each size, for each place."""
    found = []
    for size, place in sorted({(row["batch_size"], row["place"]) for row in rows}):
        own = [row for row in rows if (row["batch_size"], row["place"]) == (size, place)]
        own = [row for row in own if math.isfinite(row["eigenvalue"])]
        mean: dict[str, Any] = {"batch_size": size, "place": place, "batches": len(own), "full": float(full[place - 1])}
        for name in ("eigenvalue", "curvature", "captured"):
            ends = student(np.array([row[name] for row in own]))
            mean |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        for end in ("", "_low", "_high"):
            mean[f"excess{end}"] = mean[f"eigenvalue{end}"] - mean["full"]
        found.append(mean)
    return found
