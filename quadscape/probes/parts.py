"""Which part of the Hessian makes its eigenvalues: spectra of H, G and R = H − G; G and R along H's eigenvectors."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from quadscape.probes.interfaces import merged
from quadscape.probes.ranks import log_indices, signed_ranks
from quadscape.probes.spectrum import ROWS_PER_SIGN, count_at
from quadscape.tables import Column, Table, TableSchema

PARTS = ("H", "G", "R")

SPECTRA = TableSchema(
    "parts_spectrum",
    "One eigenvalue of the Hessian H, of its Gauss–Newton part G, or of the remainder R = H − G.",
    (
        Column("part", "1", "H, G or R.", "str"),
        Column("sign", "1", "+1 for an eigenvalue of at least 0, −1 below.", "int"),
        Column("rank", "1", "Rank by magnitude among the eigenvalues of this part and sign, from 1.", "int"),
        Column("eigenvalue", "loss / parameter²", "Eigenvalue."),
        Column("is_zero", "1", "Whether its magnitude is at most the numerical zero of this part.", "bool"),
    ),
)

RITZ = TableSchema(
    "parts_ritz",
    "One eigenvector q of the Hessian, and how its eigenvalue λ = qᵀGq + qᵀRq is made up.",
    (
        Column("index", "1", "Index of λ in descending order, from 0.", "int"),
        Column("sign", "1", "+1 for an eigenvalue of at least 0, −1 below.", "int"),
        Column("rank", "1", "Rank by magnitude among the eigenvalues of this sign, from 1.", "int"),
        Column("eigenvalue", "loss / parameter²", "Eigenvalue λ of H."),
        Column("gauss_newton", "loss / parameter²", "qᵀGq, never negative but for rounding."),
        Column("remainder", "loss / parameter²", "qᵀRq."),
        Column("is_zero", "1", "Whether |λ| is at most the numerical zero of H.", "bool"),
    ),
)


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
    signs, ranks = signed_ranks(eigenvalues)
    columns = {
        "index": indices,
        "sign": signs[indices],
        "rank": ranks[indices],
        "eigenvalue": eigenvalues[indices],
        "gauss_newton": gauss_newton,
        "remainder": remainder,
        "is_zero": np.abs(eigenvalues[indices]) <= attributes["zero_threshold"],
    }
    return Table(RITZ, columns, merged(attributes, error=float(error)))
