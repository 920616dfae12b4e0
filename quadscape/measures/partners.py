"""For every vector of a basis the vector of another basis that is most like it, and what chance gives."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np


def chance_maximum(size: int) -> dict[str, float]:
    """The largest |cos| of a given vector with the vectors of a random basis.

    Args:
        size: P.

    Returns:
        chance_maximum, √(2 ln P / P), which holds for large P; and chance_maximum_q05, _median and _q95, quantiles of
        the largest of P independent |z|/√P, z standard normal, whose median it exceeds by a tenth at P = 2,000.
    """
    found = {"chance_maximum": min(1.0, math.sqrt(2 * math.log(max(size, 2)) / size))}
    for name, q in (("q05", 0.05), ("median", 0.5), ("q95", 0.95)):
        z = NormalDist().inv_cdf((1 + q ** (1 / size)) / 2)
        found[f"chance_maximum_{name}"] = min(1.0, z / math.sqrt(size))
    return found


class Partners:
    """Largest entries of the rows of |QₐᵀQ_b|, from tiles in any order.

    Attributes:
        maximum: Largest |cos| of every row with any column seen, float64, shape (P,).
        partner: Which column that is, int64, shape (P,).
    """

    def __init__(self, size: int) -> None:
        """Of rows of which no tile was seen.

        Args:
            size: P.
        """
        self.maximum, self.partner = np.full(size, -1.0), np.zeros(size, dtype=np.int64)

    def add_tile(self, tile: Any) -> None:
        """Takes a tile in.

        Args:
            tile: Of `quadscape.curvature.projections.overlap_tiles`.
        """
        best, where = (found.cpu().numpy() for found in tile.values.abs().max(dim=1))
        better = best > self.maximum[tile.rows]
        self.maximum[tile.rows] = np.where(better, best, self.maximum[tile.rows])
        self.partner[tile.rows] = np.where(better, where + tile.columns.start, self.partner[tile.rows])
