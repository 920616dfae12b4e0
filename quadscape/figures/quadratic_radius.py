"""Quadratic radius and form of every line searched, against the eigenvalue."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Quadratic radius against eigenvalue"
FORMS = ("quadratic", "cubic", "log", "hyperbolic", "quartic", "none")


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws radius (above) and form (below) against |λ| for every checkpoint.

    Args:
        tables: `line_fit`, one per checkpoint.

    Returns:
        The figure.
    """
    fits = [table for table in tables["line_fit"] if len(table)]
    if not fits:
        return style.message(TITLE, "There is no checkpoint.")
    figure, axes = style.panels(len(fits), stacked=2, heights=(2.8, 1.6), width=3.2)
    columns = style.even_columns(len(fits), 4)
    for table, (above, below) in zip(fits, axes.T, strict=True):
        known = table.where(~table["is_zero"])
        if not len(known):
            known = table
        _radii(above, known)
        _forms(below, known)
        ratio = known["curvature_ratio"][np.isfinite(known["curvature_ratio"])]
        median = f"\nf″(0)/λ: median {np.median(ratio):.3g}" if len(ratio) else ""
        above.set_title(f"{style.checkpoint_title(table)}{median}")
        above.tick_params(labelbottom=False)
    _share(axes)
    style.outer_labels(axes[0], columns, "", "radius  (parameter units)")
    style.outer_labels(axes[1], columns, "|λ|  (loss / parameter²)", "simplest form")
    for place, axis in enumerate(axes[1]):
        if place % columns:
            axis.tick_params(labelleft=False)
    keys = [
        style.line_key(label, color=colour, marker=marker, linestyle="", markersize=5)
        for label, colour, marker, _ in style.SIGNS.values()
    ]
    keys.append(
        style.line_key("at t < 0 (filled: t > 0)", color=style.BLACK, marker="o", markerfacecolor="white", linestyle="")
    )
    keys.append(
        style.line_key(
            "lower bound (line ends before)", color=style.BLACK, marker=r"$\uparrow$", linestyle="", markersize=9
        )
    )
    keys.append(
        style.line_key(
            "upper bound (below rounding)", color=style.BLACK, marker=r"$\downarrow$", linestyle="", markersize=9
        )
    )
    keys.append(style.line_key("end of the line searched", color=style.GREY, linestyle=":"))
    style.legend(figure, keys, columns=3)
    figure.suptitle(TITLE)
    return figure


def _radii(axis: "Axes", table: "Table") -> None:
    order = np.argsort(np.abs(table["eigenvalue"]))
    axis.plot(np.abs(table["eigenvalue"])[order], table["reach"][order], color=style.GREY, linestyle=":", zorder=1)
    # The two sides of a line lie beside each other, not on top.
    for sign, (_, colour, marker, _) in style.SIGNS.items():
        for side, offset in (("positive", 1.08), ("negative", 1 / 1.08)):
            rows = table.where(
                (table["sign"] == sign) & np.isfinite(table[f"radius_{side}"]) & (table["eigenvalue"] != 0)
            )
            size, radius = np.abs(rows["eigenvalue"]) * offset, rows[f"radius_{side}"]
            status = rows[f"radius_{side}_status"]
            face = colour if side == "positive" else "white"
            measured = status == "measured"
            spread = np.abs(np.stack([rows[f"radius_{side}_low"], rows[f"radius_{side}_high"]]) - radius)[:, measured]
            axis.errorbar(
                size[measured],
                radius[measured],
                yerr=spread,
                color=colour,
                linestyle="",
                marker=marker,
                markersize=4.5,
                markerfacecolor=face,
                elinewidth=0.8,
                zorder=3,
            )
            for kind, arrow in (("censored", r"$\uparrow$"), ("bounded", r"$\downarrow$")):
                some = status == kind
                axis.plot(size[some], radius[some], linestyle="", color=colour, marker=arrow, markersize=9, zorder=2)
    axis.set(xscale="log", yscale="log")


def _forms(axis: "Axes", table: "Table") -> None:
    for sign, (_, colour, marker, _) in style.SIGNS.items():
        rows = table.where((table["sign"] == sign) & np.isin(table["form"], FORMS) & (table["eigenvalue"] != 0))
        place = np.array([FORMS.index(form) for form in rows["form"]], dtype=float)
        # The two signs lie beside each other, not on top.
        axis.plot(
            np.abs(rows["eigenvalue"]),
            place - 0.15 * sign,
            linestyle="",
            color=colour,
            marker=marker,
            markersize=4,
            alpha=0.8,
        )
    axis.set_yticks(range(len(FORMS)), FORMS)
    axis.set_ylim(len(FORMS) - 0.5, -0.5)
    axis.set_xscale("log")


def _share(axes: np.ndarray) -> None:
    left = min(axis.get_xlim()[0] for axis in axes.ravel())
    right = max(axis.get_xlim()[1] for axis in axes.ravel())
    low, high = min(a.get_ylim()[0] for a in axes[0]), max(a.get_ylim()[1] for a in axes[0])
    for axis in axes.ravel():
        axis.set_xlim(left, right)
    for axis in axes[0]:
        axis.set_ylim(low / 1.5, high * 1.5)


SPEC = FigureSpec(
    name="quadratic_radius",
    title=TITLE,
    category="3. How quadratic",
    labels={"measure": "radius and form", "shown": "per checkpoint"},
    caption="""\
Above: the quadratic radius of each line searched, the smallest \\|t\\| at which the loss departs from slope and
curvature at the centre by a tenth of ½\\|λ\\|t², against \\|λ\\|. Filled markers: t > 0, open: t < 0, drawn
slightly to the left (the sign of an eigenvector is a convention). Error bars span the neighbouring points of the
grid. An arrow up is a lower bound: the line (its end is dotted) never departed that far. An arrow down is an upper
bound: the departure came before it could be told from rounding. Directions within the numerical zero are left out.

Below: the simplest form that describes each line to 1 %; *none* if none of those tried does. The title gives the
median of f″(0)/λ, curvature from losses over eigenvalue, which is 1 where Hessian, solver and line agree.
""",
    tables=("line_fit",),
    draw=draw,
)
