"""Quadratic radius, form and growth of every line searched, against the eigenvalue."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec
from quadscape.measures.line_search.declaration import PARAMETERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Quadratic radius, form and growth against eigenvalue"
FORMS = tuple(PARAMETERS)


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws radius, form and growth against |λ| for every checkpoint, one below the other.

    Args:
        tables: `line_fit` and `line_forms`, one of each per checkpoint.

    Returns:
        The figure.
    """
    pairs = [pair for pair in zip(tables["line_fit"], tables["line_forms"], strict=True) if len(pair[0])]
    if not pairs:
        return style.message(TITLE, "There is no checkpoint.")
    figure, axes = style.panels(len(pairs), stacked=3, heights=(2.8, 1.5, 1.7), width=3.2)
    columns = style.even_columns(len(pairs), 4)
    for (table, forms), (above, middle, below) in zip(pairs, axes.T, strict=True):
        rows = ~table["is_zero"] if not table["is_zero"].all() else np.ones(len(table), dtype=bool)
        known = table.where(rows)
        _radii(above, known)
        _forms(middle, forms.where(rows))
        _growth(below, forms.where(rows))
        ratio = known["curvature_ratio"][np.isfinite(known["curvature_ratio"])]
        median = f"\nf″(0)/λ: median {np.median(ratio):.3g}" if len(ratio) else ""
        above.set_title(f"{style.checkpoint_title(table)}{median}")
        for axis in (above, middle):
            axis.tick_params(labelbottom=False)
    _share(axes)
    style.outer_labels(axes[0], columns, "", "radius  (parameter units)")
    style.outer_labels(axes[1], columns, "", "best form")
    style.outer_labels(axes[2], columns, "|λ|  (loss / parameter²)", "exponent p beyond")
    for place, axis in enumerate(axes[1]):
        if place % columns:
            axis.tick_params(labelleft=False)
    keys = [
        style.line_key(label, color=colour, marker=marker, linestyle="", markersize=5)
        for label, colour, marker, _ in style.SIGNS.values()
    ]
    keys.append(
        style.line_key(
            "radius at t < 0; form that misses by > 1 %",
            color=style.BLACK,
            marker="o",
            markerfacecolor="white",
            linestyle="",
        )
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
        rows = table.where((table["sign"] == sign) & np.isin(table["best_form"], FORMS) & (table["eigenvalue"] != 0))
        place = np.array([FORMS.index(form) for form in rows["best_form"]], dtype=float)
        for accepted, face in ((True, colour), (False, "white")):
            some = (rows["form"] != "none") == accepted
            # The two signs lie beside each other, not on top.
            axis.plot(
                np.abs(rows["eigenvalue"])[some],
                place[some] - 0.15 * sign,
                linestyle="",
                color=colour,
                marker=marker,
                markersize=4,
                markerfacecolor=face,
            )
    axis.set_yticks(range(len(FORMS)), FORMS)
    axis.set_ylim(len(FORMS) - 0.5, -0.5)
    axis.set_xscale("log")


def _growth(axis: "Axes", table: "Table") -> None:
    axis.axhline(2, color=style.GREY, linestyle="--", linewidth=1)
    for sign, (_, colour, marker, _) in style.SIGNS.items():
        rows = table.where((table["sign"] == sign) & np.isfinite(table["growth"]) & (table["eigenvalue"] != 0))
        spread = np.abs(np.stack([rows["growth_low"], rows["growth_high"]]) - rows["growth"])
        axis.errorbar(
            np.abs(rows["eigenvalue"]),
            rows["growth"],
            yerr=spread,
            color=colour,
            linestyle="",
            marker=marker,
            markersize=4,
            elinewidth=0.8,
        )
    if not np.isfinite(table["growth"]).any():
        style.note(axis, "no line goes far enough beyond", "upper left")
    axis.set_xscale("log")


def _share(axes: np.ndarray) -> None:
    left = min(axis.get_xlim()[0] for axis in axes.ravel())
    right = max(axis.get_xlim()[1] for axis in axes.ravel())
    for axis in axes.ravel():
        axis.set_xlim(left, right)
    for row, factor, room in ((axes[0], 1.5, 0.0), (axes[2], 1.0, 0.2)):
        low, high = min(a.get_ylim()[0] for a in row), max(a.get_ylim()[1] for a in row)
        for axis in row:
            axis.set_ylim(low / factor - room, high * factor + room)


SPEC = FigureSpec(
    name="quadratic_radius",
    title=TITLE,
    category="3. How quadratic",
    labels={"measure": "radius, form and growth", "shown": "per checkpoint"},
    caption="""\
Above: the quadratic radius of each line searched, the smallest \\|t\\| at which the loss departs from slope and
curvature at the centre by a tenth of ½\\|λ\\|t², against \\|λ\\|. Filled markers: t > 0, open: t < 0, drawn
slightly to the left (the sign of an eigenvector is a convention). Error bars span the neighbouring points of the
grid. An arrow up is a lower bound: the line (its end is dotted) never departed that far. An arrow down is an upper
bound: the departure came before it could be told from rounding. Directions within the numerical zero are left out.

Middle: the simplest form that describes each line to 1 % (filled), or where none of those tried does the one that
misses it least (open). Below: the exponent p of \\|ΔL\\| ∝ \\|t\\|ᵖ beyond the radius, of the part that is even in t;
bars reach over the exponents of the inner and the outer half of the points. At 2 (dashed) growth goes on as that of
some quadratic; below it is slower, sub-quadratic. The title gives the median of f″(0)/λ, curvature from losses over
eigenvalue, which is 1 where Hessian, solver and line agree.
""",
    tables=("line_fit", "line_forms"),
    draw=draw,
)
