"""Which of many tests say more than chance would."""

import numpy as np
from scipy.stats import false_discovery_control

FALSE_DISCOVERIES = 0.1
"""Largest expected share of false ones among what is told apart."""


def discoveries(p_values: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Which of many tests are more than chance, by Benjamini and Hochberg at `FALSE_DISCOVERIES`.

    Args:
        p_values: Of all tests, NaN where there is none, shape (m,).
        tested: Which of them are to be told apart, shape (m,).

    Returns:
        Booleans, shape (m,).
    """
    tested = tested & np.isfinite(p_values)
    found = np.zeros(len(p_values), dtype=bool)
    if tested.any():
        found[tested] = false_discovery_control(p_values[tested]) <= FALSE_DISCOVERIES
    return found
