"""Small data sets and networks that several tests share."""

from pathlib import Path

import numpy as np

from quadscape.data.sets import write_data


def write_random_data(
    path: Path,
    shape: tuple[int, int, int] = (1, 8, 8),
    classes: int = 3,
    counts: tuple[int, int, int] = (50, 12, 11),
    seed: int = 0,
) -> Path:
    """A data store of random pixels and labels; returns its path."""
    generator = np.random.default_rng(seed)
    total = sum(counts)
    images = generator.integers(0, 256, (total, *shape), dtype=np.uint8)
    labels = generator.integers(0, classes, total)
    split = np.repeat(np.arange(3, dtype=np.uint8), counts)
    write_data(path, images, labels, split, [f"class{i}" for i in range(classes)], "random")
    return path
