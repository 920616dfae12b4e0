"""Nested line searches in two precisions, and structure functions against the rounding floor."""

from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec
from quadscape.measures.fractal.declaration import DEGREE, FACTOR, LINES, PRECISIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Is the loss fractal at small scales?"
MOST = 2
_ZOOMS = 5
_LOOKS = {"top": (style.BLUE, "o"), "bulk": (style.ORANGE, "^"), "random": (style.GREEN, "s")}
_NAMES = {"top": "top eigenvector", "bulk": "bulk eigenvector", "random": "random direction"}


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws the last checkpoint of each run: a row of zooms for each precision, and below the structure functions.

    Args:
        tables: `fractal`, `fractal_structure` and `fractal_lines`, one of each per checkpoint.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    last: dict[str, Any] = {}
    for piece in zip(*(tables[name] for name in SPEC.tables), strict=True):
        if len(piece[0]):
            run = str(piece[0].attributes["run"])
            last[run] = max(last.get(run, piece), piece, key=lambda one: int(one[0].attributes["iteration"]))
    shown = list(last.values())[:MOST]
    if not shown:
        return style.message(TITLE, "No checkpoint was measured.")
    figure = Figure(figsize=(11.2, 8.2 * len(shown) + 0.9), layout=style.layout())
    grid = figure.add_gridspec(3 * len(shown), 1, height_ratios=[1.0, 1.0, 1.9] * len(shown))
    for block, (windows, structure, points) in enumerate(shown):
        numbers = np.unique(points["window"])
        numbers = numbers[np.unique(np.rint(np.linspace(0, len(numbers) - 1, _ZOOMS)).astype(int))]
        for row, precision in enumerate(PRECISIONS):
            cells = grid[3 * block + row].subgridspec(1, len(numbers))
            axes = [figure.add_subplot(cells[column]) for column in range(len(numbers))]
            _zooms(axes, windows, points, precision, numbers)
            if row == 0:
                axes[0].set_title(f"{style.checkpoint_title(windows)}\n{axes[0].get_title(loc='left')}", loc="left")
        cells = grid[3 * block + 2].subgridspec(1, len(PRECISIONS))
        left = figure.add_subplot(cells[0])
        for axis, precision in zip((left, figure.add_subplot(cells[1], sharey=left)), PRECISIONS, strict=True):
            _structure(axis, windows, structure, precision)
    handles = [
        *(style.line_key(_NAMES[line], color=_LOOKS[line][0], marker=_LOOKS[line][1]) for line in LINES),
        style.line_key("not above the floor", color=style.BLACK, marker="o", markerfacecolor="white", linestyle=""),
        style.line_key("rounding floor, 2σ²", color=style.GREY, linestyle="--"),
        style.line_key("$h^2$, of a differentiable function", color=style.BLACK, linestyle=":"),
    ]
    style.legend(figure, handles, columns=3)
    figure.suptitle(TITLE)
    return figure


def _zooms(
    axes: "list[Axes]", windows: "Table", points: "Table", precision: str, numbers: "np.ndarray[Any, Any]"
) -> None:
    """The loss along the top eigenvector, each panel a zoom into the one on its left."""
    norm = float(windows.attributes["theta_norm"]) or 1.0
    for axis, number in zip(axes, numbers, strict=True):
        own = points.where((points["line"] == LINES[0]) & (points["window"] == number))
        own = own.where(own["precision"] == precision)
        width = float(own["t"].max())
        rise = np.where(np.isfinite(own["rise"]), own["rise"], np.nan)
        axis.plot(own["t"] / width, rise, color=style.BLUE, linewidth=0.9)
        axis.set_title(f"|t| ≤ {style.power(width / norm, 1)} |θ|", loc="left")
        axis.set_xticks([-1, 0, 1])
        axis.set_xlabel("t / half-width")
        axis.ticklabel_format(axis="y", scilimits=(-2, 2))
        if not np.isfinite(rise).any():
            style.note(axis, "no finite loss", "upper left")
    axes[0].set_ylabel(f"loss above the centre\nin {precision}")


def _structure(axis: "Axes", windows: "Table", structure: "Table", precision: str) -> None:
    norm = float(windows.attributes["theta_norm"]) or 1.0
    factor = float(windows.attributes["factor"])
    for line in LINES:
        colour, marker = _LOOKS[line]
        for number in np.unique(structure["window"]):
            own = structure.where((structure["line"] == line) & (structure["window"] == number))
            own = own.where((own["precision"] == precision) & (own["structure"] > 0))
            if not len(own):
                continue
            lag, value, floor = own["lag"] / norm, own["structure"], own["floor"]
            above = value >= factor * floor
            axis.plot(lag, floor, color=style.GREY, linestyle="--", linewidth=0.8)
            axis.plot(lag, value, color=colour, linewidth=0.9)
            axis.fill_between(
                lag,
                np.maximum(own["structure_low"], value / 10),
                own["structure_high"],
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
            axis.plot(lag[above], value[above], marker, color=colour, markersize=3)
            axis.plot(lag[~above], value[~above], marker, color=colour, markersize=3, markerfacecolor="white")
            if own["fitted"].any() and above[own["fitted"]].all():
                fitted = lag[own["fitted"]]
                axis.plot(fitted, 6 * value[0] * (fitted / fitted[0]) ** 2, color=style.BLACK, linestyle=":")
    rough = windows.where((windows["precision"] == precision) & (windows["state"] == "rough"))
    total = int(np.count_nonzero(windows["precision"] == precision))
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title(f"{precision}: {len(rough) or 'none'} of {total} windows rough", loc="left")
    axis.set_xlabel("lag h, in units of |θ|")
    axis.set_ylabel("structure function S₂(h)  (loss²)")


SPEC = FigureSpec(
    name="fractal",
    title=TITLE,
    category="3. How quadratic",
    labels={"measure": "nested line searches", "shown": "last checkpoint of each run"},
    caption=f"""\
Above: the training loss along the top eigenvector through a checkpoint, in nested windows, each a zoom into the one on
its left; the network in float64 in the first row and in float32 in the second. A fractal would look rough in every
window; float32 does so where its rounding is all that is left.

Below: the structure function S₂(h), the mean square of r(t + h) − r(t), where r is what a polynomial of degree {DEGREE}
leaves of each window; bands are 95 % intervals by the jackknife over blocks of a window. A fractal of Hölder exponent
H < 1 would be one straight line of slope 2H through all windows; a differentiable function, with kinks or without, has
slope 2 (dotted) and falls from window to window until rounding is left. Dashed: 2σ², the structure function of rounding
errors alone, measured in each window. Only where all of the shortest lags, up to a 64th of the window, lie {FACTOR:g}
times above it is an exponent read; hollow points do not. Left and right share the vertical axis. Where a window of
float32 is narrower than the resolution of θ, its rounding is a random walk, with a slope of 1: it looks fractal, below
its floor.
""",
    tables=("fractal", "fractal_structure", "fractal_lines"),
    draw=draw,
)
