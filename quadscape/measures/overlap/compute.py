"""Are the eigenvectors constant? |QₐᵀQ_b| between two checkpoints, in tiles."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quadscape.measures.interfaces import BasisLike, merged
from quadscape.measures.job import Job
from quadscape.measures.overlap.declaration import BANDS, MAXIMA, POWER, ROWS, SUBSPACE
from quadscape.measures.overlap.magnitudes import MagnitudeBands, magnitude_bands, magnitude_edges
from quadscape.measures.partners import Partners, chance_maximum
from quadscape.measures.ranks import RankBands, direction_rows, log_indices, log_ranks, rank_bands
from quadscape.tables import Table

ROWS_PER_SIGN = 1000
"""Rows kept of each sign in `overlap_rows`; the other tables are made of all of them."""

SUBSPACES = 60
"""Sizes k, log-spaced from 1 to P, at which subspaces are compared."""


def compute(job: Job) -> dict[str, Table]:
    """Overlaps of the eigenbases of two checkpoints.

    Args:
        job: Reads both eigenbases.

    Returns:
        The tables of `measure`.
    """
    first, second = job.bases
    head = {"run": job.run, "iteration_a": job.iterations[0], "iteration_b": job.iterations[1], "P": first.size}
    return measure(first, second, job.options.bands, head, device=job.device)


def measure(
    first: BasisLike,
    second: BasisLike,
    bands: int,
    attributes: Mapping[str, Any],
    *,
    memory: int | None = None,
    device: Any = "cpu",
) -> dict[str, Table]:
    """Compares two eigenbases of one size, in tiles (`quadscape.curvature.projections.overlap_tiles`).

    Args:
        first: Qₐ, the rows.
        second: Q_b, the columns.
        bands: Bands of log rank per axis, and at most as many of log |λ|.
        attributes: Head of the tables: run, iteration_a, iteration_b and the like.
        memory: Bytes that tiles may take; see `overlap_tiles`.
        device: Device of the products.

    Returns:
        Tables `overlap_rows`, `overlap_maxima`, `overlap_bands`, `overlap_power` and `overlap_subspace`. The attribute
        `norm_error` is the largest |Σⱼ Oᵢⱼ² − 1| of a row, 0 but for rounding for two orthonormal bases.

    Raises:
        ValueError: The bases differ in size.
    """
    import torch  # here, so that figures read the schemas above without loading it

    from quadscape.curvature.projections import overlap_tiles

    size = len(first.eigenvalues)
    if len(second.eigenvalues) != size:
        raise ValueError(f"the bases have {size} and {len(second.eigenvalues)} eigenvectors")
    bands_a, bands_b = rank_bands(first.eigenvalues, bands), rank_bands(second.eigenvalues, bands)
    edges = magnitude_edges((first, second), bands)
    powers_a, powers_b = magnitude_bands(first, edges), magnitude_bands(second, edges)
    ks = log_ranks(size, SUBSPACES)
    # One partition per axis that is finer than all bands and than the subspaces: everything is a sum over its blocks.
    cuts_a, cuts_b = (
        np.unique(np.concatenate([[0], ranked.stops, powers.stops, ks, size - ks]))
        for ranked, powers in ((bands_a, powers_a), (bands_b, powers_b))
    )
    blocks = np.zeros((len(cuts_a) - 1, len(cuts_b) - 1))
    partners, norms = Partners(size), np.zeros(size)
    for tile in overlap_tiles(first, second, memory=memory, device=device):
        rows, columns = tile.rows, tile.columns
        partners.add_tile(tile)
        # Sums of squares in float64: thousands of tiny terms beside a few large ones.
        square = tile.values.double().square_()
        norms[rows] += square.sum(dim=1).cpu().numpy()
        in_a, in_b = (_membership(cuts, part, torch, device) for cuts, part in ((cuts_a, rows), (cuts_b, columns)))
        blocks += (in_a.T @ (square @ in_b)).cpu().numpy()
    head = merged(
        attributes,
        P=size,
        **chance_maximum(size),
        norm_error=float(np.abs(norms - 1).max()),
    )
    return {
        "overlap_rows": _rows(first.eigenvalues, second.eigenvalues, partners, head),
        "overlap_maxima": _maxima(first.eigenvalues, bands_a, partners.maximum, head),
        "overlap_bands": _bands(bands_a, bands_b, _coarse(blocks, cuts_a, cuts_b, bands_a, bands_b), size, head),
        "overlap_power": _power(powers_a, powers_b, _coarse(blocks, cuts_a, cuts_b, powers_a, powers_b), size, head),
        "overlap_subspace": _subspace(blocks, cuts_a, cuts_b, ks, size, head),
    }


def _membership(cuts: np.ndarray, part: slice, torch: Any, device: Any) -> Any:
    """Indicator matrix of the blocks, shape (part, blocks): turns block sums into matrix products."""
    label = torch.as_tensor(np.searchsorted(cuts, np.arange(part.start, part.stop), side="right") - 1).to(device)
    return (label[:, None] == torch.arange(len(cuts) - 1, device=device)).double()


def _coarse(
    blocks: np.ndarray,
    cuts_a: np.ndarray,
    cuts_b: np.ndarray,
    bands_a: RankBands | MagnitudeBands,
    bands_b: RankBands | MagnitudeBands,
) -> np.ndarray:
    by_row = np.add.reduceat(blocks, np.searchsorted(cuts_a, bands_a.starts), axis=0)
    return np.add.reduceat(by_row, np.searchsorted(cuts_b, bands_b.starts), axis=1)


def _rows(values_a: np.ndarray, values_b: np.ndarray, partners: Partners, head: dict[str, Any]) -> Table:
    keep = log_indices(values_a, ROWS_PER_SIGN)
    columns = {
        **direction_rows(values_a, keep),
        "maximum": partners.maximum[keep],
        "partner": partners.partner[keep],
        "partner_eigenvalue": np.asarray(values_b)[partners.partner[keep]],
    }
    return Table(ROWS, columns, head)


def _maxima(values: np.ndarray, bands: RankBands, maximum: np.ndarray, head: dict[str, Any]) -> Table:
    quartiles = bands.quartiles(maximum)
    columns = {
        **bands.rows(values, "_a"),
        "median": quartiles["median"],
        "lower_quartile": quartiles["lower"],
        "upper_quartile": quartiles["upper"],
    }
    return Table(MAXIMA, columns, head)


def _bands(bands_a: RankBands, bands_b: RankBands, power: np.ndarray, size: int, head: dict[str, Any]) -> Table:
    pairs = np.outer(bands_a.stops - bands_a.starts, bands_b.stops - bands_b.starts)
    i, j = (axis.ravel() for axis in np.indices(power.shape))
    columns = {
        "band_a": i,
        "band_b": j,
        "sign_a": bands_a.signs[i],
        "first_rank_a": bands_a.first_ranks[i],
        "last_rank_a": bands_a.last_ranks[i],
        "sign_b": bands_b.signs[j],
        "first_rank_b": bands_b.first_ranks[j],
        "last_rank_b": bands_b.last_ranks[j],
        "ratio": (power / pairs * size).ravel(),
    }
    return Table(BANDS, columns, head)


def _power(
    bands_a: MagnitudeBands, bands_b: MagnitudeBands, power: np.ndarray, size: int, head: dict[str, Any]
) -> Table:
    i, j = (axis.ravel() for axis in np.indices(power.shape))
    mean, chance = (power / bands_a.counts[:, None]).ravel(), bands_b.counts[j] / size
    columns = {
        **bands_a.described("_a", i),
        **bands_b.described("_b", j),
        "power": mean,
        "chance": chance,
        "ratio": mean / chance,
    }
    return Table(POWER, columns, head)


def _subspace(
    blocks: np.ndarray, cuts_a: np.ndarray, cuts_b: np.ndarray, ks: np.ndarray, size: int, head: dict[str, Any]
) -> Table:
    below = np.zeros((len(cuts_a), len(cuts_b)))
    below[1:, 1:] = blocks.cumsum(axis=0).cumsum(axis=1)
    above = np.zeros_like(below)
    above[:-1, :-1] = blocks[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1]
    top = below[np.searchsorted(cuts_a, ks), np.searchsorted(cuts_b, ks)]
    bottom = above[np.searchsorted(cuts_a, size - ks), np.searchsorted(cuts_b, size - ks)]
    columns = {
        "end": np.repeat(["top", "bottom"], len(ks)),
        "k": np.tile(ks, 2),
        "overlap": np.concatenate([top, bottom]) / np.tile(ks, 2),
        "chance": np.tile(ks / size, 2),
    }
    return Table(SUBSPACE, columns, head)
