"""The loss along the straight line between the ends of two runs."""

from typing import TYPE_CHECKING

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec
from quadscape.figures.straight_lines import lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables

TITLE = "Between the ends of two runs"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws one panel per pair of runs: training and validation loss along the line.

    Args:
        tables: `connection` and `connection_summary`, one of each per pair.

    Returns:
        The figure.
    """
    pairs = list(zip(tables["connection"], tables["connection_summary"], strict=True))
    return lines(pairs, TITLE, "No two runs are a pair.", "α  (0: end of the first run, 1: of the second)")


SPEC = FigureSpec(
    name="connection",
    title=TITLE,
    category="9. Views",
    labels={"measure": "loss on a straight line", "shown": "between two ends"},
    caption="""\
Training loss (blue) and validation loss (orange) on the straight line from the last parameters of one run to those of
another, one panel per pair; without weight decay. Dashed: the same after the hidden units of the second network are
renumbered to match those of the first by their weights, which leaves its function and the losses at the ends as they
are.

Dotted curves are the straight lines between the end losses, which bend where the axis is logarithmic. What rises above
its own is a barrier; two ends without one are linearly connected. The black bracket is the largest rise on the solid
training or validation line. Runs from different initial parameters are usually separated by a barrier, of which
renumbering may remove a part (of wide networks, as published, nearly all): a barrier alone does not say that two
networks differ as functions. The numbering is the best that a local search found, so that a dashed barrier may
be more than the least. Between points of the grid, which is refined at barriers, nothing is known.
""",
    tables=("connection", "connection_summary"),
    draw=draw,
)
