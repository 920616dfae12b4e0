"""The loss along random filter-normalised lines, and the learning-rate range test."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Random lines through a checkpoint, and where gradient descent becomes unstable"
MOST = 4
_TESTS = {
    "constant": ("four steps at one rate", style.BLUE, "o", "-"),
    "ramp": ("one step of a rising rate", style.ORANGE, "^", "--"),
}


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws two panels per checkpoint, one above the other.

    Args:
        tables: `ruggedness_lines` and `ruggedness_growth`, one of each per checkpoint.

    Returns:
        The figure.
    """
    pieces = zip(tables["ruggedness_lines"], tables["ruggedness_growth"], strict=True)
    shown = [(lines, growth) for lines, growth in pieces if len(lines)][:MOST]
    if not shown:
        return style.message(TITLE, "No checkpoint was measured.")
    figure, axes = style.panels(len(shown), stacked=2, heights=(2.5, 2.5))
    for (lines, growth), (upper, lower) in zip(shown, axes.T, strict=True):
        _lines(upper, lines)
        _growth(lower, growth)
        upper.set_title(style.checkpoint_title(lines), loc="left")
    axes[0][0].set_ylabel("loss above the centre")
    axes[1][0].set_ylabel("growth in a step")
    handles = [
        style.line_key("random line", color=style.BLUE, linewidth=0.9),
        style.line_key("mean of the lines", color=style.BLACK),
        *(style.line_key(label, color=c, marker=m, linestyle=d) for label, c, m, d in _TESTS.values()),
        style.line_key("|1 − η(λ₁ + δ)|, the quadratic's", color=style.GREY, linestyle=":"),
    ]
    style.legend(figure, handles, columns=3)
    figure.suptitle(TITLE)
    return figure


def _lines(axis: "Axes", table: "Table") -> None:
    numbers = np.unique(table["line"])
    t = np.unique(table["t"])
    rises = np.where(np.isfinite(table["rise"]), table["rise"], np.nan).reshape(len(numbers), len(t))
    for rise in rises:
        axis.plot(t, rise, color=style.BLUE, linewidth=0.8, alpha=0.7)
    axis.plot(t, rises.mean(axis=0), color=style.BLACK)
    if not np.isfinite(rises).any():
        style.note(axis, "no finite loss", "upper left")
    axis.axhline(0, color=style.GREY, linewidth=0.8)
    style.few_ticks(axis, 4)
    axis.set_xlabel("t  (lengths of each filter)")


def _growth(axis: "Axes", table: "Table") -> None:
    axis.set_xlabel("learning rate η, in units of 2/(λ₁ + δ)")
    if not len(table):
        style.note(axis, "no upward curvature, no limit", "upper left")
        return
    for test, (_, colour, marker, dash) in _TESTS.items():
        own = table.where(table["test"] == test)
        growth = np.where(np.isfinite(own["growth"]), own["growth"], np.nan)
        axis.plot(own["scaled"], growth, color=colour, marker=marker, linestyle=dash, markersize=3.5, linewidth=1.1)
    scaled = np.geomspace(0.1, 10, 400)
    axis.plot(scaled, np.abs(1 - 2 * scaled), color=style.GREY, linestyle=":", linewidth=1.2)
    axis.axhline(1, color=style.BLACK, linewidth=0.8)
    axis.set(xscale="log", yscale="log", xlim=(0.09, 11), ylim=(0.05, 30))
    style.plain_log(axis)
    axis.set_xticks([0.1, 1, 10], ["0.1", "1", "10"])


SPEC = FigureSpec(
    name="random_lines",
    title=TITLE,
    category="3. How quadratic",
    labels={"measure": "random lines, range test", "shown": "checkpoints"},
    caption="""\
Above: the training loss on straight lines through a checkpoint in random directions (blue) and their mean (black). Each
filter of a direction is as long as that filter of the network, so that t = 1 changes every filter by its own length.
A rugged landscape would show several wells; one well, however steep, is no ruggedness in this sense.

Below: full-batch gradient descent at rates from 0.3 to 4.8 times 2/(λ₁ + δ), four steps each (circles): the
factor by which a small displacement along the top eigenvector q₁ grows in a step. Where it passes 1 the rate becomes
unstable; on a quadratic this is at 1 (dotted). Triangles: a single run whose rate rises by a fifth with every step, and
the same factor at each. Where either leaves the dotted line, descent has come to places of other curvature.
""",
    tables=("ruggedness_lines", "ruggedness_growth"),
    draw=draw,
)
