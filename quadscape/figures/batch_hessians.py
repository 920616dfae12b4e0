"""The largest eigenvalues of batches' Hessians against the batch size."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Hessians of batches"
_LOOKS = ((style.BLUE, "o", "-"), (style.ORANGE, "^", "--"), (style.GREEN, "s", "-."))
"""Colour, marker and dash of the first eigenvalues."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws the first eigenvalues of batches (above), and where their eigenvectors lie (below), for every checkpoint.

    Args:
        tables: `batch_broadening`, one per checkpoint.

    Returns:
        The figure.
    """
    found = [table for table in tables["batch_broadening"] if np.isfinite(table["eigenvalue"]).any()]
    if not found:
        return style.message(TITLE, "There is no checkpoint.")
    figure, axes = style.panels(len(found), stacked=2, heights=(2.8, 2.0), width=3.2)
    columns = style.even_columns(len(found), 4)
    places = min(len(_LOOKS), max(int(table["place"].max()) for table in found))
    for table, (above, below) in zip(found, axes.T, strict=True):
        for place, (colour, marker, dash) in enumerate(_LOOKS[:places], start=1):
            # Around the size itself, so that they do not lie on top of each other.
            aside = 1.06 ** (place - (places + 1) / 2)
            rows = table.where((table["place"] == place) & np.isfinite(table["eigenvalue"]))
            if not len(rows):
                continue
            above.axhline(rows["full"][0], color=colour, linestyle=":", linewidth=1.2)
            _means(above, rows, "eigenvalue", look=(colour, marker, dash, aside))
            above.plot(
                rows["batch_size"] * aside,
                rows["curvature"],
                color=colour,
                marker=marker,
                markersize=4,
                linestyle="",
                markerfacecolor="white",
            )
            _means(below, rows, "captured", look=(colour, marker, dash, aside))
        below.axhline(places / float(table.attributes["P"]), color=style.GREY, linestyle="--", linewidth=1)
        for axis in (above, below):
            axis.set_xscale("log")
            sizes = np.unique(table["batch_size"])
            axis.set_xticks(sizes, [style.thousands(size) for size in sizes])
            axis.minorticks_off()
        above.set(ylim=(min(0.0, above.get_ylim()[0]), None), title=style.checkpoint_title(table))
        below.set_ylim(-0.03, 1.03)
    style.outer_labels(axes[0], columns, "", "eigenvalue  (loss / parameter²)")
    style.outer_labels(axes[1], columns, "batch size B", f"share in the first {places}" if places > 1 else "cos²")
    keys = [
        style.line_key(f"eigenvalue {place}", color=colour, marker=marker, linestyle=dash, markersize=5)
        for place, (colour, marker, dash) in enumerate(_LOOKS[:places], start=1)
    ]
    keys += [
        style.line_key("of all examples", color=style.BLACK, linestyle=":"),
        style.line_key(
            "curvature of all examples along the batch's eigenvector",
            color=style.BLACK,
            marker="o",
            markerfacecolor="white",
            linestyle="",
            markersize=5,
        ),
        style.line_key("by chance", color=style.GREY, linestyle="--"),
    ]
    style.legend(figure, keys, columns=3)
    figure.suptitle(TITLE)
    return figure


def _means(axis: "Axes", rows: "Table", name: str, *, look: tuple[str, str, str, float]) -> None:
    colour, marker, dash, aside = look
    error = np.abs(np.stack([rows[f"{name}_low"], rows[f"{name}_high"]]) - rows[name])
    axis.errorbar(
        rows["batch_size"] * aside,
        rows[name],
        yerr=np.nan_to_num(error),
        color=colour,
        marker=marker,
        linestyle=dash,
        markersize=4.5,
        elinewidth=0.9,
        linewidth=1.2,
    )


SPEC = FigureSpec(
    name="batch_hessians",
    title=TITLE,
    category="4. Noise",
    labels={"measure": "Hessians of batches", "shown": "per checkpoint"},
    caption="""\
Above: the largest eigenvalues of the Hessian of a batch of B examples, mean over batches with its 95 % interval
(Student's t), beside those of all examples (dotted). The largest eigenvalue of a mean of few matrices exceeds that of a
mean of many. Open markers: the curvature that all examples have along the same eigenvectors, which cannot exceed the
dotted line of the first; what lies between open and filled markers belongs to the batch alone.

Below: the share of the squared norm of a batch's eigenvector within as many first eigenvectors of all examples, with
what chance gives (dashed). Near 1 batches see the same directions of large curvature as all examples.
""",
    tables=("batch_broadening",),
    draw=draw,
)
