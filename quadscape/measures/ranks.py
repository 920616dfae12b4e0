"""Ranks of eigenvalues within their sign, and logarithmic samples and bands of them.

Rank 1 is the eigenvalue of largest magnitude of its sign; eigenvalues are in descending order throughout, so that
positive ranks count from the front of the list and negative ranks from its end.
"""

from dataclasses import dataclass

import numpy as np


def signed_ranks(eigenvalues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sign and rank within the sign of every eigenvalue.

    Args:
        eigenvalues: In descending order, shape (P,).

    Returns:
        Signs (+1 for λ ≥ 0, −1 for λ < 0) and ranks (from 1), both int64 of shape (P,).
    """
    eigenvalues = np.asarray(eigenvalues)
    size, positive = len(eigenvalues), int(np.count_nonzero(eigenvalues >= 0))
    index = np.arange(size)
    signs = np.where(index < positive, 1, -1)
    return signs.astype(np.int64), np.where(index < positive, index + 1, size - index).astype(np.int64)


def direction_rows(eigenvalues: np.ndarray, indices: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What identifies directions in a table (`quadscape.measures.columns.DIRECTION`).

    Args:
        eigenvalues: In descending order, shape (P,).
        indices: Which of them; None: all.

    Returns:
        Columns index, sign, rank and eigenvalue.
    """
    eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
    rows = np.arange(len(eigenvalues)) if indices is None else np.asarray(indices)
    signs, ranks = signed_ranks(eigenvalues)
    return {"index": rows, "sign": signs[rows], "rank": ranks[rows], "eigenvalue": eigenvalues[rows]}


def log_edges(count: int, bands: int) -> np.ndarray:
    """Edges that cut the ranks 1 … count into bands of about equal width in log rank.

    Args:
        count: Number of ranks.
        bands: Number of bands wanted; at most one per rank is made.

    Returns:
        Strictly increasing int64 edges from 1 to count + 1; band j holds the ranks edges[j] … edges[j + 1] − 1.
    """
    bands = min(bands, count)
    if bands <= 0:
        return np.ones(1, dtype=np.int64)
    steps = np.arange(bands + 1)
    edges = np.rint(np.geomspace(1, count + 1, bands + 1)).astype(np.int64)
    # Low ranks lie closer than 1 in log rank: each then becomes a band of its own.
    edges = np.maximum.accumulate(edges - steps) + steps
    return np.minimum(edges, count + 1 - steps[::-1])


def log_ranks(count: int, samples: int) -> np.ndarray:
    """About evenly log-spaced distinct ranks.

    Args:
        count: Number of ranks.
        samples: Number wanted; at most `count` are given.

    Returns:
        Increasing int64 ranks that start at 1 and, where there are at least two, end at `count`.
    """
    if samples >= count:
        return np.arange(1, count + 1)
    if samples <= 1:
        return np.arange(1, samples + 1)
    return np.append(log_edges(count - 1, samples - 1)[:-1], count)


def log_indices(eigenvalues: np.ndarray, samples: int) -> np.ndarray:
    """Indices on log-spaced ranks of both signs.

    Args:
        eigenvalues: In descending order, shape (P,).
        samples: Number wanted per sign.

    Returns:
        Increasing distinct int64 indices.
    """
    size, positive = len(eigenvalues), int(np.count_nonzero(np.asarray(eigenvalues) >= 0))
    return np.concatenate([log_ranks(positive, samples) - 1, np.sort(size - log_ranks(size - positive, samples))])


def even_bands(values: np.ndarray, count: int) -> np.ndarray:
    """Bands that are even in the logarithm of positive values.

    Args:
        values: Positive, not all equal, shape (n,).
        count: Number of bands; some may stay empty.

    Returns:
        The band of each value, int64, 0 to count − 1, ascending with the values.
    """
    logs = np.log(values)
    edges = np.linspace(logs.min(), logs.max(), count + 1)
    return np.clip(np.searchsorted(edges, logs, side="right") - 1, 0, count - 1)


def indices_by_band(values: np.ndarray, chosen: np.ndarray, count: int) -> list[np.ndarray]:
    """The members of bands that are even in the logarithm.

    Args:
        values: Positive where they are chosen, shape (n,).
        chosen: Which of them are put into bands, booleans of that shape.
        count: Number of bands; empty ones are left out.

    Returns:
        Ascending indices of each band, the smallest values first; one band where all chosen values are equal.
    """
    places = np.flatnonzero(chosen)
    of = values[places]
    if len(np.unique(of)) < 2:
        return [places] if len(places) else []
    band = even_bands(of, count)
    return [places[band == number] for number in np.unique(band)]


@dataclass(frozen=True)
class RankBands:
    """A partition of the eigenvalues into bands of log rank, of each sign separately.

    Attributes:
        starts: First index of each band, int64, ascending from 0.
        stops: Index after the last of each band.
        signs: +1 or −1 for each band.
        first_ranks: Smallest rank within the sign, for each band.
        last_ranks: Largest rank within the sign, for each band.
    """

    starts: np.ndarray
    stops: np.ndarray
    signs: np.ndarray
    first_ranks: np.ndarray
    last_ranks: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def slices(self) -> list[slice]:
        """The indices of each band."""
        return [slice(int(start), int(stop)) for start, stop in zip(self.starts, self.stops, strict=True)]

    def quartiles(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Quartiles over the directions of each band.

        Args:
            values: One for each direction, shape (P,).

        Returns:
            `lower`, `median` and `upper`, each of shape (bands,).
        """
        found = np.array([np.quantile(values[part], [0.25, 0.5, 0.75]) for part in self.slices()]).reshape(-1, 3)
        return dict(zip(("lower", "median", "upper"), found.T, strict=True))

    def rows(self, eigenvalues: np.ndarray, suffix: str = "") -> dict[str, np.ndarray]:
        """What identifies bands in a table (`band_columns` and `BAND_SIZE` of `quadscape.measures.columns`).

        Args:
            eigenvalues: In descending order, shape (P,).
            suffix: Of the names that `band_columns` makes.

        Returns:
            Columns sign, first_rank, last_rank, count and eigenvalue.
        """
        return {
            f"sign{suffix}": self.signs,
            f"first_rank{suffix}": self.first_ranks,
            f"last_rank{suffix}": self.last_ranks,
            "count": self.stops - self.starts,
            "eigenvalue": np.array([np.median(eigenvalues[part]) for part in self.slices()]),
        }

    def labels(self) -> np.ndarray:
        """The band of every index, int64, shape (P,)."""
        return np.repeat(np.arange(len(self)), self.stops - self.starts)


def rank_bands(eigenvalues: np.ndarray, bands: int) -> RankBands:
    """Cuts a spectrum into bands; the two signs share the bands in proportion to their extent in log rank.

    Args:
        eigenvalues: In descending order, shape (P,).
        bands: Number of bands, at least 2.

    Returns:
        The bands in order of index: positive from the top, then negative down to the bottom.
    """
    size, positive = len(eigenvalues), int(np.count_nonzero(np.asarray(eigenvalues) >= 0))
    negative = size - positive
    weights = np.log1p([positive, negative])
    below = min(negative, round(bands * weights[1] / weights.sum()))
    if negative:
        below = min(max(1, below), bands - 1) if positive else bands
    above = log_edges(positive, bands - below if positive else 0)
    under = log_edges(negative, below)[::-1]
    starts = np.concatenate([above[:-1] - 1, size + 1 - under[:-1]])
    stops = np.concatenate([above[1:] - 1, size + 1 - under[1:]])
    signs = np.concatenate([np.ones(len(above) - 1), -np.ones(len(under) - 1)]).astype(np.int64)
    first = np.where(signs > 0, starts + 1, size - stops + 1)
    last = np.where(signs > 0, stops, size - starts)
    return RankBands(starts, stops, signs, first, last)
