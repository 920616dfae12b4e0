"""Autocorrelation of gradient noise along training."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables

TITLE = "Does noise remember?"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws the correlation of the noise of two steps against their distance, a panel for each plateau.

    Args:
        tables: `noise_memory`, one per run.

    Returns:
        The figure.
    """
    shown = [
        (table, table.where(table["plateau"] == plateau))
        for table in tables["noise_memory"]
        for plateau in np.unique(table["plateau"])
    ]
    if not shown:
        return style.message(TITLE, "No run has noise on a plateau of its learning rate.")
    figure, axes = style.panels(len(shown), heights=(2.6,), width=3.3, sharey=True)
    columns = style.even_columns(len(shown), 4)
    for (table, rows), axis in zip(shown, axes[0], strict=True):
        error = np.abs(np.stack([rows["correlation_low"], rows["correlation_high"]]) - rows["correlation"])
        axis.errorbar(
            rows["lag"],
            rows["correlation"],
            yerr=error,
            color=style.BLUE,
            marker="o",
            markersize=3.5,
            linestyle="",
            elinewidth=0.8,
        )
        axis.plot(rows["lag"], rows["predicted"], color=style.ORANGE, linewidth=1.5, zorder=3)
        axis.axhline(0, color=style.GREY, linewidth=0.9, linestyle=":")
        first, last = (style.thousands(rows[end][0]) for end in ("first", "last"))
        axis.set_title(
            f"{table.attributes['run']}, iterations {first} to {last}\nη = {style.power(rows['learning_rate'][0])}"
        )
        style.few_ticks(axis)
    style.outer_labels(axes[0], columns, "lag  (iterations)", "correlation of noise")
    keys = [
        style.line_key("measured, 95 %", color=style.BLUE, marker="o", linestyle="", markersize=5),
        style.line_key("by the examples that batches share", color=style.ORANGE),
    ]
    style.legend(figure, keys)
    figure.suptitle(TITLE)
    return figure


SPEC = FigureSpec(
    name="noise_memory",
    title=TITLE,
    category="4. Noise",
    labels={"measure": "autocorrelation of noise", "shown": "per run and plateau"},
    caption="""\
The noise of a step is the gradient of its batch less that of all examples, at the iterate that it met. Drawn is how
noise at two steps is correlated (mean of inner products over mean square, with 95 % intervals that take pairs of steps
as independent), against how many iterations lie between them, at the end of each plateau of the learning rate. The line
is what the examples that the same batches have in common give, if gradients of examples do not change on the way:
about 0 for batches that are drawn independently, negative within an epoch of reshuffled ones, whose batches share none.
""",
    tables=("noise_memory",),
    draw=draw,
)
