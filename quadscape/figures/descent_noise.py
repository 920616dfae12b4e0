"""Noise of steps, memory and gap of the settings of a family."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.family_looks import ROWS, best_cells, can_be_log, listed, spread_places
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Noise, gap and memory of variants of gradient descent"

_MOST = 4
_NOISE = {"gradient_variance": ("gradient", style.BLUE, "o"), "step_variance": ("step", style.VERMILLION, "s")}


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws three panels per family, with a line for each setting.

    Args:
        tables: `descent_members` and `descent_cost`, one of each per family.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    pieces = zip(tables["descent_members"], tables["descent_cost"], strict=True)
    families = [(members, cost) for members, cost in pieces if len(members)][:_MOST]
    if not families:
        return style.message(TITLE, "No family of runs was trained.")
    lists = [_cells(members) for members, _ in families]
    heights = [max(1.6, 0.28 * len(cells) + 0.9) for cells in lists]
    figure = Figure(figsize=(11.0, sum(heights) + 1.2), layout=style.layout())
    grid = figure.subplots(len(families), 3, squeeze=False, height_ratios=heights)
    for panels, (members, cost), cells in zip(grid, families, lists, strict=True):
        _noise(panels[0], members, cells)
        _gap(panels[1], members, cells)
        _memory(panels[2], cost, cells)
        every = len(set(members["cell"].tolist()))
        of = "" if every == len(cells) else f", {len(cells)} of {every} settings"
        panels[0].set_title(f"family {members.attributes['run']}{of}", loc="left")
        for place, axis in enumerate(panels):
            listed(axis, cells, labelled=place == 0)
    handles = [
        style.line_key(f"norm of the {name}, seeds and mean", color=colour, marker=marker, linestyle="")
        for name, colour, marker in _NOISE.values()
    ]
    handles += [
        style.line_key("gap, seeds and mean", color=style.GREEN, marker="D", linestyle=""),
        style.line_key("counted memory", color=style.BLACK, marker="|", linestyle="", markersize=10, mew=2),
        style.line_key("measured memory", color=style.PURPLE, marker="o", linestyle=""),
    ]
    if any((members["diverged_at"] >= 0).any() for members, _ in families):
        handles.append(style.line_key("number of seeds that diverged", color=style.GREY, marker="x", linestyle=""))
    style.legend(figure, handles, columns=3)
    figure.suptitle(TITLE)
    return figure


def _cells(members: "Table") -> list[str]:
    """All settings, or where these are too many each variant at its best rate."""
    every = list(dict.fromkeys(members["cell"].tolist()))
    return every if len(every) <= ROWS else list(best_cells(members).values())[:ROWS]


def _points(axis: "Axes", row: float, values: np.ndarray, colour: str, marker: str) -> None:
    values = values[np.isfinite(values)]
    if len(values):
        places = spread_places(0, len(values)) + row
        axis.plot(values, places, marker, color=colour, markersize=3, alpha=0.6, linestyle="", zorder=2)
        axis.plot([values.mean()], [row], marker, color=colour, markersize=7, mec="white", linestyle="", zorder=3)


def _noise(axis: "Axes", members: "Table", cells: list[str]) -> None:
    drawn = []
    for row, cell in enumerate(cells):
        own = members.where(members["cell"] == cell)
        for (name, (_, colour, marker)), shift in zip(_NOISE.items(), (-0.12, 0.12), strict=True):
            _points(axis, row + shift, own[name], colour, marker)
            drawn.append(own[name])
    _finish(axis, drawn, "relative variance of the norm, last quarter")


def _gap(axis: "Axes", members: "Table", cells: list[str]) -> None:
    drawn = []
    for row, cell in enumerate(cells):
        own = members.where(members["cell"] == cell)
        _points(axis, row, own["gap"], style.GREEN, "D")
        drawn.append(own["gap"])
        lost = int(np.count_nonzero(own["diverged_at"] >= 0))
        if lost:
            place = axis.get_yaxis_transform()
            axis.plot([0.93], [row], "x", color=style.GREY, transform=place, clip_on=False)
            axis.text(0.955, row, f"{lost}", transform=place, va="center", fontsize=8.5, color=style.BLACK)
    gaps = np.abs(np.concatenate(drawn))
    gaps = gaps[np.isfinite(gaps)]
    if len(gaps) and gaps.max() > 50 * np.median(gaps) > 0:
        # One setting that fails must not press all others together.
        axis.set_xscale("symlog", linthresh=2 * float(np.median(gaps)))
    _finish(axis, drawn, "validation − training loss at the end")


def _memory(axis: "Axes", cost: "Table", cells: list[str]) -> None:
    places = {cell: row for row, cell in enumerate(cost["cell"].tolist())}
    drawn = []
    for row, cell in enumerate(cells):
        if cell in places:
            counted, measured = (float(cost[name][places[cell]]) / 1e6 for name in ("counted_bytes", "measured_bytes"))
            axis.plot([counted], [row], "|", color=style.BLACK, markersize=10, mew=2, zorder=3)
            axis.plot([measured], [row], "o", color=style.PURPLE, markersize=6, zorder=2)
            drawn += [np.array([counted, measured])]
    _finish(axis, drawn, "peak memory of a step (MB)")


def _finish(axis: "Axes", drawn: list[np.ndarray], label: str) -> None:
    if axis.get_xscale() == "linear" and drawn and can_be_log(*drawn):
        axis.set_xscale("log")
    if not any(np.isfinite(values).any() for values in drawn):
        axis.plot([0], [np.nan])
        style.note(axis, "nothing finite to show", "upper right")
        axis.set_xticks([])
    else:
        style.few_ticks(axis)
    axis.set_xlabel(label)
    axis.margins(x=0.12)
    style.plain_log(axis, horizontal=True)


SPEC = FigureSpec(
    name="descent_noise",
    title=TITLE,
    category="8. Comparisons",
    labels={"measure": "descent", "shown": "noise, gap and memory"},
    caption="""\
Noise of gradients and steps, generalisation gap, and memory of the settings of a family, one line each.

Left: variance of the norm of the batch gradient, and of the length of a step, over the last quarter of the run, about a
straight line and over its squared mean; 1 means fluctuations as large as the norm itself. Lengths of steps are there
where consecutive iterates were kept. Middle: validation minus training loss at the end; seeds that diverged are counted
beside a cross; where one setting is far off, the axis is logarithmic beyond the others. Small markers are single seeds,
large ones their means. Right: the largest memory that a step takes without the data: counted from parameters, batch
size, activations and the optimizer's vectors (bar), and measured (dot). Where dots lie right of bars, something beyond
the formula is held. Settings are listed in the order of the experiment file; where there are more than 24, each variant
at its best learning rate.
""",
    tables=("descent_members", "descent_cost"),
    draw=draw,
)
