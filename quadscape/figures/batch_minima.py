"""How far batches' minima spread along eigenvectors, against the eigenvalue and against the batch size."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec
from quadscape.measures.finite_batch.declaration import GAUSSIAN_CURVATURE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Where single batches see the minimum"
_LOOKS = (
    (style.BLUE, "o"),
    (style.ORANGE, "^"),
    (style.GREEN, "s"),
    (style.VERMILLION, "D"),
    (style.PURPLE, "v"),
    (style.SKY, "P"),
)


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws spread against λ, its ratio to the prediction, and tails, for every checkpoint, one below the other.

    Args:
        tables: `finite_batch`, one per checkpoint.

    Returns:
        The figure.
    """
    found = [table for table in tables["finite_batch"] if len(_shown(table))]
    if not found:
        return style.message(TITLE, "No line of positive curvature was searched.")
    sizes = _sizes([_shown(table) for table in found])
    figure, axes = style.panels(len(found), stacked=3, heights=(2.7, 2.2, 1.8), width=3.2, sharey="row")
    columns = style.even_columns(len(found), 4)
    for table, (above, middle, below) in zip(found, axes.T, strict=True):
        rows = _shown(table)
        decay = float(table.attributes["weight_decay"])
        for size, (colour, marker) in sizes.items():
            own = rows.where(rows["batch_size"] == size)
            own = own.where(np.argsort(own["eigenvalue"]))
            _spread(above, own, decay, colour, marker)
            _ratio(middle, own, colour, marker)
        _tails(below, rows, sizes)
        above.set(xscale="log", yscale="log", title=style.checkpoint_title(table))
        middle.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
        middle.axvline(GAUSSIAN_CURVATURE, color=style.GREY, linestyle=":", linewidth=1.2)
        middle.set(xscale="log", yscale="log")
        style.plain_log(middle)
        below.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
        below.set_xscale("log")
        below.set_xticks(list(sizes), [style.thousands(size) for size in sizes])
        below.minorticks_off()
    style.outer_labels(axes[0], len(found), "λ + δ  (loss / parameter²)", "spread of minima\n(parameter units)")
    style.outer_labels(axes[1], len(found), "relative spread of batches' curvatures", "spread / predicted")
    style.outer_labels(axes[2], columns, "batch size B", "tails / Gaussian")
    for row in axes:
        for place in range(0, len(found), columns):
            row[place].tick_params(labelleft=True)
    keys = [
        style.line_key(f"B = {style.thousands(size)}", color=colour, marker=marker, linestyle="", markersize=5)
        for size, (colour, marker) in sizes.items()
    ]
    keys.append(style.line_key("predicted from single examples", color=style.BLACK, linewidth=1))
    keys.append(
        style.line_key(
            "curvatures differ too much for Gaussian theory",
            color=style.BLACK,
            marker="o",
            markerfacecolor="white",
            linestyle="",
            markersize=5,
        )
    )
    style.legend(figure, keys, columns=4)
    figure.suptitle(TITLE)
    return figure


def _shown(table: "Table") -> "Table":
    """Lines of positive curvature, with weight decay, that are more than rounding."""
    return table.where(table["decayed"] & ~table["is_zero"] & np.isfinite(table["predicted"]))


def _sizes(tables: "list[Table]") -> dict[int, tuple[str, str]]:
    """A look for each batch size; where there are more than looks, sizes evenly spread among them."""
    every = sorted({int(size) for table in tables for size in np.unique(table["batch_size"])})
    places = np.unique(np.linspace(0, len(every) - 1, min(len(every), len(_LOOKS))).round().astype(int))
    return {every[place]: look for place, look in zip(places, _LOOKS, strict=False)}


def _spread(axis: "Axes", rows: "Table", decay: float, colour: str, marker: str) -> None:
    total = rows["eigenvalue"] + decay
    axis.plot(total, rows["predicted"], color=colour, linewidth=1, alpha=0.8)
    for gaussian, face in ((True, colour), (False, "white")):
        some = rows.where((rows["gaussian"] == gaussian) & np.isfinite(rows["spread"]) & (rows["spread"] > 0))
        error = np.abs(np.stack([some["spread_low"], some["spread_high"]]) - some["spread"])
        axis.errorbar(
            some["eigenvalue"] + decay,
            some["spread"],
            yerr=np.nan_to_num(error),
            color=colour,
            marker=marker,
            markerfacecolor=face,
            markersize=3.8,
            linestyle="",
            elinewidth=0.7,
        )


def _ratio(axis: "Axes", rows: "Table", colour: str, marker: str) -> None:
    some = rows.where(np.isfinite(rows["ratio"]) & (rows["ratio"] > 0) & (rows["curvature_spread"] > 0))
    error = np.abs(np.stack([some["ratio_low"], some["ratio_high"]]) - some["ratio"])
    axis.errorbar(
        some["curvature_spread"],
        some["ratio"],
        yerr=np.nan_to_num(error),
        color=colour,
        marker=marker,
        markersize=3.5,
        linestyle="",
        elinewidth=0.6,
    )


def _tails(axis: "Axes", rows: "Table", sizes: dict[int, tuple[str, str]]) -> None:
    """Median and quartiles over lines, for each batch size."""
    for size, (colour, marker) in sizes.items():
        tails = rows["tail"][(rows["batch_size"] == size) & np.isfinite(rows["tail"])]
        if len(tails):
            low, middle, high = np.quantile(tails, [0.25, 0.5, 0.75])
            error = [[middle - low], [high - middle]]
            axis.errorbar([size], [middle], yerr=error, color=colour, marker=marker, markersize=5, elinewidth=1)


SPEC = FigureSpec(
    name="batch_minima",
    title=TITLE,
    category="4. Noise",
    labels={"measure": "minima of batches", "shown": "per checkpoint"},
    caption=f"""\
Above: each batch of B examples has a minimum of its own along an eigenvector; drawn is how far these lie apart
(interquartile range over 1.349, with its 95 % bootstrap interval over batches), against λ + δ, one marker for each line
of positive curvature. The lines are predictions from the slopes and curvatures of single examples: the standard
deviation of a batch's slope at the minimum, over λ + δ. Open markers: the curvatures that batches see differ by more
than {GAUSSIAN_CURVATURE:.0%}, or some minima lie beyond the line searched, and a Gaussian law is not expected.

Middle: spread over prediction, against the relative spread of the curvatures; right of the dotted line theory makes no
claim. Below: the width of the middle 95 % of the minima over that of the middle half, over its value for a Gaussian law
(dashed): median and quartiles over lines. Above 1 the tails are heavy. Batches are drawn without repeats from the
training set, so that at B = N nothing would be spread.
""",
    tables=("finite_batch",),
    draw=draw,
)
