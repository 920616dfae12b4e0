"""The loss along a few eigenvectors of every checkpoint."""

from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Loss along eigenvectors"
COLUMNS = 5


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws one row per checkpoint: lines along eigenvectors from the largest to the most negative eigenvalue.

    Args:
        tables: `line_search`, `line_fit` and `line_forms`, one of each per checkpoint.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    names = ("line_search", "line_fit", "line_forms")
    parts = [part for part in zip(*(tables[name] for name in names), strict=True) if len(part[1])]
    if not parts:
        return style.message(TITLE, "There is no checkpoint.")
    chosen = [_choose(fits) for _, fits, _ in parts]
    columns = max(len(rows) for rows in chosen)
    figure = Figure(figsize=(max(6.4, 2.5 * columns + 0.6), 2.45 * len(parts) + 1.3), layout=style.layout())
    axes = figure.subplots(len(parts), columns, squeeze=False)
    for (lines, fits, forms), rows, row_axes in zip(parts, chosen, axes, strict=True):
        for row, axis in zip(rows, row_axes, strict=False):
            _draw_line(axis, lines, fits, row)
            _name_form(axis, forms, row)
        for unused in row_axes[len(rows) :]:
            unused.set_axis_off()
        name = f"{fits.attributes['run']}\niteration {style.thousands(fits.attributes['iteration'])}"
        row_axes[0].set_ylabel(f"{name}\n\nΔL (loss)", linespacing=1.1)
    for axis in axes[-1]:
        axis.set_xlabel("t (distance along q)")
    style.legend(
        figure,
        [
            style.line_key("training loss", color=style.BLUE, marker="o", linestyle="", markersize=4),
            style.line_key("form fitted to it", color=style.BLUE),
            style.line_key("validation loss, 95 % over examples", color=style.ORANGE, linestyle="--"),
            style.line_key("quadratic gt + ½λt²", color=style.BLACK, linestyle="-", linewidth=0.9),
            style.line_key("quadratic radius", color=style.GREY, linestyle=":", linewidth=1.3),
        ],
        columns=5,
    )
    figure.suptitle(TITLE)
    return figure


def _choose(fits: "Table") -> list[int]:
    """Rows to show: first, middle and last positive eigenvalue above the numerical zero, middle and first negative."""
    rows: list[int] = []
    for sign, wanted in ((1, 3), (-1, 2)):
        found = np.flatnonzero((fits["sign"] == sign) & ~fits["is_zero"])
        found = found[np.argsort(fits["rank"][found])]
        if not len(found):
            continue
        targets = np.geomspace(fits["rank"][found[0]], fits["rank"][found[-1]], wanted)
        near = [int(found[np.argmin(np.abs(np.log(fits["rank"][found] / target)))]) for target in targets]
        rows += [row for place, row in enumerate(near) if row not in near[:place]]
    if not rows:
        rows = list(range(min(COLUMNS, len(fits))))
    return sorted(rows, key=lambda row: -fits["eigenvalue"][row])


def _draw_line(axis: "Axes", lines: "Table", fits: "Table", row: int) -> None:
    own = lines["index"] == fits["index"][row]
    training = lines.where(own & (lines["split"] == "train"))
    validation = lines.where(own & (lines["split"] == "validation"))
    axis.axhline(0, color=style.PALE, linewidth=1)
    axis.axvline(0, color=style.PALE, linewidth=1)
    axis.plot(training["t"], training["quadratic"], color=style.BLACK, linewidth=0.9)
    if len(validation):
        look: dict[str, Any] = {"color": style.ORANGE, "alpha": 0.25, "linewidth": 0}
        axis.fill_between(validation["t"], validation["difference_low"], validation["difference_high"], **look)
        axis.plot(validation["t"], validation["difference"], color=style.ORANGE, linestyle="--")
    axis.plot(training["t"], training["fitted"], color=style.BLUE)
    axis.plot(training["t"], training["difference"], color=style.BLUE, linestyle="", marker="o", markersize=2.6)
    for side, sign in (("positive", 1), ("negative", -1)):
        if fits[f"radius_{side}_status"][row] == "measured":
            axis.axvline(sign * fits[f"radius_{side}"][row], color=style.GREY, linestyle=":", linewidth=1.3)
    values = np.concatenate([training["difference"], validation["difference"]])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (-1.0, 1.0)
    room = 0.08 * (high - low) or 1.0
    # The quadratic may leave the panel: the loss sets the limits. Room above for the form's name.
    axis.set_ylim(low - room, high + 3.2 * room)
    axis.locator_params(axis="both", nbins=4)
    for scale in (axis.xaxis, axis.yaxis):
        # A factor above the axis would push the title of this panel alone upwards.
        scale.set_major_formatter(lambda value, _: style.plain(value))
    rank = f"{'' if fits['sign'][row] > 0 else '−'}{style.thousands(fits['rank'][row])}"
    axis.set_title(f"λ = {style.power(fits['eigenvalue'][row])}  (rank {rank})", fontsize=9.5)


def _name_form(axis: "Axes", forms: "Table", row: int) -> None:
    missed = f" ({100 * forms['best_error'][row]:.2g} % off)" if forms["form"][row] == "none" else ""
    style.note(axis, f"{forms['best_form'][row]}{missed}", "upper left")


SPEC = FigureSpec(
    name="line_searches",
    title=TITLE,
    category="3. How quadratic",
    labels={"measure": "L(θ + tq) − L(θ)", "shown": "per checkpoint"},
    caption="""\
Rise of the loss ΔL = L(θ + tq) − L(θ) along single eigenvectors q, one row per checkpoint, from the largest
eigenvalue (left) to the most negative one (right). The range of t is such that ½\\|λ\\|t² reaches the same rise of
the loss, or a fixed fraction of \\|θ\\|.

Points: the training loss over all examples; blue line: the simplest form that predicts points held out from its fit
to better than 1 %, as far as the loss changes by no more than that rise. It is named in the corner; where none of
those tried is as good, the one that misses them least is named with how far it is off. Orange, dashed: the validation
loss with a 95 % interval over its examples. Black: the quadratic that slope and eigenvalue at t = 0 imply; where the
points leave it, the Taylor expansion ends. Dotted verticals mark the quadratic radius, the first departure by a tenth
of ½\\|λ\\|t².
""",
    tables=("line_search", "line_fit", "line_forms"),
    draw=draw,
)
