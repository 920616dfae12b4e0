"""Straight lines through points."""

import numpy as np


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of the straight line through points, by least squares.

    Args:
        x: At least two different values, shape (n,).
        y: Of the same shape.

    Returns:
        The slope.
    """
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))
