"""Which part of the Hessian makes its eigenvalues: spectra of H, G and R = H − G; G and R along H's eigenvectors."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from quadscape.measures.interfaces import merged
from quadscape.measures.job import Job
from quadscape.measures.parts.declaration import RITZ, SPECTRA
from quadscape.measures.ranks import direction_rows, log_indices, signed_ranks
from quadscape.measures.spectrum.compute import ROWS_PER_SIGN, count_at
from quadscape.tables import Table

PARTS = ("H", "G", "R")


class Stripped(Protocol):
    """A symmetric matrix in column strips; see `quadscape.curvature.strips.StripMatrix`."""

    def strips(self) -> Iterator[tuple[int, np.ndarray]]:
        """First column c, and rows c … P − 1 of some columns from c on."""


def ritz_values(matrix: Stripped, vectors: np.ndarray) -> np.ndarray:
    """qᵀAq for many vectors, in one pass over the matrix.

    Args:
        matrix: A.
        vectors: As columns, shape (P, k).

    Returns:
        Float64, shape (k,).
    """
    q, total = vectors.astype(np.float64), np.zeros(vectors.shape[1])
    for start, stored in matrix.strips():
        strip, stop = stored.astype(np.float64), start + stored.shape[1]
        # What lies below the square on the diagonal counts twice.
        moved = strip[: stop - start].T @ q[start:stop] + 2 * (strip[stop - start :].T @ q[stop:])
        total += np.einsum("ck,ck->k", q[start:stop], moved)
    return total


def spectra(eigenvalues: Mapping[str, np.ndarray], zeros: Mapping[str, float], attributes: Mapping[str, Any]) -> Table:
    """The spectra of all parts.

    Args:
        eigenvalues: By part, in descending order, each of shape (P,).
        zeros: Numerical zero of each part: bound on the error of its eigenvalues.
        attributes: Head of the table; see `checkpoint_attributes`.

    Returns:
        A table under `SPECTRA`, thinned to log-spaced ranks; its attribute `parts` holds of each part zero, trace,
        largest, smallest, and exact counts beyond its zero.
    """
    columns: dict[str, list[np.ndarray]] = {column.name: [] for column in SPECTRA.columns}
    sums = {}
    for part in PARTS:
        values, zero = np.asarray(eigenvalues[part], dtype=np.float64), float(zeros[part])
        signs, ranks = signed_ranks(values)
        rows = log_indices(values, ROWS_PER_SIGN)
        columns["part"].append(np.full(len(rows), part))
        columns["sign"].append(signs[rows])
        columns["rank"].append(ranks[rows])
        columns["eigenvalue"].append(values[rows])
        columns["is_zero"].append(np.abs(values[rows]) <= zero)
        sums[part] = {
            "zero_threshold": zero,
            "trace": float(values.sum()),
            "largest": float(values.max()),
            "smallest": float(values.min()),
            **count_at(values, zero),
        }
    joined = {name: np.concatenate(found) for name, found in columns.items()}
    return Table(SPECTRA, joined, merged(attributes, parts=sums))


def along_eigenvectors(
    eigenvalues: np.ndarray,
    indices: np.ndarray,
    gauss_newton: np.ndarray,
    remainder: np.ndarray,
    error: float,
    attributes: Mapping[str, Any],
) -> Table:
    """How the eigenvalues of H are made up.

    Args:
        eigenvalues: Of H, in descending order, shape (P,).
        indices: Which eigenvectors, shape (k,).
        gauss_newton: qᵀGq of these, shape (k,).
        remainder: qᵀRq of these, shape (k,).
        error: Bound on the error of a value of G or R: ‖ΔG‖ + ‖ΔH‖.
        attributes: Head of the table, with `zero_threshold` of H.

    Returns:
        A table under `RITZ`, with the attribute `error`.
    """
    columns = {
        **direction_rows(eigenvalues, indices),
        "gauss_newton": gauss_newton,
        "remainder": remainder,
        "is_zero": np.abs(eigenvalues[indices]) <= attributes["zero_threshold"],
    }
    return Table(RITZ, columns, merged(attributes, error=float(error)))


class Work:
    """The parts G and R as items of a long measure: each is one dense matrix, whose eigenvalues are wanted."""

    def __init__(self, job: Job) -> None:
        from quadscape.curvature.gauss_newton import GaussNewtonMatrix, RemainderMatrix
        from quadscape.curvature.hessian import HessianMatrix

        self._job = job
        self._hessian, gauss_newton = HessianMatrix(job.path("hessian")), GaussNewtonMatrix(job.path("gauss_newton"))
        self._matrices: dict[str, GaussNewtonMatrix | RemainderMatrix] = {
            "G": gauss_newton,
            "R": RemainderMatrix(self._hessian, gauss_newton),
        }
        errors = {
            "H": self._hessian.results["verification"]["error_norm"],
            "G": gauss_newton.verification["error_norm"],
        }
        self._errors = errors | {"R": errors["H"] + errors["G"]}
        self._indices = log_indices(job.basis.eigenvalues, ROWS_PER_SIGN)

    @property
    def items(self) -> int:
        """G and R."""
        return len(self._matrices)

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is stored of each part."""
        return {"eigenvalues": (len(self._job.basis.eigenvalues),), "along": (len(self._indices),)}

    def measure(self, part: slice) -> dict[str, np.ndarray]:
        """All eigenvalues of some parts, and qᵀAq along eigenvectors of H."""
        from quadscape.curvature.gauss_newton import eigenvalues

        job, values, along = self._job, [], []
        vectors = job.basis.select(self._indices)
        for name in list(self._matrices)[part]:
            matrix = self._matrices[name]
            values.append(eigenvalues(matrix.dense(), job.device, job.threads, name))
            along.append(ritz_values(matrix, vectors))
            job.log(f"The eigenvalues of {name} are from {values[-1][-1]:.4g} to {values[-1][0]:.4g}.")
        return {"eigenvalues": np.array(values), "along": np.array(along)}

    def tables(self, values: Mapping[str, np.ndarray]) -> dict[str, Table]:
        """The spectra of H, G and R, and how the eigenvalues of H are made up."""
        from quadscape.curvature.gauss_newton import eigenvalue_error

        basis, head = self._job.basis, self._job.basis_head
        found, zeros = {"H": basis.eigenvalues}, {"H": basis.zero_threshold}
        for name, spectrum in zip(self._matrices, values["eigenvalues"], strict=True):
            found[name] = spectrum
            zeros[name] = eigenvalue_error(spectrum, self._hessian.dtype, self._errors[name])
        return {
            "parts_spectrum": spectra(found, zeros, head),
            "parts_ritz": along_eigenvectors(
                basis.eigenvalues, self._indices, values["along"][0], values["along"][1], self._errors["R"], head
            ),
        }


def compute(job: Job) -> dict[str, Table]:
    """Spectra of H, G and R = H − G, and G and R along the eigenvectors of H, in one piece.

    Args:
        job: Reads Hessian, Gauss–Newton matrix and eigenbasis.

    Returns:
        The tables of `spectra` and `along_eigenvectors`.
    """
    work = Work(job)
    return work.tables(work.measure(slice(0, work.items)))
