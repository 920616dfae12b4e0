"""Which eigenvectors the data determine: the same checkpoint on halves, in another order, on other subsets."""

from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Which eigenvectors do the data determine?"

KINDS = {
    "order": ("same data, summed in another order", style.GREEN, ":", "^"),
    "halves": ("one half of the data against the other", style.BLUE, "-", "o"),
    "subset": ("a subset of the data against all", style.ORANGE, "-.", "D"),
}
"""Label, colour, dash and marker of each kind of comparison."""

CHANGE = ("another checkpoint of the run", style.PURPLE, "--", "s")
"""The same of the change between checkpoints."""

SIDES = ((1, "top", "positive λ"), (-1, "bottom", "negative λ"))


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws row maxima and captured norm against rank for every checkpoint, positive and negative eigenvalues apart.

    Args:
        tables: `identified_maxima` and `identified_dimension`, one of each per checkpoint; `overlap_maxima` of pairs of
            checkpoints, if there are any.

    Returns:
        The figure.
    """
    found = [parts for parts in zip(*(tables[name] for name in SPEC.tables), strict=True) if len(parts[0])]
    shown = [(*parts, side) for parts in found for side in SIDES if (parts[0]["sign"] == side[0]).any()]
    if not shown:
        return style.message(TITLE, "No checkpoint has an eigenbasis on a subset of the data (curvature_on).")
    figure, axes = style.panels(len(shown), stacked=2, heights=(2.9, 2.5), width=3.6)
    columns = style.even_columns(len(shown), 4)
    changes = False
    for (maxima, dimension, (sign, end, word)), (above, below) in zip(shown, axes.T, strict=True):
        bands = maxima.where(maxima["sign"] == sign)
        ends = dimension.where((dimension["end"] == end) & (dimension["halving"] < 0))
        pairs = [pair for pair in tables.get("overlap_maxima", ()) if _is_of(pair, maxima.attributes)]
        pairs = [pair.where(pair["sign_a"] == sign) for pair in pairs]
        changes |= any(len(pair) for pair in pairs)
        _maxima(above, bands, pairs)
        _captured(below, bands)
        for axis, name, corner in ((above, "k_vec", "lower left"), (below, "k_sub", "lower right")):
            _mark(axis, ends, name, corner)
            axis.set(xscale="log", ylim=(0, 1.05))
            axis.axhline(maxima.attributes["enough"], color=style.BLACK, linewidth=0.9)
        above.set_xlim(*_reach(bands))
        below.set_xlim(*above.get_xlim())
        above.set_title(f"{style.checkpoint_title(maxima)}\n{word}")
    style.outer_labels(axes[0], columns, "", "largest |cos|")
    style.outer_labels(axes[1], columns, "rank within the sign", "norm in ranks\nhalf to twice the own")
    style.legend(figure, _keys([parts[0] for parts in shown], changes), columns=3)
    figure.suptitle(TITLE)
    return figure


def _is_of(pair: "Table", head: Any) -> bool:
    return pair.attributes["run"] == head["run"] and head["iteration"] in {
        pair.attributes["iteration_a"],
        pair.attributes["iteration_b"],
    }


def _sorted(bands: "Table", suffix: str = "") -> "Table":
    return bands.where(np.argsort(bands[f"first_rank{suffix}"], kind="stable"))


def _reach(bands: "Table") -> tuple[float, float]:
    """From the first rank to the last that is beyond zero; further only where nothing else would be seen."""
    return 0.8, max(1.25 * float(bands["last_rank"].max()), 3.0)


def _maxima(axis: "Axes", bands: "Table", pairs: "list[Table]") -> None:
    head = bands.attributes
    axis.axhspan(head["chance_maximum_q05"], head["chance_maximum_q95"], color=style.PALE, linewidth=0)
    _, colour, dash, marker = CHANGE
    for pair in pairs:
        own = _sorted(pair, "_a")
        _area(axis, style.middle_rank(own, "_a"), own, (colour, dash, marker))
    for number in np.unique(bands["comparison"])[::-1]:
        own = _sorted(bands.where(bands["comparison"] == number))
        _area(axis, style.middle_rank(own), own, KINDS[str(own["kind"][0])][1:])


def _area(axis: "Axes", middle: np.ndarray, rows: "Table", look: Any) -> None:
    colour, dash, marker = look
    axis.fill_between(middle, rows["lower_quartile"], rows["upper_quartile"], color=colour, alpha=0.13, linewidth=0)
    axis.plot(middle, rows["median"], color=colour, linestyle=dash, marker=marker, markersize=2.6, linewidth=1.3)


def _captured(axis: "Axes", bands: "Table") -> None:
    for number in np.unique(bands["comparison"])[::-1]:
        own = _sorted(bands.where(bands["comparison"] == number))
        _, colour, dash, marker = KINDS[str(own["kind"][0])]
        axis.plot(
            style.middle_rank(own), own["captured_chance"], color=style.GREY, linestyle=(0, (1, 2)), linewidth=1.2
        )
        axis.plot(
            style.middle_rank(own),
            own["captured"],
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=2.6,
            linewidth=1.3,
        )


def _mark(axis: "Axes", ends: "Table", name: str, corner: str) -> None:
    """The rank up to which the halves agree, with its range over halvings."""
    for low, value, high in zip(ends[f"{name}_low"], ends[name], ends[f"{name}_high"], strict=True):
        if high > low:
            axis.axvspan(max(low, 0.8), high, color=style.SKY, alpha=0.25, linewidth=0)
        if value >= 1:
            axis.axvline(value, color=style.SKY, linewidth=1.6)
        letters = name.removeprefix("k_")
        style.note(axis, rf"$k_{{\mathrm{{{letters}}}}}$ = {style.thousands(value)}", corner)


def _keys(shown: "list[Table]", changes: bool) -> list:
    kinds = {kind for table in shown for kind in table["kind"].tolist()}
    keys = [
        style.line_key(label, color=colour, linestyle=dash, marker=marker, markersize=4)
        for kind, (label, colour, dash, marker) in KINDS.items()
        if kind in kinds
    ]
    if changes:
        label, colour, dash, marker = CHANGE
        keys.append(style.line_key(label, color=colour, linestyle=dash, marker=marker, markersize=4))
    if "halves" in kinds:
        keys.append(style.line_key("halves agree up to here (area: range)", color=style.SKY, linewidth=1.6))
    keys.append(style.patch_key("chance of the largest |cos|, 5–95 %", color=style.PALE))
    keys.append(style.line_key("chance of the captured norm", color=style.GREY, linestyle=(0, (1, 2))))
    keys.append(style.line_key("0.7, from which a band counts", color=style.BLACK, linewidth=0.9))
    return keys


SPEC = FigureSpec(
    name="identified_directions",
    title=TITLE,
    category="2. Curvature",
    labels={"measure": "identified", "shown": "per checkpoint"},
    caption="""\
Eigenvectors of one checkpoint against those of the same checkpoint on other data, by rank of the eigenvalue within its
sign; what cannot be told from zero is left out.

Above: the largest \\|cos\\| of an eigenvector with any of the other basis; lines are medians of bands of ranks, areas
their quartiles, the grey area what chance gives. Where even the same data summed in another order (green) give less
than 1, rounding alone turns the eigenvectors; where two halves of the data (blue, one line for each halving) give no
more than chance, the examples do not determine them. Only where another checkpoint (purple) lies below the halves have
eigenvectors changed by more than sampling explains.

Below: the norm of what an eigenvector has among the other basis' ranks from half to twice its own, with what chance
gives there: neighbours may mix and their span still be determined.

Marked is the largest rank up to which every band has a median of 0.7 between halves, with its range over halvings.
Halves have half of the examples, so that both are lower bounds for all of them.
""",
    tables=("identified_maxima", "identified_dimension"),
    also=("overlap_maxima",),
    draw=draw,
)
