"""Cells of a family that differ in the learning rate alone are one variant, tuned over these rates."""

import numpy as np

from quadscape.tables import Table


def rate_axes(table: Table) -> tuple[str, ...]:
    """Axes along which runs differ in the height of the learning rate alone, as the table says."""
    return tuple(table.attributes.get("rate_axes", ()))


def variants(table: Table) -> np.ndarray:
    """The variant of every row: the labels of its cell on all axes but those of the learning rate.

    Args:
        table: As for `rate_axes`.

    Returns:
        Names, in the order of the rows.
    """
    left_out, cells = rate_axes(table), table.attributes.get("cells", {})
    names = {}
    for cell in dict.fromkeys(table["cell"].tolist()):
        labels = [label for axis, label in cells.get(cell, {}).items() if axis not in left_out]
        names[cell] = " · ".join(labels) or (str(table.attributes.get("run", "")) if cell in cells else cell)
    return np.array([names[cell] for cell in table["cell"].tolist()], dtype=str)
