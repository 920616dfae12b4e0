"""How far and in which way the loss is quadratic along eigenvectors, through training."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "How quadratic the loss is along eigenvectors, through training"

_MOST = 4
_SHADES = {
    "quadratic": (style.BLUE, ""),
    "cubic": (style.SKY, "//"),
    "log": (style.GREEN, "\\\\"),
    "hyperbolic": (style.ORANGE, ".."),
    "quartic": (style.PURPLE, "xx"),
    "unresolved": (style.PALE, ""),
}
_LEAST = 3
"""Fewest lines for a median."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws a column per run: radius as a rise of the loss, growth beyond it, and shares of forms, by checkpoint.

    Args:
        tables: `line_forms`, one per checkpoint.

    Returns:
        The figure.
    """
    runs: dict[str, list[Table]] = {}
    for table in tables["line_forms"]:
        if len(table):
            runs.setdefault(str(table.attributes["run"]), []).append(table)
    if not runs:
        return style.message(TITLE, "There is no checkpoint.")
    shown = {name: sorted(of, key=lambda table: table.attributes["iteration"]) for name, of in runs.items()}
    shown = dict(list(shown.items())[:_MOST])
    figure, axes = style.panels(len(shown), stacked=3, heights=(2.3, 1.9, 2.2), width=3.6, most=_MOST)
    for (name, own), (above, middle, below) in zip(shown.items(), axes.T, strict=True):
        _medians(above, own, "rise")
        _medians(middle, own, "growth")
        middle.axhline(2, color=style.GREY, linestyle="--", linewidth=1)
        _shares(below, own)
        above.set_title(name)
        above.set_yscale("log")
        names = [style.thousands(table.attributes["iteration"]) for table in own]
        for axis in (above, middle, below):
            axis.set_xlim(-0.6, len(own) - 0.4)
            axis.set_xticks(range(len(own)), names if axis is below else [""] * len(own))
            axis.grid(visible=False, axis="x")
        below.set_xlabel("iteration of the checkpoint")
    axes[0][0].set_ylabel("½|λ|r²  (loss)")
    axes[1][0].set_ylabel("exponent p beyond r")
    axes[2][0].set_ylabel("share, by best form")
    handles = [
        style.line_key(f"{label.split(' (')[0]}, quartiles", color=colour, marker=marker)
        for label, colour, marker, _ in style.SIGNS.values()
    ]
    handles += [style.line_key("a quadratic", color=style.GREY, linestyle="--")]
    handles += [style.patch_key(form, facecolor=shade, hatch=hatch) for form, (shade, hatch) in _SHADES.items()]
    style.legend(figure, handles, columns=5)
    figure.suptitle(TITLE)
    return figure


def _of_sign(table: "Table", sign: int) -> "Table":
    return table.where((table["sign"] == sign) & ~table["is_zero"] & (table["eigenvalue"] != 0))


def _medians(axis: "Axes", own: "list[Table]", column: str) -> None:
    anything = False
    for sign, (_, colour, marker, dash) in style.SIGNS.items():
        places, rows = [], []
        for place, table in enumerate(own):
            values = _of_sign(table, sign)[column]
            values = values[np.isfinite(values)]
            if len(values) >= _LEAST:
                places.append(place - 0.08 * sign)
                rows.append(np.percentile(values, [25, 50, 75]))
        if rows:
            low, middle, high = np.array(rows).T
            axis.errorbar(
                places,
                middle,
                yerr=[middle - low, high - middle],
                color=colour,
                marker=marker,
                linestyle=dash,
                capsize=2,
            )
            anything = True
    if not anything:
        style.note(axis, "fewer than 3 lines at each checkpoint", "upper left")


def _shares(axis: "Axes", own: "list[Table]") -> None:
    for place, table in enumerate(own):
        known, bottom = table.where(~table["is_zero"]), 0.0
        for form, (shade, hatch) in _SHADES.items():
            share = float(np.mean(known["best_form"] == form)) if len(known) else 0.0
            poor = float(np.mean((known["best_form"] == form) & (known["form"] == "none"))) if len(known) else 0.0
            axis.bar(place, share, 0.62, bottom, color=shade, hatch=hatch, edgecolor="white", linewidth=0.5)
            if poor:
                # The part that misses the line by more than 1 % is framed.
                axis.bar(place, poor, 0.62, bottom + share - poor, fill=False, edgecolor=style.BLACK, linewidth=1.1)
            bottom += share
    axis.set_ylim(0, 1.02)


SPEC = FigureSpec(
    name="quadratic_through_training",
    title=TITLE,
    category="3. How quadratic",
    labels={"measure": "radius, form and growth", "shown": "per run, by checkpoint"},
    caption="""\
What lines along eigenvectors say of every checkpoint of a run, in the median over the lines searched, with quartiles.
Above: the rise ½\\|λ\\|r² of the quadratic at its radius r, on the side where it ends first; lines that never leave
their quadratic are not among them. Middle: the exponent p of \\|ΔL\\| ∝ \\|t\\|ᵖ beyond the radius; below 2 (dashed)
the loss grows more slowly than any quadratic. Below: shares of the forms that fit the lines best; framed is the part of
each that misses points held out by more than 1 %. Directions within the numerical zero are left out.
""",
    tables=("line_forms",),
    draw=draw,
)
