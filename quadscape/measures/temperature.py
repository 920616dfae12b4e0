"""Where the variance of SGD is compared with that of the posterior, band by band; with numpy alone."""

import numpy as np

PRIOR = 10.0
"""λ̃ over weight decay below which the posterior is mostly prior."""


def changes(ratio: np.ndarray) -> int:
    """How often bands in order of curvature lie on the other side of 1 than the one before.

    Args:
        ratio: Variance over that of the posterior, in order of curvature, shape (n,).

    Returns:
        0 to n − 1.
    """
    return int(np.count_nonzero(np.diff((ratio > 1).astype(int))))
