"""How few parameters an eigenvector lives in, beside a random vector.

The participation ratio of a unit vector, 1/Σq⁴, is the number of equal components that would give the same Σq⁴. A
random unit vector has E Σq⁴ = 3/(P + 2) (the fourth moment on the sphere), and so about (P + 2)/3 of P. For the
projector onto a band of k eigenvectors, with diagonal d of sum k, it is k²/Σd², which does not depend on the choice of
basis where eigenvalues (nearly) coincide; of a random subspace E d² = k(k + 2)/(P(P + 2)).

Eigenvectors within the numerical zero are left out: a null space has no basis of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from quadscape.measures.interfaces import BasisLike, merged
from quadscape.measures.job import Job
from quadscape.measures.localisation.declaration import BANDS, DIRECTIONS, LARGEST, PARAMETERS
from quadscape.measures.ranks import RankBands, direction_rows, log_indices, rank_bands
from quadscape.tables import Table

ROWS_PER_SIGN = 1000
"""Eigenvectors of each sign, on log-spaced ranks; bands are made of all of them."""

LAYER_ROWS_PER_SIGN = 60
"""Of those that are cut into layers."""

BAND_COUNT = 60
TILE_BYTES = 500_000_000


def chance_share(size: int) -> float:
    """Share of the squared norm in the largest components of a random vector, for large P.

    Args:
        size: P.

    Returns:
        E[z²; |z| > t] for standard normal z, where P(|z| > t) is the part that `LARGEST` components are: with φ and Φ
        2(tφ(t) + 1 − Φ(t)). 1 where the vector has no more components.
    """
    if size <= LARGEST:
        return 1.0
    normal = NormalDist()
    t = normal.inv_cdf(1 - LARGEST / size / 2)
    return 2 * (t * normal.pdf(t) + 1 - normal.cdf(t))


def _tiles(basis: BasisLike, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Squares of the components, shape (P, width) each, in float64 and of columns of sum 1."""
    width = max(1, min(size, TILE_BYTES // (8 * size)))
    for start in range(0, size, width):
        part = slice(start, min(size, start + width))
        square = np.square(basis.vectors(part.start, part.stop).astype(np.float64))
        yield part, square / square.sum(axis=0)


def largest_shares(square: np.ndarray) -> np.ndarray:
    """Sum of the largest components of each column, shape (columns,)."""
    if len(square) <= LARGEST:
        return square.sum(axis=0)
    return np.partition(square, len(square) - LARGEST, axis=0)[-LARGEST:].sum(axis=0)


def measure(
    basis: BasisLike, blocks: Sequence[tuple[str, str, slice]], attributes: Mapping[str, Any]
) -> dict[str, Table]:
    """The localisation of all eigenvectors, in one pass over the basis.

    Args:
        basis: The eigenbasis.
        blocks: Layer, kind and place in θ of each parameter of the network.
        attributes: Head of the tables; see `quadscape.measures.job.Job.basis_head`.

    Returns:
        Tables `localisation`, `localisation_layers` and `localisation_bands`. Attributes: chance_participation
        (P + 2)/3 and chance_share of a random vector.
    """
    values = np.asarray(basis.eigenvalues, dtype=np.float64)
    size, zero = len(values), float(basis.zero_threshold)
    fourth, largest = np.zeros(size), np.zeros(size)
    shares = np.zeros((len(blocks), size))
    bands = rank_bands(values, BAND_COUNT)
    diagonals, labels = np.zeros((size, len(bands))), bands.labels()
    kept = _beyond(values, log_indices(values, ROWS_PER_SIGN), zero)
    wanted = np.zeros(size, dtype=bool)
    wanted[kept] = True
    for part, square in _tiles(basis, size):
        fourth[part] = np.square(square).sum(axis=0)
        chosen = np.flatnonzero(wanted[part])
        largest[part.start + chosen] = largest_shares(square[:, chosen])
        for place, (_, _, block) in enumerate(blocks):
            shares[place, part] = square[block].sum(axis=0)
        for band in np.unique(labels[part]):
            diagonals[:, band] += square[:, labels[part] == band].sum(axis=1)
    head = merged(attributes, chance_participation=(size + 2) / 3, chance_share=chance_share(size), largest=LARGEST)
    columns = {
        **direction_rows(values, kept),
        "participation": 1 / fourth[kept],
        "largest_share": largest[kept],
    }
    few = _beyond(values, log_indices(values, LAYER_ROWS_PER_SIGN), zero)
    return {
        "localisation": Table(DIRECTIONS, columns, head),
        "localisation_layers": Table(PARAMETERS, _by_parameter(values, few, blocks, shares), head),
        "localisation_bands": Table(BANDS, _by_band(values, bands, diagonals, zero), head),
    }


def _beyond(values: np.ndarray, indices: np.ndarray, zero: float) -> np.ndarray:
    """Those of some indices whose eigenvalue is beyond the numerical zero."""
    return indices[np.abs(values[indices]) > zero]


def _by_parameter(
    values: np.ndarray, rows: np.ndarray, blocks: Sequence[tuple[str, str, slice]], shares: np.ndarray
) -> dict[str, np.ndarray]:
    count, lengths = len(rows), np.array([block.stop - block.start for _, _, block in blocks], dtype=np.float64)
    which = {name: np.repeat(column, len(blocks)) for name, column in direction_rows(values, rows).items()}
    return {
        **which,
        "layer": np.tile(np.array([layer for layer, _, _ in blocks], dtype=str), count),
        "kind": np.tile(np.array([kind for _, kind, _ in blocks], dtype=str), count),
        "share": shares[:, rows].T.ravel(),
        "chance": np.tile(lengths / len(values), count),
    }


def _by_band(values: np.ndarray, bands: RankBands, diagonals: np.ndarray, zero: float) -> dict[str, np.ndarray]:
    rows = bands.rows(values)
    k = rows["count"].astype(np.float64)
    return {
        **rows,
        "participation": np.square(k) / np.square(diagonals).sum(axis=0),
        "chance": k * (len(values) + 2) / (k + 2),
        "is_zero": np.abs(rows["eigenvalue"]) <= zero,
    }


def compute(job: Job) -> dict[str, Table]:
    """The localisation of the eigenvectors of one checkpoint.

    Args:
        job: Reads eigenbasis and checkpoint, which knows where each parameter lies.

    Returns:
        The tables of `measure`.
    """
    blocks = [
        (block.layer or "(network)", block.name.rpartition(".")[2], slice(block.start, block.stop))
        for block in job.checkpoint.layout.blocks
    ]
    return measure(job.basis, blocks, job.basis_head)
