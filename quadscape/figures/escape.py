"""Share of starts that end in the best basin of a planted loss."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.family_looks import ROWS, listed
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Escape from the wells of a planted loss"

_MOST = 4


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws two panels per family: shares with intervals, and where every start ends.

    Args:
        tables: `escape` and `escape_runs`, one of each per family.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    pieces = zip(tables["escape"], tables["escape_runs"], strict=True)
    families = [(table, runs) for table, runs in pieces if len(table)][:_MOST]
    if not families:
        return style.message(TITLE, "No family of runs has a planted loss.")
    heights = [max(1.8, 0.36 * min(len(table), ROWS) + 0.9) for table, _ in families]
    figure = Figure(figsize=(9.6, sum(heights) + 1.1), layout=style.layout())
    grid = figure.subplots(len(families), 2, squeeze=False, height_ratios=heights)
    for (left, right), (table, runs) in zip(grid, families, strict=True):
        table = table.where(np.arange(len(table)) < ROWS)
        _shares(left, table)
        _seeds(right, table, runs)
        left.set_title(f"family {table.attributes['run']}", loc="left")
    handles = [
        style.line_key("ended in the best basin, 95 % (Wilson)", color=style.BLUE, marker="o", linestyle="-"),
        style.line_key("began in it", color=style.BLACK, marker="|", linestyle="", markersize=10, mew=2),
        style.line_key("a start that ends where it began", color=style.GREY, marker=".", linestyle=""),
        style.line_key("a start that ends in another basin", color=style.VERMILLION, marker="^", linestyle=""),
    ]
    style.legend(figure, handles, columns=2)
    figure.suptitle(TITLE)
    return figure


def _shares(axis: "Axes", table: "Table") -> None:
    rows = np.arange(len(table))
    share = table["share"]
    error = np.stack([share - table["share_low"], table["share_high"] - share])
    axis.errorbar(share, rows, xerr=error, fmt="o", color=style.BLUE, capsize=2, markersize=6, zorder=3)
    axis.plot(table["began"] / table["starts"], rows, "|", color=style.BLACK, markersize=13, mew=2, zorder=2)
    for row in rows.tolist():
        lost = f", {table['diverged'][row]} diverged" if table["diverged"][row] else ""
        text = f"{table['ended'][row]} of {table['starts'][row]}{lost}"
        axis.text(1.03, row, text, va="center", fontsize=8.5, transform=axis.get_yaxis_transform())
    listed(axis, table["cell"].tolist())
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("share of starts in the best basin")


def _seeds(axis: "Axes", table: "Table", runs: "Table") -> None:
    for row, cell in enumerate(table["cell"].tolist()):
        own = runs.where((runs["cell"] == cell) & np.isfinite(runs["excess"]))
        height = row + np.linspace(-0.28, 0.28, max(len(own), 2))[: len(own)]
        moved = own["ended"] != own["began"]
        axis.plot(own["excess"][~moved], height[~moved], ".", color=style.GREY, markersize=6)
        axis.plot(own["excess"][moved], height[moved], "^", color=style.VERMILLION, markersize=5)
    if not axis.lines or not np.isfinite(runs["excess"]).any():
        axis.plot([0], [np.nan])
        style.note(axis, "every start diverged", "upper right")
    listed(axis, table["cell"].tolist(), labelled=False)
    style.few_ticks(axis)
    axis.set_xlabel("training loss at the end, above the best well")


SPEC = FigureSpec(
    name="escape",
    title=TITLE,
    category="8. Comparisons",
    labels={"measure": "escape", "shown": "share in the best basin"},
    caption="""\
Which starts end in the best basin of a planted loss, whose wells and basins are known exactly.

Left: the share of starts of each setting that end in the best basin, with its 95 % interval (Wilson, over starts); the
bar is the share that began there. Descent without noise ends in the basin in which it began, so that its dot lies on
the bar, unless steps are so long that they leap over a barrier. Starts that diverged end in no basin. Right: the
training loss of every start at its end, above that of the best well, in closed form: columns are the wells, and their
width is the noise that keeps the end from the bottom. A triangle ended in another basin than it began in. Settings
share their starts where they share their seeds.
""",
    tables=("escape", "escape_runs"),
    draw=draw,
)
