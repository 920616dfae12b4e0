"""The loss on planes through checkpoints, as contours, with the curvature that each picture suggests."""

from typing import TYPE_CHECKING

from quadscape.figures import style
from quadscape.figures.planes import Picture, contours, level_bar, panels, title
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables

TITLE = "The loss on planes through checkpoints"


def suggested(picture: Picture) -> str:
    """Curvatures that a picture suggests beside those of the Hessian, in words."""
    plane, sharpness = picture.plane, picture.table.attributes["sharpness"]
    found = [style.power(float(plane[f"suggested_{which}"])) for which in ("largest", "smallest")]
    there = [style.power(float(plane[f"measured_{which}"])) for which in ("largest", "smallest")]
    least = style.power(float(picture.table.attributes["smallest_eigenvalue"]))
    text = f"curvature {found[1]} to {found[0]} by the picture,\n{there[1]} to {there[0]} by the Hessian in the plane"
    return f"{text};\n{least} to {style.power(float(sharpness))} in all directions"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws contours, one row per checkpoint and one column per plane.

    Args:
        tables: `surface` and `surface_planes`, one of each per checkpoint.

    Returns:
        The figure.
    """
    return panels(tables, TITLE, 3.75, _contours)


def _contours(figure: "Figure", axis: "Axes", picture: Picture) -> None:
    filled = contours(axis, picture.a, picture.b, picture.loss)
    if filled is not None:
        level_bar(figure, axis, filled)
    axis.plot(0, 0, "*", color=style.VERMILLION, markeredgecolor="white", markersize=12)
    axis.set(xlabel=picture.label(0), ylabel=picture.label(1))
    axis.set_title(f"{title(picture)}\n{suggested(picture)}", fontsize=9, loc="left")


SPEC = FigureSpec(
    name="surface",
    title=TITLE,
    category="9. Views",
    labels={"measure": "loss on planes, contours", "shown": "per checkpoint"},
    caption="""\
The training loss on planes through checkpoints (star), one row per checkpoint and one column per plane, at most eight
panels; each panel has its own colours, logarithmic where the loss spans more than a decade. White: not finite.

*random*: two random directions whose filters are as long as those of the network, so that rescaling its layers
leaves the picture as it is; *extreme*: the eigenvectors of the largest and of the smallest eigenvalue; *i:j*: those
of the ranks i and j. Above each panel stand the smallest and the largest curvature in the plane, per squared length:
first what the picture suggests, by a quadratic fitted to its points near the middle, then that of the Hessian in
this plane, then the ends of the whole spectrum. A random plane sees a weighted mean of all eigenvalues: how sharp
it looks, and whether it shows a minimum or a saddle, says little about the loss in other directions. The scales of
the axes differ.
""",
    tables=("surface", "surface_planes"),
    draw=draw,
)
