"""Loss, accuracy and learning rate through training."""

from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables

TITLE = "Learning curves"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws one column of panels per run: loss, accuracy, learning rate.

    Args:
        tables: `curves` and `evaluations`, one of each per run.

    Returns:
        The figure.
    """
    runs = list(zip(tables["curves"], tables["evaluations"], strict=True))
    if not runs:
        return style.message(TITLE, "No run was trained.")
    figure, axes = style.panels(len(runs), stacked=3, heights=(2.6, 2.0, 1.3), width=3.4, most=3)
    columns = style.even_columns(len(runs), 3)
    for (curves, evaluations), (above, middle, below) in zip(runs, axes.T, strict=True):
        steps = curves["iteration"]
        above.fill_between(steps, curves["batch_loss_q05"], curves["batch_loss_q95"], color=style.PALE, linewidth=0)
        above.plot(steps, curves["batch_loss"], color=style.BLACK, linewidth=0.7, zorder=4)
        for split, (_, colour, marker, dash) in style.SPLITS.items():
            rows = evaluations.where(evaluations["split"] == split)
            if not len(rows):
                continue
            look = {
                "color": colour,
                "linestyle": dash,
                "marker": marker,
                "markersize": 4,
                "markevery": _sparse(len(rows)),
            }
            above.plot(rows["iteration"], rows["loss"], **look)
            middle.plot(rows["iteration"], rows["accuracy"], **look)
            middle.fill_between(
                rows["iteration"], rows["accuracy_low"], rows["accuracy_high"], color=colour, alpha=0.2, linewidth=0
            )
        below.plot(steps, curves["learning_rate"], color=style.BLACK, linewidth=1.3)
        last = max([1, *steps.tolist(), *evaluations["iteration"].tolist()])
        for axis in (above, middle, below):
            axis.set_xlim(-0.01 * last, 1.02 * last)
            for drop in curves.attributes.get("drops", []):
                axis.axvline(drop, color=style.GREY, linestyle=":", linewidth=1.1, zorder=1)
        for axis in (above, middle):
            axis.tick_params(labelbottom=False)
        below.xaxis.set_major_formatter(lambda value, _: style.thousands(value))
        below.xaxis.set_major_locator(_locator(5))
        for axis in (above, below):
            if any(np.isfinite(line.get_ydata()).any() and np.nanmax(line.get_ydata()) > 0 for line in axis.lines[:2]):
                axis.set_yscale("log")
        style.plain_log(above)
        above.set_title(f"run {curves.attributes['run']}")
    _share_limits(axes[0])
    _share_limits(axes[2])
    _share_limits(axes[1], upper=1.01)
    style.outer_labels(axes[0], columns, "", "loss per example (nats)" if _nats(runs) else "loss per example")
    style.outer_labels(axes[1], columns, "", "accuracy")
    style.outer_labels(axes[2], columns, "iteration (steps taken)", "learning rate η")
    keys = [
        style.line_key(f"{label}, whole split", color=colour, marker=marker, linestyle=dash, markersize=4)
        for label, colour, marker, dash in style.SPLITS.values()
    ]
    keys.append(style.line_key("batch loss, running mean", color=style.BLACK, linewidth=0.7))
    keys.append(style.patch_key("batch losses, 5–95 %", color=style.PALE))
    if any(curves.attributes.get("drops") for curves, _ in runs):
        keys.append(style.line_key("drop of the learning rate", color=style.GREY, linestyle=":"))
    style.legend(figure, keys, columns=3)
    figure.suptitle(TITLE)
    return figure


def _nats(runs: list) -> bool:
    return all(curves.attributes.get("loss", "cross_entropy") == "cross_entropy" for curves, _ in runs)


def _sparse(points: int) -> int:
    """Every how many points a marker is drawn, so that markers tell lines apart and do not hide them."""
    return max(1, points // 12)


def _locator(intervals: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(intervals, integer=True)


def _share_limits(axes: np.ndarray, upper: float | None = None) -> None:
    limits = np.array([axis.get_ylim() for axis in axes])
    for axis in axes:
        axis.set_ylim(limits[:, 0].min(), limits[:, 1].max() if upper is None else min(upper, limits[:, 1].max()))


SPEC = FigureSpec(
    name="learning_curves",
    title=TITLE,
    category="1. Training",
    labels={"measure": "loss and accuracy", "shown": "per run"},
    caption="""\
Loss (top), accuracy (middle) and learning rate (bottom) against the number of steps taken, one column per run.

Coloured lines are evaluations over a whole split, without weight decay; the shading around accuracies is the 95 %
interval (Wilson) over the split's examples. The thin black line is the mean of the batch losses in a running window
that never reaches across a drop of the learning rate, and the pale band holds 90 % of the batch losses in it: its
height is the noise of single batches. Dotted verticals mark drops of the learning rate. Look for the fall of the
loss at each drop, and for training and validation drawing apart.
""",
    tables=("curves", "evaluations"),
    draw=draw,
)
