"""Losses on planes in the space of parameters, as several figures and the interactive pages show them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

PANELS, PLANES = 8, 4
"""Most panels of one figure, and most planes side by side."""

_LEVELS = 14
_DECADE = 10.0
_RANDOM = "random"


@dataclass(frozen=True)
class Picture:
    """The loss on one plane of one checkpoint.

    Attributes:
        table: The plane's rows of `surface`.
        plane: Its row of `surface_planes`.
        a: Coordinates along the first direction, ascending, shape (n,).
        b: Along the second.
        loss: Shape (n, n), a in rows; NaN where it is not finite.
    """

    table: "Table"
    plane: "Mapping[str, Any]"
    a: np.ndarray
    b: np.ndarray
    loss: np.ndarray

    @property
    def logarithmic(self) -> bool:
        """Whether the loss spans more than a decade, and so is shown by its logarithm."""
        return spans_decades(self.loss)

    @property
    def unit(self) -> str:
        """Unit of both coordinates."""
        return "filter lengths" if str(self.plane["first"]).startswith(_RANDOM) else "parameter"

    def label(self, which: int) -> str:
        """What an axis is, with its unit; 0 for a, 1 for b."""
        order = ("first", "second")[which]
        name = str(self.plane[order])
        along = f"{order} random direction" if name.startswith(_RANDOM) else f"along {name}"
        return f"{along}  ({self.unit})"


def spans_decades(loss: np.ndarray) -> bool:
    """Whether losses are positive and span more than a decade."""
    finite = loss[np.isfinite(loss)]
    return bool(len(finite)) and float(finite.min()) > 0 and float(finite.max()) / float(finite.min()) > _DECADE


def pictures(surface: "Table", planes: "Table") -> "list[Picture]":
    """The planes of one checkpoint.

    Args:
        surface: Its table `surface`.
        planes: Its table `surface_planes`.

    Returns:
        In the order of the experiment file.
    """
    found = []
    for row in range(len(planes)):
        table = surface.where(surface["plane"] == planes["plane"][row])
        count = round(len(table) ** 0.5)
        grid = {name: table[name].reshape(count, count) for name in ("a", "b", "loss")}
        plane = {name: planes[name][row] for name in planes.columns}
        found.append(Picture(table, plane, grid["a"][:, 0], grid["b"][0], grid["loss"]))
    return found


def chosen(tables: "Tables") -> "list[list[Picture]]":
    """What a figure of at most `PANELS` panels shows.

    Args:
        tables: `surface` and `surface_planes`, one of each per checkpoint.

    Returns:
        Checkpoints, evenly through all of them from the first to the last, and at most `PLANES` planes of each.
    """
    every = [pictures(*pair)[:PLANES] for pair in zip(tables["surface"], tables["surface_planes"], strict=True)]
    every = [of for of in every if of]
    columns = max((len(of) for of in every), default=1)
    places = np.unique(np.linspace(0, len(every) - 1, min(len(every), PANELS // columns)).round().astype(int))
    return [every[place] for place in places]


def panels(
    tables: "Tables", heading: str, height: float, draw: "Callable[[Figure, Any, Picture], None]", **options: "Any"
) -> "Figure":
    """A figure of planes, one row per checkpoint and one column per plane, with the key of the star that marks it.

    Args:
        tables: `surface` and `surface_planes`, one of each per checkpoint.
        heading: Title of the figure.
        height: Of a row, in inches.
        draw: Draws one picture into one panel.
        **options: Passed on to `Figure.subplots`.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    rows = chosen(tables)
    if not rows:
        return style.message(heading, "There is no checkpoint with a plane.")
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(max(6.4, 4.3 * columns + 0.4), height * len(rows) + 1.0), layout=style.layout())
    axes = figure.subplots(len(rows), columns, squeeze=False, **options)
    for row, places in zip(rows, axes, strict=True):
        for picture, axis in zip(row, places, strict=False):
            draw(figure, axis, picture)
        for unused in places[len(row) :]:
            unused.set_axis_off()
    star = {"marker": "*", "linestyle": "", "markersize": 9, "markeredgecolor": "white"}
    style.legend(figure, [style.line_key("the checkpoint", color=style.VERMILLION, **star)])
    figure.suptitle(heading)
    return figure


def title(picture: Picture) -> str:
    """Checkpoint and plane of a panel."""
    return f"{style.checkpoint_title(picture.table)}: plane {picture.plane['plane']}"


def contours(axis: "Axes", first: np.ndarray, second: np.ndarray, loss: np.ndarray):  # type: ignore[no-untyped-def]
    """Filled contours of a loss on a grid.

    Args:
        axis: Where to draw.
        first: Coordinates of the horizontal axis, shape (n,).
        second: Of the vertical one, shape (m,).
        loss: Shape (n, m); NaN is left white.

    Returns:
        What matplotlib's `contourf` returned; None, with a note in the panel, where no loss is finite.
    """
    from matplotlib.colors import LogNorm, Normalize

    axis.grid(visible=False)
    axis.set(xlim=(first[0], first[-1]), ylim=(second[0], second[-1]))
    style.few_ticks(axis)
    if not np.isfinite(loss).any():
        style.note(axis, "no finite loss", "upper left")
        return None
    grid = np.ma.masked_invalid(loss.T)
    low, high = float(grid.min()), float(grid.max())
    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    logarithmic = spans_decades(loss)
    levels = np.geomspace(low, high, _LEVELS) if logarithmic else np.linspace(low, high, _LEVELS)
    levels[0], levels[-1] = low, high  # but for rounding they are
    norm = LogNorm(low, high) if logarithmic else Normalize(low, high)
    filled = axis.contourf(first, second, grid, levels=levels, norm=norm, cmap=style.MAP)
    axis.contour(first, second, grid, levels=levels, colors="white", linewidths=0.4, alpha=0.6)
    return filled


def level_bar(figure: "Figure", axis: "Axes", filled) -> None:  # type: ignore[no-untyped-def]
    """The colour bar of `contours`, with plain numbers."""
    bar = figure.colorbar(filled, ax=axis, label="training loss")
    bar.ax.minorticks_off()
    levels: Sequence[float] = filled.levels[:: max(1, len(filled.levels) // 5)]
    for digits in range(2, 7):
        labels = [style.plain(float(f"{level:.{digits}g}")) for level in levels]
        if len(set(labels)) == len(labels):
            break
    bar.set_ticks(levels, labels=labels)
