"""Bands of log |λ| of both signs, with everything that cannot be told from zero in a band of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quadscape.measures.interfaces import BasisLike

STEPS = (0.1, 0.125, 0.2, 0.25, 1 / 3, 0.5, 1, 2, 5, 10, 20, 50, 100)
"""Widths that bands may have, in decades: edges then lie on powers of ten, or divide decades evenly."""


def magnitude_edges(bases: Sequence[BasisLike], bands: int) -> np.ndarray:
    """Edges of |λ| that several bases share, so that equal bands are equal eigenvalues.

    Args:
        bases: Their eigenvalues beyond each one's numerical zero are covered.
        bands: At most half as many bands of either sign are made, but at least one.

    Returns:
        Increasing powers of ten; band j holds edges[j] < |λ| ≤ edges[j + 1]. Empty where no eigenvalue is beyond zero.
    """
    sizes = np.concatenate([_beyond_zero(basis) for basis in bases])
    if not len(sizes):
        return np.empty(0)
    low, high = math.log10(sizes.min()), math.log10(sizes.max())
    for step in STEPS:
        first, last = math.ceil(low / step) - 1, math.ceil(high / step)
        if last - first <= max(1, bands // 2):
            return 10.0 ** (step * np.arange(first, last + 1))
    return 10.0 ** np.array([math.ceil(low) - 1.0, math.ceil(high)])


def _beyond_zero(basis: BasisLike) -> np.ndarray:
    sizes = np.abs(np.asarray(basis.eigenvalues, dtype=np.float64))
    return sizes[sizes > basis.zero_threshold]


@dataclass(frozen=True)
class MagnitudeBands:
    """A partition of the eigenvalues of a basis; bands without any are left out.

    Attributes:
        starts: First index of each band, int64, ascending from 0: from the largest eigenvalue to the smallest.
        stops: Index after the last of each band.
        signs: +1, −1, or 0 for what cannot be told from zero.
        least: |λ| is above this; 0 for the band of zero.
        most: |λ| is at most this; ε_λ for the band of zero.
    """

    starts: np.ndarray
    stops: np.ndarray
    signs: np.ndarray
    least: np.ndarray
    most: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Eigenvalues in each band."""
        return self.stops - self.starts

    def described(self, suffix: str, which: np.ndarray) -> dict[str, np.ndarray]:
        """What identifies bands in a table.

        Args:
            suffix: Of the names of the columns.
            which: A band for each row.

        Returns:
            Columns sign, least, most and count.
        """
        columns = {"sign": self.signs, "least": self.least, "most": self.most, "count": self.counts}
        return {f"{name}{suffix}": values[which] for name, values in columns.items()}


def magnitude_bands(basis: BasisLike, edges: np.ndarray) -> MagnitudeBands:
    """Cuts a spectrum at edges of |λ|.

    Args:
        basis: Its eigenvalues, in descending order, and its numerical zero.
        edges: From `magnitude_edges` of this basis, and perhaps others.

    Returns:
        The bands in order of index.
    """
    values = np.asarray(basis.eigenvalues, dtype=np.float64)
    sizes = np.abs(values)
    is_zero = sizes <= basis.zero_threshold
    # What rounding takes across the first or the last edge belongs beside it.
    band = np.clip(np.searchsorted(edges, sizes, side="left") - 1, 0, max(0, len(edges) - 2))
    signs = np.where(is_zero, 0, np.where(values >= 0, 1, -1))
    code = signs * (band + 1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(code)) + 1]).astype(np.int64)
    stops = np.append(starts[1:], len(values)).astype(np.int64)
    least, most = np.zeros(len(starts)), np.full(len(starts), float(basis.zero_threshold))
    of_sign = signs[starts] != 0
    if of_sign.any():
        least[of_sign], most[of_sign] = edges[band[starts[of_sign]]], edges[band[starts[of_sign]] + 1]
    return MagnitudeBands(starts, stops, signs[starts].astype(np.int64), least, most)
