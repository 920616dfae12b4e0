"""Cells of a family that differ in the learning rate alone are one variant, tuned over these rates."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from quadscape.tables import Table

_SAME = ("method", "momentum", "batch_size", "weight_decay", "iterations", "examples", "parameters")


def rate_axes(table: Table) -> tuple[str, ...]:
    """Axes along which nothing of the settings changes but the learning rate.

    Args:
        table: A table with `cell` and the settings of runs, and the labels of cells among its attributes.

    Returns:
        Names of the axes, in order.
    """
    cells: Mapping[str, Mapping[str, str]] = table.attributes.get("cells", {})
    found = []
    for axis in table.attributes.get("axes", {}):
        groups: dict[tuple[str, ...], set[tuple[Any, ...]]] = {}
        rates: dict[tuple[str, ...], set[float]] = {}
        for row, cell in enumerate(table["cell"].tolist()):
            others = tuple(label for name, label in cells.get(cell, {}).items() if name != axis)
            # As text, where NaN equals itself.
            groups.setdefault(others, set()).add(tuple(str(table[name][row]) for name in _SAME))
            rates.setdefault(others, set()).add(float(table["learning_rate"][row]))
        if all(len(group) == 1 for group in groups.values()) and any(len(rate) > 1 for rate in rates.values()):
            found.append(axis)
    return tuple(found)


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
