"""The way of a run along every eigenvector: settling, spread, frequency."""

from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "The way along each eigenvector"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws settling times (above), spread over what is expected (middle) and frequencies (below), by checkpoint.

    Args:
        tables: `evolution` and `evolution_bands`, one of each per checkpoint, in the same order.

    Returns:
        The figure.
    """
    pairs = zip(tables["evolution"], tables["evolution_bands"], strict=True)
    found = [(table, bands) for table, bands in pairs if (table["curvature"] > 0).any() and len(bands)]
    if not found:
        return style.message(TITLE, "No checkpoint ends a plateau of the learning rate on which SGD has noise.")
    figure, axes = style.panels(len(found), stacked=3, heights=(2.4, 2.4, 2.0), width=3.3, sharex="col")
    columns = style.even_columns(len(found), 4)
    for (table, bands), column in zip(found, axes.T, strict=True):
        positive = table.where(np.isfinite(table["relaxation"]) & (table["curvature"] > 0))
        _settling(column[0], positive)
        _spread(column[1], positive, bands)
        _turning(column[2], positive)
        first, last, rate = (table.attributes[name] for name in ("first", "last", "learning_rate"))
        column[0].set_title(
            f"{table.attributes['run']}, iterations {style.thousands(first)} to {style.thousands(last)}\n"
            f"η = {style.power(rate)}, {table.attributes['sampling']} batches of {table.attributes['batch_size']}"
        )
    style.outer_labels(axes[0], columns, "", "settling time  (steps)")
    style.outer_labels(axes[1], columns, "", "variance / expected")
    style.outer_labels(axes[2], columns, "λ + δ  (loss / parameter²)", "frequency  (rad / step)")
    keys = [
        style.line_key("measured", color=style.BLUE, marker="o", linestyle="", markersize=5),
        style.line_key("no claim: too slow, or not steady", **_dots(5), color=style.GREY, markerfacecolor="white"),
        style.line_key("by the noisy quadratic model", color=style.BLACK),
        style.line_key("had batches been independent", color=style.ORANGE, linestyle="--"),
        style.line_key("length of the window", color=style.GREY, linestyle=":"),
    ]
    style.legend(figure, keys, columns=3)
    figure.suptitle(TITLE)
    return figure


def _dots(size: float) -> dict[str, Any]:
    return {"marker": "o", "linestyle": "", "markersize": size}


def _settling(axis: "Axes", table: "Table") -> None:
    settled = np.isfinite(table["settling"])
    axis.plot(table["curvature"][settled], np.maximum(table["settling"][settled], 1), color=style.BLUE, **_dots(4))
    slow = table["state"] == "not settled"
    length = float(table.attributes["last"] - table.attributes["first"])
    axis.plot(table["curvature"][slow], np.full(slow.sum(), 1.35 * length), color=style.GREY, **_dots(2))
    order = np.argsort(table["curvature"])
    axis.plot(table["curvature"][order], table["relaxation"][order], color=style.BLACK, linewidth=1.2)
    axis.axhline(length, color=style.GREY, linestyle=":", linewidth=1.2)
    axis.set(xscale="log", yscale="log", ylim=(0.8, 3 * length))


def _spread(axis: "Axes", table: "Table", bands: "Table") -> None:
    inside = (table["expected"] > 0) & (np.abs(table["eigenvalue"]) > table.attributes["zero_threshold"])
    axis.plot(
        table["curvature"][inside],
        (table["variance"][inside] / table["expected"][inside]),
        color=style.SKY,
        alpha=0.35,
        zorder=1,
        **_dots(2),
    )
    for told, colour, face in ((True, style.BLUE, style.BLUE), (False, style.GREY, "white")):
        rows = bands.where(bands["told"] == told)
        # On a logarithmic axis an interval that reaches 0 ends below the picture.
        low = np.maximum(rows["ratio_low"], 1e-3 * rows["ratio"])
        error = np.abs(np.stack([low, rows["ratio_high"]]) - rows["ratio"])
        axis.errorbar(
            rows["curvature"],
            rows["ratio"],
            yerr=np.nan_to_num(error),
            color=colour,
            markerfacecolor=face,
            elinewidth=0.9,
            zorder=3,
            **_dots(5),
        )
    axis.axhline(1, color=style.BLACK, linewidth=1.2)
    order = np.argsort(bands["curvature"])
    alone = bands["independent"] / bands["expected"]
    axis.plot(bands["curvature"][order], alone[order], color=style.ORANGE, linestyle="--", linewidth=1.3)
    largest = np.nanmax(np.concatenate([alone, bands["ratio"], [1.0]]))
    smallest = np.nanmin(np.concatenate([bands["ratio"], [1.0]]))
    axis.set(yscale="log", ylim=(smallest / 3, 3 * largest))


def _turning(axis: "Axes", table: "Table") -> None:
    order = np.argsort(table["curvature"])
    axis.plot(table["curvature"][order], table["frequency"][order], color=style.BLACK, linewidth=1.2)
    axis.plot(table["curvature"], table["turns"], color=style.BLUE, **_dots(4))
    known = np.concatenate([table["frequency"], table["turns"], [0.1]])
    axis.set_ylim(-0.03 * np.nanmax(known), 1.05 * np.nanmax(known))


SPEC = FigureSpec(
    name="evolution",
    title=TITLE,
    category="5. Dynamics",
    labels={"measure": "way along eigenvectors", "shown": "per checkpoint"},
    caption="""\
The coordinate of every step of a plateau of constant learning rate along each eigenvector of the checkpoint at its end,
against curvature with weight decay.

Above: when the envelope of the way into the minimum had fallen to one standard deviation. Grey: not within the window
(dotted), which is that of five relaxation times or fewer. Black: one relaxation time τ of the noisy quadratic model.

Middle: variance of the second half about a straight line over what that model expects of the same number, with the
noise that was measured on the plateau; small dots are directions, large ones bands with 95 % intervals over blocks of
time. Filled: windows of ten relaxation times or more, of which claims are made. Open: shorter ones; what holds there
is that neighbouring steps fluctuate as expected. Orange: what the model expects of batches drawn independently.

Below: how fast fluctuations turn, where a direction turns often enough within its relaxation to tell.
""",
    tables=("evolution", "evolution_bands"),
    draw=draw,
)
