"""Scores of ruggedness, one panel each."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec
from quadscape.measures.ruggedness.declaration import SCORES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "How rugged is the loss?"
MOST = 8
_COLUMNS = 4

_SHOWN = {
    "largest": "largest eigenvalue",
    "spread": "spread of the eigenvalues",
    "negative_mass": "share of negative curvature",
    "mass_ratio": "curvature quantiles' ratio",
    "worst_rise_filter": "worst rise, by filters",
    "mean_rise_filter": "mean rise, by filters",
    "flat_width": "flat width",
    "gradient_variance": "variance of slopes",
    "excess_variation": "variation over one well's",
    "cosine": "cosine of batch gradients",
    "noise_scale_decayed": "gradient noise scale",
    "limit": "learning-rate limit",
}
"""Scores that are drawn, with titles."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws small multiples: one panel per score, one point per checkpoint.

    Args:
        tables: `ruggedness`, one per checkpoint.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    shown = [table for table in tables["ruggedness"] if len(table)][:MOST]
    if not shown:
        return style.message(TITLE, "No checkpoint was measured.")
    names = [f"{table.attributes['run']} {style.thousands(table.attributes['iteration'])}" for table in shown]
    rows = -(-len(_SHOWN) // _COLUMNS)
    figure = Figure(figsize=(11.2, 2.05 * rows + 1.5), layout=style.layout())
    axes = figure.subplots(rows, _COLUMNS, sharex=True)
    for axis, (score, title) in zip(axes.ravel(), _SHOWN.items(), strict=True):
        _panel(axis, shown, score)
        axis.set_title(f"{'▼' if SCORES[score].rugged < 0 else '▲'} {title}", loc="left")
        axis.set_xticks(range(len(shown)), names, rotation=35, ha="right", rotation_mode="anchor")
        axis.set_xlim(-0.6, len(shown) - 0.4)
        axis.grid(visible=False, axis="x")
    for axis in axes[-1]:
        axis.set_xlabel("run and iteration")
    handles = [
        style.line_key("value, 95 % interval", color=style.BLUE, marker="o"),
        style.line_key("below its own error", color=style.BLUE, marker="o", linestyle="", markerfacecolor="white"),
        style.line_key("larger, or ▼ smaller, is more rugged", color="none", marker="^", markerfacecolor=style.BLACK),
    ]
    style.legend(figure, handles)
    figure.suptitle(TITLE)
    return figure


def _panel(axis: "Axes", shown: "list[Table]", score: str) -> None:
    rows = [table.where(table["score"] == score) for table in shown]
    value, low, high = (
        np.array([float(row[name][0]) for row in rows]) for name in ("value", "value_low", "value_high")
    )
    finite = np.isfinite(value)
    unit = str(rows[0]["unit"][0])
    axis.set_ylabel("ratio" if unit == "1" else unit, fontsize=8.5)
    if not finite.any():
        style.note(axis, "no value", "upper left")
        return
    positive = bool((value[finite] > 0).all())
    logarithmic = positive and value[finite].max() > 4 * value[finite].min()
    if logarithmic:
        axis.set_yscale("log")
    for place in np.flatnonzero(finite):
        ranked = bool(rows[place]["ranked"][0])
        # An end that is infinite or not known leaves the bar without that half.
        ends = [end if np.isfinite(end) else value[place] for end in (low[place], high[place])]
        if logarithmic:
            ends[0] = max(ends[0], 0.2 * float(value[finite].min()))
        axis.plot([place, place], ends, color=style.BLUE, linewidth=1.4)
        if not np.isfinite(high[place]):
            axis.plot([place], [value[place]], marker=10, color=style.BLUE, markersize=10, linestyle="", clip_on=False)
        face = style.BLUE if ranked else "white"
        axis.plot([place], [value[place]], "o", color=style.BLUE, markerfacecolor=face, markersize=5.5)
    axis.margins(y=0.15)
    if logarithmic:
        style.plain_log(axis)
    elif not positive:
        axis.axhline(0, color=style.GREY, linewidth=0.8)


SPEC = FigureSpec(
    name="ruggedness",
    title=TITLE,
    category="3. How quadratic",
    labels={"measure": "scores of ruggedness", "shown": "checkpoints"},
    caption="""\
Scores of the training loss around each checkpoint, one panel per score; docs/ruggedness.md defines them. Bars are 95 %
intervals over what is random in a score: lines, displacements or batches (scores of the spectrum are exact, and have
none; the worst rise is a lower bound, and the limit lies between two rates that were tried). An arrow up marks a value
whose upper end is open.

There is no single number for ruggedness: a triangle before a title says whether a larger (▲) or a smaller (▼) value is
commonly read as more rugged, and the panels need not agree. Lengths of random lines, and rises "by filters", are
relative to the size of each filter of the network, so that rescaling its layers changes nothing; eigenvalues, noise
scales and the limit depend on the scale of the weights, and differ between networks for that reason alone. Hollow
points are no longer than their own error, and should not be compared. One checkpoint of one run is no evidence of how
runs differ.
""",
    tables=("ruggedness",),
    draw=draw,
)
