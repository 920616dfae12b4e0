"""Rank correlations of all scores of ruggedness with what training makes of networks."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec
from quadscape.measures.ruggedness_compared.declaration import BUMP, OUTCOMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Do scores of ruggedness rank with how a network trains?"

_LOOKS = ((style.BLUE, "o"), (style.ORANGE, "s"), (style.GREEN, "^"))
"""Of the start and of at most two later iterations."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws one panel per outcome, with a line for every score.

    Args:
        tables: `compared_ranks`, one per family; the first with rows is drawn.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    shown = [table for table in tables["compared_ranks"] if (table["score"] != BUMP).any()]
    if not shown:
        return style.message(TITLE, "No scores of a family of networks were compared.")
    table = shown[0].where(shown[0]["score"] != BUMP)
    scores = list(dict.fromkeys(table["score"].tolist()))
    iterations = sorted(set(table["iteration"].tolist()))[: len(_LOOKS)]
    outcomes = [name for name in OUTCOMES if (table["outcome"] == name).any()]
    figure = Figure(figsize=(11.2, 0.24 * len(scores) + 2.0), layout=style.layout())
    axes = figure.subplots(1, len(outcomes), sharey=True, squeeze=False)[0]
    for axis, outcome in zip(axes, outcomes, strict=True):
        _panel(axis, table.where(table["outcome"] == outcome), scores, iterations)
        family = f" (family {table.attributes['run']}, n = {int(table['networks'].max())})"
        axis.set_title(OUTCOMES[outcome] + (family if outcome == outcomes[0] else ""), loc="left")
        axis.set_xlabel("Spearman's rank correlation")
    axes[0].set_ylim(len(scores) - 0.4, -0.6)
    axes[0].set_yticks(range(len(scores)), scores)
    axes[0].set_ylabel("score of ruggedness")
    handles = []
    for (colour, marker), iteration in zip(_LOOKS, iterations, strict=False):
        when = "at the start" if iteration == 0 else f"at iteration {style.thousands(iteration)}"
        handles.append(style.line_key(f"{when}, 95 % interval", color=colour, marker=marker))
    handles += [
        style.line_key(
            "given depth and normalisation", color=style.GREY, marker="D", markerfacecolor="white", linestyle=""
        ),
        style.patch_key("no more than chance, each by itself", color=style.PALE),
        style.line_key("more than chance among all", color=style.BLACK, marker="*", markersize=9, linestyle=""),
        style.line_key("named beforehand", color=style.VERMILLION, marker="|", markersize=10, mew=2, linestyle=""),
    ]
    style.legend(figure, handles, columns=3)
    figure.suptitle(TITLE)
    return figure


def _panel(axis: "Axes", table: "Table", scores: list[str], iterations: list[int]) -> None:
    half = float(table.attributes["half_width"])
    axis.axvspan(-half, half, color=style.PALE, alpha=0.6, zorder=0)
    axis.axvline(0, color=style.GREY, linewidth=0.8)
    places = {score: place for place, score in enumerate(scores)}
    shifts = np.linspace(-0.2, 0.2, len(iterations)) if len(iterations) > 1 else [0.0]
    for (colour, marker), iteration, shift in zip(_LOOKS, iterations, shifts, strict=False):
        own = table.where(table["iteration"] == iteration)
        for row in np.flatnonzero(np.isfinite(own["correlation"])):
            height = places[str(own["score"][row])] + shift
            ends = [float(own[f"correlation_{end}"][row]) for end in ("low", "high")]
            if np.isfinite(ends).all():
                axis.plot(ends, [height, height], color=colour, linewidth=1.1)
            if own["primary"][row]:
                axis.plot([-1.12], [height], "|", color=style.VERMILLION, markersize=10, mew=2, clip_on=False)
            axis.plot([own["correlation"][row]], [height], marker, color=colour, markersize=4.5)
            if np.isfinite(own["partial"][row]):
                axis.plot([own["partial"][row]], [height], "D", color=colour, mfc="white", markersize=3.5, zorder=3)
            if own["rejected"][row]:
                axis.plot([1.1], [height], "*", color=style.BLACK, markersize=7, clip_on=False)
    axis.set_xlim(-1.18, 1.18)
    axis.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
    axis.tick_params(axis="y", length=0)


SPEC = FigureSpec(
    name="score_ranks",
    title=TITLE,
    category="8. Comparisons",
    labels={"measure": "ruggedness_compared", "shown": "all scores"},
    caption="""\
Spearman's rank correlation over networks of each score of ruggedness with steps to a training loss, final training loss
and the spread of the latter over seeds, one line per score. Filled markers, with 95 % bootstrap intervals over
networks, are plain correlations, one marker for each iteration at which scores were measured; hollow ones what is left
of them given depth and normalisation. Right of zero, a larger score goes with a network that is harder to train.

Within the grey band a single correlation of so many networks is no more than chance. With so many lines some leave it
by chance alone: a star marks those that Benjamini and Hochberg's rule at 10 % keeps, among all but the one that was
named beforehand (vertical tick). Every network was trained at the same fraction of the limit of its own learning rate.
Below 20 networks the picture shows the method and tells nothing.
""",
    tables=("compared_ranks",),
    draw=draw,
)
