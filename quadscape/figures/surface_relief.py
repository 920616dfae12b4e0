"""The loss on planes through checkpoints, as relief."""

from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.planes import Picture, panels, title
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables

TITLE = "The loss on planes through checkpoints, as relief"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws the panels of the figure `surface` in three dimensions.

    Args:
        tables: `surface` and `surface_planes`, one of each per checkpoint.

    Returns:
        The figure.
    """
    return panels(tables, TITLE, 3.9, _relief, subplot_kw={"projection": "3d"})


def _relief(_: "Figure", axis: Any, picture: Picture) -> None:
    from matplotlib.ticker import MaxNLocator

    logarithmic = picture.logarithmic
    height = np.log10(picture.loss) if logarithmic else picture.loss
    first, second = np.meshgrid(picture.a, picture.b, indexing="ij")
    centre = height[len(picture.a) // 2, len(picture.b) // 2]
    axis.computed_zorder = False
    if np.isfinite(height).any():
        look: dict[str, Any] = {"cmap": style.MAP, "rcount": 60, "ccount": 60, "linewidth": 0.15, "edgecolor": "white"}
        axis.plot_surface(first, second, np.ma.masked_invalid(height), zorder=1, **look)
    axis.plot([0], [0], [centre], "*", color=style.VERMILLION, markeredgecolor="white", markersize=11, zorder=3)
    axis.view_init(elev=32, azim=-58)
    for scale in (axis.xaxis, axis.yaxis, axis.zaxis):
        scale.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        scale.set_major_formatter(lambda value, _: style.plain(value))
        scale.pane.set_facecolor("white")
    if logarithmic:
        axis.zaxis.set_major_formatter(lambda value, _: style.plain(float(f"{10**value:.2g}")))
    axis.set_xlabel(f"a  ({picture.unit})", fontsize=9)
    axis.set_ylabel(f"b  ({picture.unit})", fontsize=9)
    axis.set_zlabel("training loss" + (", log scale" if logarithmic else ""), fontsize=9)
    # Labels belong to the panel, but the layout does not see them.
    axis.set_box_aspect((4, 4, 3), zoom=0.86)
    axis.set_title(title(picture), fontsize=9)


SPEC = FigureSpec(
    name="surface_relief",
    title=TITLE,
    category="9. Views",
    labels={"measure": "loss on planes, relief", "shown": "per checkpoint"},
    caption="""\
The panels of the figure of contours as relief: the training loss on planes through checkpoints (star), one row per
checkpoint and one column per plane, a along its first and b along its second direction; the height is logarithmic where
the loss spans more than a decade, and holes are where it is not finite.

How steep a relief looks depends on the ranges of its axes, which differ from panel to panel; the curvatures stand above
the contours. Every plane of every checkpoint can be turned in `pages/surface.html <pages/surface.html>`__, which lies
beside the report.
""",
    tables=("surface", "surface_planes"),
    draw=draw,
)
