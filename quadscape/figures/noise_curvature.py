"""Gradient noise against curvature, direction by direction, and across halves of the data."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Gradient noise against curvature"
_SLOPES = (("∝ λ", 1, ":"), ("∝ λ²", 2, "--"))


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws qᵀCq against λ for every checkpoint, with what halves of the data give, and how far C is diagonal.

    Args:
        tables: `gradients` and `noise_curvature`, one of each per checkpoint; `noise_crossed` of those whose curvature
            was computed on halves.

    Returns:
        The figure.
    """
    found = [pair for pair in zip(tables["gradients"], tables["noise_curvature"], strict=True) if len(pair[0])]
    if not found:
        return style.message(TITLE, "There is no checkpoint.")
    figure, axes = style.panels(len(found), heights=(3.2,), width=3.3)
    columns = style.even_columns(len(found), 4)
    crossed = False
    for (gradients, geometry), axis in zip(found, axes[0], strict=True):
        halves = [table for table in tables.get("noise_crossed", ()) if _is_of(table, gradients) and len(table)]
        crossed |= bool(halves)
        _directions(axis, gradients)
        for table in halves:
            _crossed(axis, table)
        axis.set(xscale="log", yscale="log", title=style.checkpoint_title(gradients))
        _shares(axis, geometry)
    style.outer_labels(axes[0], columns, "curvature qᵀHq  (loss / parameter²)", "noise qᵀCq  (loss² / parameter²)")
    keys = [
        style.line_key("eigenvectors", color=style.BLUE, marker=".", linestyle="", markersize=5),
        style.line_key("λ within numerical zero or below δ", color=style.GREY, marker=".", linestyle="", markersize=5),
        *(style.line_key(label, color=style.BLACK, linestyle=dash) for label, _, dash in _SLOPES),
    ]
    if crossed:
        keys.append(
            style.line_key(
                "bands of one half's eigenvectors, both of the other half",
                color=style.ORANGE,
                marker="^",
                markersize=5,
                markeredgecolor=style.BLACK,
                markeredgewidth=0.5,
            )
        )
    style.legend(figure, keys, columns=3)
    figure.suptitle(TITLE)
    return figure


def _is_of(table: "Table", other: "Table") -> bool:
    return all(table.attributes[name] == other.attributes[name] for name in ("run", "iteration"))


def _directions(axis: "Axes", table: "Table") -> None:
    values, noise = table["eigenvalue"], table["variance"]
    shown = (values > 0) & (noise > 0)
    cut = max(float(table.attributes["zero_threshold"]), float(table.attributes["weight_decay"]))
    for above, colour in ((False, style.GREY), (True, style.BLUE)):
        some = shown & ((values > cut) == above)
        axis.plot(values[some], noise[some], ".", color=colour, markersize=2.5, alpha=0.6, rasterized=True)
    told = shown & (values > cut)
    if not told.any():
        return
    first, last = values[told].max(), values[told].min()
    top = float(np.median(noise[told][values[told] >= first / 3]))
    for _, power, dash in _SLOPES:
        ends = np.array([last, first])
        axis.plot(ends, top * (ends / first) ** power, color=style.BLACK, linestyle=dash, linewidth=1.2)
    left = max(values[shown].min(), 1e-2 * cut)
    # Directions without curvature often have no noise either, and would take the picture away from all others.
    seen = noise[shown & (values >= left)]
    axis.set(xlim=(left / 2, first * 3), ylim=(float(np.quantile(seen, 0.005)) / 30, float(seen.max()) * 5))


def _crossed(axis: "Axes", table: "Table") -> None:
    for halving in np.unique(table["halving"]):
        for half in (0, 1):
            rows = table.where((table["halving"] == halving) & (table["half"] == half) & table["told"])
            rows = rows.where((rows["curvature"] > 0) & (rows["noise"] > 0))
            axis.plot(
                rows["curvature"],
                rows["noise"],
                color=style.ORANGE,
                marker="^",
                markersize=4,
                markeredgecolor=style.BLACK,
                markeredgewidth=0.4,
                linewidth=1,
            )


def _shares(axis: "Axes", table: "Table") -> None:
    row = {name: float(values[0]) for name, values in table.columns.items()}
    text = f"off the diagonal: {row['off_diagonal']:.0%}\n(rotated: {row['off_diagonal_rotated']:.0%})\n"
    text += f"commutator: {row['relative_commutator']:.2f}\n(rotated: {row['relative_commutator_rotated']:.2f})"
    style.note(axis, text, "upper left")


SPEC = FigureSpec(
    name="noise_curvature",
    title=TITLE,
    category="4. Noise",
    labels={"measure": "noise and curvature", "shown": "per checkpoint"},
    caption="""\
Each dot is an eigenvector of the Hessian H: its eigenvalue, and the variance over examples of the gradient along it,
qᵀCq. Grey dots lie within the numerical zero or below the weight decay. The black lines, through the median of the
largest, are C ∝ H (dotted) and C ∝ H² (dashed). Directions and numbers of the dots are of the same examples, which
draws their slope towards that of sampling noise. Triangles are free of that: bands of eigenvectors of one half of the
data, with curvature and noise of the other half, one line for each half. What remains is that these directions are
imprecise, and hold some of the noise of larger curvatures; it flattens the lines, so that their slope is a lower bound.

In the corner: the share of ‖C‖² off the diagonal in the eigenbasis, and ‖CH − HC‖/(√2‖CH‖), with what both are on
average if C is rotated at random. Were both zero, noise and curvature would share their eigenvectors.
""",
    tables=("gradients", "noise_curvature"),
    also=("noise_crossed",),
    draw=draw,
)
