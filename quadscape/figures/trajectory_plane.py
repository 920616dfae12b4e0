"""The path of a run on the plane of its principal components, with the loss on that plane."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.planes import contours, level_bar
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "The path in the plane of its principal components"
MOST = 8


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws a row of three panels per run: loss and path on the plane, distance from it, explained variance.

    Args:
        tables: `path_components`, `path_points` and `path_plane`, one of each per run.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    names = ("path_components", "path_points", "path_plane")
    runs = [run for run in zip(*(tables[name] for name in names), strict=True) if len(run[1])][:MOST]
    if not runs:
        return style.message(TITLE, "No run came to an end.")
    figure = Figure(figsize=(11.4, 3.3 * len(runs) + 1.0), layout=style.layout())
    axes = figure.subplots(len(runs), 3, squeeze=False, width_ratios=(1.35, 1, 1))
    for (components, points, plane), (left, middle, right) in zip(runs, axes, strict=True):
        filled = _plane(left, points, plane)
        if filled is not None:
            level_bar(figure, left, filled)
        _distance(middle, points)
        _shares(right, components)
        left.set_title(f"run {points.attributes['run']}", loc="left")
    keys = [
        style.line_key("path", color=style.VERMILLION, marker=".", markersize=4),
        style.line_key("start", color=style.VERMILLION, marker="o", linestyle="", markerfacecolor="white"),
        style.line_key("end", color=style.VERMILLION, marker="*", linestyle="", markersize=9),
        style.line_key("distance from the plane", color=style.BLUE),
        style.line_key("distance from the mean iterate", color=style.GREY, linestyle="--"),
        style.line_key("share of the path's variance", color=style.BLUE, marker="o", linestyle=""),
        style.line_key("random walk of equal length", color=style.BLACK),
        style.patch_key("95 % of such walks", color=style.PALE),
    ]
    style.legend(figure, keys)
    figure.suptitle(TITLE)
    return figure


def _plane(axis: "Axes", points: "Table", plane: "Table"):  # type: ignore[no-untyped-def]
    filled = None
    if len(plane):
        first, second = np.unique(plane["pc1"]), np.unique(plane["pc2"])
        filled = contours(axis, first, second, plane["loss"].reshape(len(first), len(second)))
    else:
        style.note(axis, "fewer than two components: no plane", "upper left")
    axis.plot(points["pc1"], points["pc2"], color=style.VERMILLION, linewidth=1.1, marker=".", markersize=2.5)
    axis.plot(points["pc1"][:1], points["pc2"][:1], "o", color=style.VERMILLION, markerfacecolor="white", markersize=6)
    axis.plot(
        points["pc1"][-1:], points["pc2"][-1:], "*", color=style.VERMILLION, markeredgecolor="white", markersize=12
    )
    axis.grid(visible=False)
    style.few_ticks(axis)
    axis.set(xlabel="first component  (parameter)", ylabel="second component  (parameter)")
    return filled


def _distance(axis: "Axes", points: "Table") -> None:
    axis.plot(points["iteration"], points["radius"], color=style.GREY, linestyle="--")
    axis.plot(points["iteration"], points["distance"], color=style.BLUE)
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_formatter(lambda value, _: style.thousands(value))
    style.few_ticks(axis, 4)
    axis.set(xlabel="iteration (steps taken)", ylabel="distance  (parameter)")


def _shares(axis: "Axes", components: "Table") -> None:
    k = components["component"]
    axis.fill_between(k, components["walk_low"], components["walk_high"], color=style.PALE, linewidth=0)
    axis.plot(k, components["walk"], color=style.BLACK, linewidth=1.1)
    axis.plot(k, components["share"], "o", color=style.BLUE, markersize=4.5)
    if len(k):
        axis.set(xscale="log", yscale="log", xlim=(0.85, max(2.0, 1.15 * float(k.max()))))
        style.plain_log(axis, horizontal=True)
        style.plain_log(axis)
        axis.set_title(f"two components: {100 * float(components['share'][:2].sum()):.3g} %", fontsize=9.5)
    else:
        style.note(axis, "no iterate differs", "upper left")
    axis.set(xlabel="component", ylabel="share of the variance")


SPEC = FigureSpec(
    name="trajectory_plane",
    title=TITLE,
    category="9. Views",
    labels={"measure": "path and loss on its plane", "shown": "per run"},
    caption="""\
Left: the training loss on the plane of the first two principal components of the iterates of a run, through their
mean, and the projection of the path onto the same plane (circle: start, star: end); one row per run.

The path does not lie in this plane, so that the loss under it is that of its projection, not its own: the panel in the
middle shows how far the path is from the plane (blue), beside its distance from the mean iterate (dashed). Only where
blue is far below dashed does the picture say where the run went. Right: the share of the variance that each component
explains (blue), beside that of a random walk of as many points (black: in closed form; grey: 95 % of simulated
walks). A random walk in many dimensions has 61 % of its variance in its first component, 15 % in its second, and draws
the same smooth arcs: large shares alone are no sign of a low-dimensional run. The scales of the axes differ.
The surface can be turned, with the path on it, in `pages/trajectory_plane.html <pages/trajectory_plane.html>`__, which
lies beside the report.
""",
    tables=("path_components", "path_points", "path_plane"),
    draw=draw,
)
