"""How many examples an eigenvector's curvature belongs to, against the eigenvalue."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec
from quadscape.measures.example_curvature.declaration import FEW

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Many examples a little, or a few a lot?"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws the effective share of examples (above), and what a few of them have (below), for every checkpoint.

    Args:
        tables: `example_curvature`, one per checkpoint.

    Returns:
        The figure.
    """
    found = [table for table in tables["example_curvature"] if (~table["is_zero"]).any()]
    if not found:
        return style.message(TITLE, "There is no checkpoint.")
    figure, axes = style.panels(len(found), stacked=2, heights=(2.5, 2.3), width=3.2, sharex="col", sharey="row")
    columns = style.even_columns(len(found), 4)
    for table, (above, below) in zip(found, axes.T, strict=True):
        rows = table.where(~table["is_zero"])
        for sign, (_, colour, marker, _) in style.SIGNS.items():
            own = rows.where(rows["sign"] == sign)
            _points(above, own, "participation", colour, marker, filled=True)
            _points(above, own, "participation_hessian", colour, marker, filled=False)
            _points(below, own, "few", colour, marker, filled=True)
            _points(below, own, "negative", colour, marker, filled=False)
        above.axhline(1 / float(table.attributes["N"]), color=style.GREY, linestyle="-.", linewidth=1)
        above.axhline(1 / 3, color=style.GREY, linestyle=":", linewidth=1.4)
        below.axhline(FEW, color=style.GREY, linestyle="-.", linewidth=1)
        above.set(xscale="log", yscale="log", ylim=(None, 1.4), title=style.checkpoint_title(table))
        below.set(ylim=(-0.03, 1.03))
        above.tick_params(labelbottom=False)
    style.outer_labels(axes[0], columns, "", "effective share\nof examples")
    style.outer_labels(axes[1], columns, "|λ|  (loss / parameter²)", "share of curvature")
    keys = [
        style.line_key(
            f"{label}: of qᵀGₙq; below: of the largest {FEW:.0%}",
            color=colour,
            marker=marker,
            linestyle="",
            markersize=5,
        )
        for label, colour, marker, _ in style.SIGNS.values()
    ]
    keys += [
        style.line_key(
            "of |qᵀHₙq|; below: of examples with qᵀHₙq < 0",
            color=style.BLACK,
            marker="o",
            markerfacecolor="white",
            linestyle="",
            markersize=5,
        ),
        style.line_key("squares of Gaussian numbers: 1/3", color=style.GREY, linestyle=":"),
        style.line_key(f"one has it all: 1/N; below: all alike, {FEW:.0%}", color=style.GREY, linestyle="-."),
    ]
    style.legend(figure, keys, columns=2)
    figure.suptitle(TITLE)
    return figure


def _points(axis: "Axes", rows: "Table", name: str, colour: str, marker: str, *, filled: bool) -> None:
    face = colour if filled else "white"
    size = np.abs(rows["eigenvalue"])
    axis.plot(
        size,
        rows[name],
        linestyle="",
        color=colour,
        marker=marker,
        markersize=3.6,
        markerfacecolor=face,
        markeredgewidth=0.8,
    )


SPEC = FigureSpec(
    name="example_curvature",
    title=TITLE,
    category="4. Noise",
    labels={"measure": "curvature of examples", "shown": "per checkpoint"},
    caption=f"""\
Along an eigenvector q the curvature is the mean of the examples' own. Above: the effective share of examples that it
belongs to, (Σγ)²/(NΣγ²), against \\|λ\\|; filled: γₙ = qᵀGₙq, the Gauss–Newton part, which is never negative; open:
\\|qᵀHₙq\\| of the whole Hessian. It is 1 if all have the same, 1/3 (dotted) if γ are squares of Gaussian numbers, and
1/N (dash-dotted) if one example has it all.

Below: what the {FEW:.0%} of examples with the largest qᵀGₙq have of qᵀGq (filled), of which they would have {FEW:.0%}
if all were alike; and the share of Σ\\|qᵀHₙq\\| of the examples whose own curvature is negative (open), at 1/2 that of
as many against as for it. Directions within the numerical zero are left out.
""",
    tables=("example_curvature",),
    draw=draw,
)
