"""Sizes of batches that measures compare, and batches of them."""

import numpy as np

SMALLEST, FACTOR = 8, 4
"""The smallest batch, and the factor from one size to the next."""


def batch_sizes(count: int, own: int | None = None) -> list[int]:
    """Sizes of batches.

    Args:
        count: N.
        own: That of the training.

    Returns:
        Ascending: 8, 32, 128, … up to N/2, and the training's if N is not less; at least one.
    """
    sizes = {min(own, count)} if own else set()
    size = SMALLEST
    while size <= count // 2:
        sizes.add(size)
        size *= FACTOR
    return sorted(sizes or {max(1, count // 2)})


def draw(count: int, size: int, batches: int, seed: tuple[int, ...]) -> np.ndarray:
    """Independent batches.

    Args:
        count: N.
        size: B.
        batches: Number of batches.
        seed: Of the generator.

    Returns:
        Indices of examples, int64, shape (batches, B); no example twice in one batch.
    """
    generator = np.random.default_rng(seed)
    return np.stack([generator.choice(count, size, replace=False, shuffle=False) for _ in range(batches)])
