"""Which eigenvectors do the data determine? Eigenbases of one checkpoint on other data, compared in tiles."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from quadscape.measures.identified.declaration import DIMENSION, MAXIMA
from quadscape.measures.interfaces import BasisLike, merged
from quadscape.measures.job import Job
from quadscape.measures.members import columns_of
from quadscape.measures.partners import Partners, chance_maximum
from quadscape.measures.ranks import RankBands, rank_bands, signed_ranks
from quadscape.measures.subsets import Comparison, comparisons_of
from quadscape.tables import Table

ENOUGH = 0.7
"""Median |cos|, or captured norm, from which on a band counts as determined."""

ENDS = (("top", 1), ("bottom", -1))


def compute(job: Job) -> dict[str, Table]:
    """Compares the eigenbases of one checkpoint on all data that the experiment lists.

    Args:
        job: Reads them, and what the data stores say of themselves.

    Returns:
        The tables of `measure`.
    """
    return measure(comparisons_of(job), job.options.bands, job.basis_head, device=job.device)


def measure(
    compared: Sequence[Comparison],
    bands: int,
    attributes: Mapping[str, Any],
    *,
    memory: int | None = None,
    device: Any = "cpu",
) -> dict[str, Table]:
    """Compares eigenbases of one checkpoint, each pair in one pass over tiles.

    Args:
        compared: What with what.
        bands: Bands of log rank.
        attributes: Head of the tables, with P.
        memory: Bytes that tiles may take; see `quadscape.curvature.projections.overlap_tiles`.
        device: Device of the products.

    Returns:
        Tables `identified_maxima` and `identified_dimension`.
    """
    head = merged(attributes, **chance_maximum(int(attributes["P"])), enough=ENOUGH, halvings=0)
    rows: list[dict[str, Any]] = []
    agreed: list[dict[str, Any]] = []
    for number, one in enumerate(compared):
        maximum, captured, chance = agreement(one.first.basis, one.second.basis, memory=memory, device=device)
        values = np.asarray(one.first.basis.eigenvalues, dtype=np.float64)
        told = np.flatnonzero(np.abs(values) > one.first.basis.zero_threshold)
        if not len(told):
            continue
        cut = rank_bands(values[told], min(bands, len(told)))
        part = one.columns(number, len(cut))
        part |= _bands(cut, values[told], *(a[told] for a in (maximum, captured, chance)))
        rows += [dict(zip(part, row, strict=True)) for row in zip(*part.values(), strict=True)]
        if one.kind == "halves":
            head["halvings"] += 1
            agreed += _agreed(cut, part)
    return {
        "identified_maxima": Table(MAXIMA, columns_of(rows, MAXIMA.all_columns()), dict(head)),
        "identified_dimension": Table(DIMENSION, columns_of(_together(agreed), DIMENSION.all_columns()), dict(head)),
    }


def agreement(
    first: BasisLike, second: BasisLike, *, memory: int | None = None, device: Any = "cpu"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How well each eigenvector of a basis is found in another one.

    Args:
        first: Qₐ, the rows.
        second: Q_b, the columns.
        memory: Bytes that tiles may take.
        device: Device of the products.

    Returns:
        Of each row: the largest |cos| with any column; the norm of its projection onto the eigenvectors of the same
        sign whose ranks are half to twice its own; and what that is of a random vector. Float64, shape (P,).

    Raises:
        ValueError: The bases differ in size.
    """
    import torch  # here, as the head of the workflow reads schemas beside this without loading it

    from quadscape.curvature.projections import overlap_tiles

    size = len(first.eigenvalues)
    if len(second.eigenvalues) != size:
        raise ValueError(f"the bases have {size} and {len(second.eigenvalues)} eigenvectors")
    starts, stops = rank_windows(first.eigenvalues, second.eigenvalues)
    partners, captured = Partners(size), np.zeros(size)
    for tile in overlap_tiles(first, second, memory=memory, device=device):
        partners.add_tile(tile)
        columns = torch.arange(tile.columns.start, tile.columns.stop, device=device)
        start, stop = (torch.as_tensor(ends[tile.rows], device=device)[:, None] for ends in (starts, stops))
        square = tile.values.double().square_()
        captured[tile.rows] += (square * ((columns >= start) & (columns < stop))).sum(dim=1).cpu().numpy()
    return partners.maximum, np.sqrt(captured), np.sqrt(np.maximum(stops - starts, 0) / size)


def rank_windows(values: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvectors of another basis whose sign is the same and whose rank is half to twice that of each.

    Args:
        values: Eigenvalues of the one, in descending order, shape (P,).
        others: Those of the other.

    Returns:
        First indices, and indices after the last; no smaller than the first where there is any.
    """
    signs, ranks = signed_ranks(values)
    size, positive = len(others), int(np.count_nonzero(np.asarray(others) >= 0))
    least = (ranks + 1) // 2
    most = np.minimum(2 * ranks, np.where(signs > 0, positive, size - positive))
    starts = np.where(signs > 0, least - 1, size - most)
    return starts, np.where(signs > 0, most, size - least + 1)


def _bands(
    bands: RankBands, values: np.ndarray, maximum: np.ndarray, captured: np.ndarray, chance: np.ndarray
) -> dict[str, np.ndarray]:
    quartiles = bands.quartiles(maximum)
    return {
        **bands.rows(values),
        "largest": values[bands.starts],
        "smallest": values[bands.stops - 1],
        "median": quartiles["median"],
        "lower_quartile": quartiles["lower"],
        "upper_quartile": quartiles["upper"],
        "captured": bands.quartiles(captured)["median"],
        "captured_chance": bands.quartiles(chance)["median"],
    }


def last_rank(bands: RankBands, medians: np.ndarray, sign: int) -> int:
    """The largest rank up to which every band of one sign is determined.

    Args:
        bands: Bands of log rank.
        medians: One number for each.
        sign: +1 or −1.

    Returns:
        The rank within the sign; 0 where the first band is not determined.
    """
    found = 0
    order = np.argsort(bands.first_ranks, kind="stable")
    for band in order[bands.signs[order] == sign]:
        if not medians[band] >= ENOUGH:
            break
        found = int(bands.last_ranks[band])
    return found


def _agreed(bands: RankBands, rows: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row of `identified_dimension` for each end."""
    found = []
    for end, sign in ENDS:
        by_chance = bands.first_ranks[(bands.signs == sign) & (rows["captured_chance"] >= ENOUGH)]
        k_vec, k_sub = (last_rank(bands, rows[name], sign) for name in ("median", "captured"))
        found.append(
            {
                "end": end,
                "halving": int(rows["comparison"][0]),
                "seed": int(rows["seed"][0]),
                "halvings": 1,
                "examples": int(rows["examples"][0]),
                "directions": int(bands.last_ranks[bands.signs == sign].max(initial=0)),
                "chance_from": int(by_chance.min()) if len(by_chance) else 0,
                **{name: float(k) for name, k in (("k_vec", k_vec), ("k_sub", k_sub))},
                **dict.fromkeys(("k_vec_low", "k_vec_high", "k_sub_low", "k_sub_high"), np.nan),
            }
        )
    return found


def _together(agreed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of single halvings, and after them one of all of them for each end."""
    rows = list(agreed)
    for end, _ in ENDS:
        of_end = [row for row in agreed if row["end"] == end]
        if of_end:
            together = {"end": end, "halving": -1, "seed": -1, "halvings": len(of_end)}
            together["examples"] = min(row["examples"] for row in of_end)
            # As that of the ranks, so that none is beyond it.
            together["directions"] = int(np.ceil(np.median([row["directions"] for row in of_end])))
            together["chance_from"] = min((row["chance_from"] for row in of_end if row["chance_from"]), default=0)
            for name in ("k_vec", "k_sub"):
                values = [row[name] for row in of_end]
                together |= {name: np.median(values), f"{name}_low": min(values), f"{name}_high": max(values)}
            rows.append(together)
    return rows
