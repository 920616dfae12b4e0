"""The largest eigenvalue through training, with the limits of stability, batch sharpness, loss and learning rate."""

from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Sharpness through training"

_ABOVE = 30.0
"""How far above the curves a limit is still drawn."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws one column of panels per run, which share the axis of iterations.

    Args:
        tables: `sharpness`, one per run.

    Returns:
        The figure.
    """
    runs = [table for table in tables["sharpness"] if len(table)]
    if not runs:
        return style.message(TITLE, "No run was measured.")
    scaled = any(np.isfinite(table["scaled"]).any() for table in runs)
    heights = (3.3, *((1.3,) if scaled else ()), 1.3, 1.1)
    figure, axes = style.panels(len(runs), stacked=len(heights), heights=heights, width=3.6, most=3)
    columns = style.even_columns(len(runs), 3)
    for table, panels in zip(runs, axes.T, strict=True):
        _curvature(panels[0], table)
        without = "\nno stability limit" if table.attributes.get("no_limit") else ""
        panels[0].set_title(f"run {table.attributes['run']}{without}")
        if scaled:
            _line(panels[1], table, "scaled", style.PURPLE, "D")
        _line(panels[-2], table, "loss", style.GREEN, "s")
        panels[-1].step(table["iteration"], table["learning_rate"], color=style.BLACK, linewidth=1.3)
        last = max(1, int(table["iteration"].max()))
        for axis in panels:
            axis.set_xlim(-0.015 * last, 1.02 * last)
            axis.xaxis.set_major_formatter(lambda value, _: style.thousands(value))
            style.few_ticks(axis)
            for drop in _drops(table):
                axis.axvline(drop, color=style.GREY, linestyle=":", linewidth=1.1, zorder=1)
        for axis in panels[:-1]:
            axis.tick_params(labelbottom=False)
        for axis in panels[1:]:
            _logarithmic(axis)
    style.outer_labels(axes[0], columns, "", "curvature (loss / parameter²)")
    if scaled:
        style.outer_labels(axes[1], columns, "", "$λ_1|u|^2$ (loss)")
    style.outer_labels(axes[-2], columns, "", "training loss")
    style.outer_labels(axes[-1], columns, "iteration (steps taken)", "rate η")
    style.legend(figure, _keys(runs), columns=3)
    figure.suptitle(TITLE)
    return figure


def _curvature(axis: "Axes", table: "Table") -> None:
    good = table["state"] == "converged"
    steps, decay = table["iteration"], float(table.attributes["weight_decay"])
    sharp, low, high = (table[f"batch_sharpness{end}"] for end in ("", "_low", "_high"))
    axis.fill_between(steps, _positive(low), _positive(high), color=style.ORANGE, alpha=0.25, linewidth=0)
    axis.plot(steps, _positive(sharp), color=style.ORANGE, marker="^", markersize=3, linewidth=1)
    axis.plot(steps, _positive(table["mean_ratio"]), color=style.ORANGE, linestyle="--", linewidth=0.9)
    largest = np.where(good, table["largest"] + decay, np.nan)
    axis.plot(steps, _positive(largest), color=style.BLUE, marker="o", markersize=3, zorder=4)
    axis.set_yscale("log")
    drawn = np.concatenate([_positive(values) for values in (largest, sharp, low, high, table["mean_ratio"])])
    drawn = drawn[np.isfinite(drawn)]
    axis.step(steps, table["limit"], color=style.BLACK, linewidth=1.2)
    if float(table.attributes.get("momentum", 0) or 0) > 0:
        axis.step(steps, table["noisy_limit"], color=style.BLACK, linewidth=1.2, linestyle="-.")
    if len(drawn):
        bounds = np.concatenate([table[name] for name in ("limit", "noisy_limit")])
        bounds = bounds[np.isfinite(bounds) & (bounds < _ABOVE * drawn.max()) & (bounds > drawn.min() / _ABOVE)]
        reach = np.concatenate([drawn, bounds])
        axis.set_ylim(reach.min() / 1.8, reach.max() * 1.5)
    if not good.all():
        # At the lower edge, whatever the scale.
        place = axis.get_xaxis_transform()
        look: dict[str, Any] = {"color": style.VERMILLION, "markersize": 9, "mew": 1.4}
        axis.plot(steps[~good], np.full(np.count_nonzero(~good), 0.02), "|", transform=place, **look)
    style.plain_log(axis)


def _line(axis: "Axes", table: "Table", name: str, colour: str, marker: str) -> None:
    rows = table.where(table["state"] == "converged") if name == "scaled" else table
    if np.isfinite(rows[name]).any():
        axis.plot(rows["iteration"], rows[name], color=colour, marker=marker, markersize=2.5, linewidth=1.1)
    else:
        style.note(axis, "no scale-invariant weights" if name == "scaled" else "nothing finite", "upper left")
        axis.set_yticks([])


def _positive(values: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can show."""
    return np.where(values > 0, values, np.nan)


def _logarithmic(axis: "Axes") -> None:
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axis.lines[:1]]
    if any((values[np.isfinite(values)] > 0).any() for values in lines):
        axis.set_yscale("log")
        style.plain_log(axis)


def _drops(table: "Table") -> np.ndarray:
    """Where a lower rate begins: the last iterate before it."""
    rates, steps = table["learning_rate"], table["iteration"]
    return steps[:-1][rates[1:] < 0.8 * rates[:-1]]


def _keys(runs: "list[Table]") -> list:
    keys = [
        style.line_key("largest eigenvalue, $λ_1$ + δ", color=style.BLUE, marker="o", markersize=4),
        style.line_key("batch sharpness, 95 %", color=style.ORANGE, marker="^", markersize=4),
        style.line_key("the same, mean of ratios", color=style.ORANGE, linestyle="--", linewidth=0.9),
    ]
    if any(np.isfinite(table["limit"]).any() for table in runs):
        keys.append(style.line_key("stability limit of the rule", color=style.BLACK, linewidth=1.2))
    if any(np.isfinite(t["noisy_limit"]).any() and float(t.attributes.get("momentum", 0) or 0) > 0 for t in runs):
        keys.append(style.line_key("2(1 − μ)/η", color=style.BLACK, linewidth=1.2, linestyle="-."))
    if any((table["state"] != "converged").any() for table in runs):
        keys.append(style.line_key("λ₁ failed, not drawn", color=style.VERMILLION, marker="|", linestyle="", mew=1.4))
    if any(len(_drops(table)) for table in runs):
        keys.append(style.line_key("drop of the learning rate", color=style.GREY, linestyle=":"))
    return keys


SPEC = FigureSpec(
    name="sharpness",
    title=TITLE,
    category="2. Curvature",
    labels={"measure": "largest eigenvalue", "shown": "per run"},
    caption="""\
The largest eigenvalue of the Hessian of the training loss (blue, with the weight decay δ that training adds) against
the number of steps taken, one column per run; below it the same eigenvalue times the squared length of all
scale-invariant weights, the loss over all training examples, and the learning rate.

Black lines are limits at the learning rate of the step that led to each iterate: solid, the largest curvature at which
the rule in use is stable on a quadratic, 2(1 + μ)/η for heavy-ball, 2/η without momentum, 2(1 + μ)/((1 + 2μ)η) for
Nesterov's momentum, none for rules that scale each parameter by itself; dash-dotted, 2(1 − μ)/η, near which the batch
sharpness of small batches has been seen to settle with momentum. Limits more than 30 times beyond the curves are not
shown. Batch sharpness (orange, with its 95 % interval over batches) is the curvature of a batch's loss along that
batch's own gradient, the ratio of the means over batches; the dashed line is the mean of the ratios; what is not
positive is missing. The error of an eigenvalue is its residual, far less than the width of the line; red ticks at the
lower edge mark iterates where it failed (a small gap to the second, a larger negative one, no convergence), which
stay in the table. Where a normalisation makes weights scale-invariant, curvature grows as they shrink: then the
second panel tells growth of the curvature from shrinking of the weights. Compare how close the blue line comes to the
solid one while it still rises, and where orange settles; and whether either follows the limit when the rate drops.
""",
    tables=("sharpness",),
    draw=draw,
)
