"""Norm of the gradient by layer, and its slope with depth, through training."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.family_looks import OTHER, ROWS, Look, keys, listed, looks
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Gradients by layer"

_MOST = 4
_SHOWN = {"initial": "first step", "end": "last tenth of the run"}
_WINDOWS = {
    "initial": ("first step", style.BLACK, "o"),
    "start": ("first tenth", style.BLUE, "s"),
    "middle": ("middle tenth", style.GREEN, "^"),
    "end": ("last tenth", style.VERMILLION, "D"),
}


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws three panels per family: norms by layer at the start and at the end, and slopes by setting.

    Args:
        tables: `layer_norms` and `layer_slopes`, one of each per family.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    pieces = zip(tables["layer_norms"], tables["layer_slopes"], strict=True)
    families = [(norms, slopes) for norms, slopes in pieces if len(norms)]
    if not families:
        return style.message(TITLE, "No family of runs has layers with weights.")
    # What has too few layers for a slope says little, where others have enough.
    deep = [(norms, slopes) for norms, slopes in families if np.isfinite(slopes["slope"]).any()]
    families = (deep or families)[:_MOST]
    names, scores = [], dict[str, float]()
    for _, slopes in families:
        initial = slopes.where(slopes["window"] == "initial")
        names += initial["cell"].tolist()
        scores |= dict(zip(initial["cell"].tolist(), (-np.abs(initial["slope"])).tolist(), strict=True))
    shown = looks(names, scores)
    lists = [list(dict.fromkeys(slopes["cell"].tolist()))[:ROWS] for _, slopes in families]
    heights = [max(3.0, 0.3 * len(cells) + 0.9) for cells in lists]
    figure = Figure(figsize=(12.5, sum(heights) + 1.4), layout=style.layout())
    grid = figure.subplots(len(families), 3, squeeze=False, height_ratios=heights)
    for panels, (norms, slopes), cells in zip(grid, families, lists, strict=True):
        for axis, window in zip(panels, _SHOWN, strict=False):
            _norms(axis, norms.where(norms["window"] == window), shown)
            axis.set_title(_SHOWN[window])
        low = min(axis.get_ylim()[0] for axis in panels[:2])
        high = max(axis.get_ylim()[1] for axis in panels[:2])
        for axis in panels[:2]:
            axis.set_ylim(low, high)
        panels[1].set_xlim(panels[0].get_xlim())
        panels[0].set_ylabel(f"family {norms.attributes['run']}\nlog₁₀ of the gradient's norm")
        _slopes(panels[2], slopes, cells)
    handles = keys(shown, len(set(names)) - len(shown))
    handles += [
        style.line_key(f"slope, {label}", color=colour, marker=marker, linestyle="")
        for label, colour, marker in _WINDOWS.values()
    ]
    handles.append(style.line_key("single seeds", color=style.GREY, linewidth=0.6))
    style.legend(figure, handles, columns=5)
    figure.suptitle(TITLE)
    return figure


def _norms(axis: "Axes", norms: "Table", shown: dict[str, Look]) -> None:
    cells = sorted(dict.fromkeys(norms["cell"].tolist()), key=lambda cell: cell in shown)
    for cell in cells:
        look, own = shown.get(cell, OTHER), norms.where(norms["cell"] == cell)
        runs = np.unique(own["run"])
        for run in runs.tolist():
            rows = own["run"] == run
            axis.plot(
                own["from_loss"][rows], own["log_norm"][rows], color=look.colour, linewidth=0.5, alpha=0.6, zorder=2
            )
        places = np.unique(own["from_loss"])
        parts = [own["log_norm"][(own["from_loss"] == place) & np.isfinite(own["log_norm"])] for place in places]
        mean = np.array([part.mean() if len(part) else np.nan for part in parts])
        axis.plot(
            places,
            mean,
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            markersize=4,
            markevery=max(1, len(places) // 10),
            zorder=3 if cell in shown else 1,
        )
    if not np.isfinite(norms["log_norm"]).any():
        axis.plot([0], [np.nan])
        style.note(axis, "no gradient left: diverged or zero", "upper left")
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlabel("layers with weights from the loss (0: last)")


def _slopes(axis: "Axes", slopes: "Table", cells: list[str]) -> None:
    places = {cell: row for row, cell in enumerate(cells)}
    shifts = np.linspace(-0.24, 0.24, len(_WINDOWS))
    for (window, (_, colour, marker)), shift in zip(_WINDOWS.items(), shifts, strict=True):
        own = slopes.where((slopes["window"] == window) & np.isfinite(slopes["slope"]))
        own = own.where(np.array([cell in places for cell in own["cell"].tolist()], dtype=bool))
        rows = np.array([places[cell] for cell in own["cell"].tolist()], dtype=float) + shift
        error = np.stack([own["slope"] - own["slope_low"], own["slope_high"] - own["slope"]])
        axis.errorbar(
            own["slope"], rows, xerr=error, fmt=marker, color=colour, markersize=4.5, capsize=2, elinewidth=0.9
        )
    for row in range(1, len(cells)):
        axis.axhline(row - 0.5, color=style.PALE, linewidth=0.7, zorder=0)
    axis.axvline(0, color=style.GREY, linewidth=0.9)
    if not np.isfinite(slopes["slope"]).any():
        style.note(axis, "too few hidden layers of equal shape", "lower right")
    listed(axis, cells)
    axis.yaxis.tick_right()
    axis.yaxis.set_label_position("right")
    style.few_ticks(axis)
    axis.set_xlabel("log₁₀ per layer towards the input")
    axis.set_title("slope with depth")


SPEC = FigureSpec(
    name="layer_gradients",
    title=TITLE,
    category="1. Training",
    labels={"measure": "gradients by layer", "shown": "per family"},
    caption="""\
How long the gradient of the batch loss is in every layer with weights, counted from the loss, and how fast it shrinks
or grows from layer to layer.

Left and middle: decimal logarithm of the norm at the first step and over the last tenth of the run; thin lines are
single seeds, lines with markers their mean. A straight line means that every layer multiplies the gradient by the same
factor. Right: the slope over the hidden layers of equal shape, first and last layer left out, by setting and part of
the run, with the 95 % interval over seeds (none with one seed): left of zero gradients vanish towards the input, right
of it they explode, and −1 is a factor ten a layer. Families whose networks have too few such layers for a slope are
not shown where others have enough. A remedy works where its marks lie nearer zero. Runs that diverged,
and layers whose gradient is exactly zero, have no marks there. At most eight settings have colours, those of the
steepest slopes at the first step.
""",
    tables=("layer_norms", "layer_slopes"),
    draw=draw,
)
