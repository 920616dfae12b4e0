"""The loss along the straight line from the start of a run to its end."""

from typing import TYPE_CHECKING

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec
from quadscape.figures.straight_lines import lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables

TITLE = "From start to end in a straight line"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws one panel per run: training and validation loss along the line.

    Args:
        tables: `interpolation` and `interpolation_summary`, one of each per run.

    Returns:
        The figure.
    """
    runs = list(zip(tables["interpolation"], tables["interpolation_summary"], strict=True))
    return lines(runs, TITLE, "No run came to an end.", "α  (0: start of the run, 1: its end)")


SPEC = FigureSpec(
    name="interpolation",
    title=TITLE,
    category="9. Views",
    labels={"measure": "loss on a straight line", "shown": "start to end"},
    caption="""\
Training loss (blue) and validation loss (orange) on the straight line (1 − α)θ\\ :sub:`0` + αθ\\ :sub:`T` from the
initial parameters of a run to its last ones, one panel per run; without weight decay.

The run itself does not take this line. Dotted curves are the straight lines between the end losses, which bend where
the axis is logarithmic: a convex loss stays below its own, and what rises above it is a barrier. The black bracket is
the largest rise on the line, from where the loss was least before to the top; the grid is refined there. Above each
panel it is said whether the loss falls throughout, that is, never rises by more than rounding (64ε times the size of
losses and scores). Between points of the grid nothing is known: a rise that is narrower is not seen. Look for plateaus
near the start, and for a validation loss that rises near the end while the training loss falls.
""",
    tables=("interpolation", "interpolation_summary"),
    draw=draw,
)
