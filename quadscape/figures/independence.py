"""The loss off the lines that were searched, against what these lines and the quadratic predict there."""

from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Do eigendirections act independently?"

SETS = {
    "top": ("largest positive λ", style.BLUE, "o"),
    "bulk": ("smallest |λ|", style.GREEN, "s"),
    "bottom": ("negative λ", style.VERMILLION, "v"),
    "all": ("all lines searched", style.BLACK, "D"),
    "isotropic": ("isotropic, in all parameters", style.ORANGE, "^"),
}
"""Label, colour and marker of each set."""

LEAST_SKILL = -1.0
"""Lower end of the axis of skill; what lies below is marked there."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws errors of both predictions, the skill, and the interaction of two directions, for every checkpoint.

    Args:
        tables: `independence` and `interaction`, one of each per checkpoint.

    Returns:
        The figure.
    """
    pairs = zip(tables["independence"], tables["interaction"], strict=True)
    found = [(table, planes) for table, planes in pairs if np.isfinite(table["actual"]).any()]
    if not found:
        return style.message(TITLE, "No line was searched whose eigenvalue is more than numerically zero.")
    figure, axes = style.panels(len(found), stacked=3, heights=(2.6, 2.4, 3.1), width=3.3)
    for (table, planes), (above, middle, below) in zip(found, axes.T, strict=True):
        _errors(above, table)
        _skill(middle, table)
        _interaction(figure, below, planes)
        above.set_title(style.checkpoint_title(table))
    columns = style.even_columns(len(found), 4)
    for row, label in zip(axes, ("error of ΔL  (loss)", "skill"), strict=False):
        for place, axis in enumerate(row):
            axis.set_xlabel("|td|  (parameter units)")
            if place % columns == 0:
                axis.set_ylabel(label)
    names = {name for table, _ in found for name in table["set"].tolist()}
    keys = [
        style.line_key(label, color=colour, marker=marker, markersize=4.5)
        for name, (label, colour, marker) in SETS.items()
        if name in names
    ]
    look: dict[str, Any] = {"color": style.GREY, "markersize": 4.5}
    keys += [
        style.line_key("above: lines, added up", linestyle="-", **look),
        style.line_key("above: the quadratic", linestyle="--", linewidth=1, **look),
        style.line_key("skill where a line left its quadratic", marker="o", linestyle="", **look),
        style.line_key("… where none did", marker="o", linestyle="", markerfacecolor="white", **look),
    ]
    style.legend(figure, keys, columns=4)
    figure.suptitle(TITLE)
    return figure


def _of_sets(table: "Table") -> "list[tuple[str, str, Table]]":
    """Colour, marker and rows of each set that has a finite loss."""
    found = []
    for name, (_, colour, marker) in SETS.items():
        rows = table.where((table["set"] == name) & np.isfinite(table["actual"]))
        if len(rows):
            found.append((colour, marker, rows))
    return found


def _median(rows: "Table", values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Length and median over directions, for each t."""
    points = np.unique(rows["t"][np.isfinite(values)])
    places = [np.isfinite(values) & (rows["t"] == t) for t in points]
    lengths = [np.median(rows["length"][place]) for place in places]
    return np.array(lengths), np.array([np.median(values[place]) for place in places])


def _errors(axis: "Axes", table: "Table") -> None:
    for colour, marker, rows in _of_sets(table):
        for name, dash, width, mark in (("quadratic", "--", 1.0, ""), ("separable", "-", 1.4, marker)):
            error = np.abs(rows["actual"] - rows[name])
            lengths, medians = _median(rows, np.where(error > rows["rounding"], error, np.nan))
            axis.plot(lengths, medians, color=colour, linestyle=dash, linewidth=width, marker=mark, markersize=3.5)
    axis.set(xscale="log", yscale="log")
    style.plain_log(axis, horizontal=True)


def _skill(axis: "Axes", table: "Table") -> None:
    axis.axhline(1, color=style.GREY, linestyle=":", linewidth=1.2)
    axis.axhline(0, color=style.GREY, linestyle="--", linewidth=1)
    for colour, marker, rows in _of_sets(table):
        lengths, medians = _median(rows, rows["skill"])
        axis.plot(lengths, np.maximum(medians, LEAST_SKILL), color=colour, linewidth=1)
        for beyond, face in ((False, "white"), (True, colour)):
            own = rows.where((rows["beyond"] == beyond) & np.isfinite(rows["skill"]))
            low = own["skill"] < LEAST_SKILL
            look: dict[str, Any] = {"color": colour, "markerfacecolor": face, "linestyle": "", "markeredgewidth": 0.7}
            axis.plot(own["length"][~low], own["skill"][~low], marker=marker, markersize=3.2, **look)
            # A little above the edge, where they are whole.
            edge = np.full(int(low.sum()), LEAST_SKILL + 0.06)
            axis.plot(own["length"][low], edge, marker=7, markersize=5, **look)
    axis.set(xscale="log", ylim=(LEAST_SKILL, 1.08))
    style.plain_log(axis, horizontal=True)


def _interaction(figure: "Figure", axis: "Axes", planes: "Table") -> None:
    """A map of the first pair."""
    from matplotlib.ticker import MaxNLocator

    rows = planes.where(planes["pair"] == 0)
    x, y = np.unique(rows["x"]), np.unique(rows["y"])
    if not np.isfinite(rows["interaction"]).any():
        axis.set_axis_off()
        style.note(axis, "there is no pair of lines", "upper left")
        return
    values = rows["interaction"].reshape(len(x), len(y)).T
    size = float(np.nanmax(np.abs(values))) or 1.0
    filled = axis.pcolormesh(x, y, values, cmap="PuOr_r", vmin=-size, vmax=size, shading="nearest", rasterized=True)
    # Above, so that all panels of a column are equally wide.
    bar = figure.colorbar(filled, ax=axis, label="interaction I  (loss)", location="top", aspect=25, pad=0.03)
    bar.ax.xaxis.set_major_formatter(lambda value, _: style.plain(value))
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    axis.grid(visible=False)
    first, second = (style.power(float(rows[f"eigenvalue_{name}"][0])) for name in ("x", "y"))
    axis.set(xlabel=f"x along λ = {first}  (parameter units)", ylabel=f"y along λ = {second}\n(parameter units)")
    style.few_ticks(axis)


SPEC = FigureSpec(
    name="independence",
    title=TITLE,
    category="3. How quadratic",
    labels={"measure": "loss off the lines", "shown": "per checkpoint"},
    caption="""\
Random directions d in the spans of sets of eigenvectors whose lines were searched, and isotropic ones, at distances
\\|td\\| from the checkpoint. If eigendirections acted independently, the rise of the loss there would be what single
lines add up to; isotropic, lines between those that were searched are interpolated in λ, without their odd parts.

Above: the error of that sum (solid) and of the quadratic of gradient and Hessian (dashed), medians over directions.
Middle: the skill, 1 − (error of the sum)/(error of the quadratic): at 1 (dotted) lines act independently, at 0 (dashed)
they tell no more than the quadratic, below they mislead. One marker for each direction and distance, lines are medians;
marks on the lower edge lie below it. Open markers: no line has left its quadratic radius, where both predictions are
good and their errors are of third and fourth order. Below: the interaction I = L(x, y) − L(x, 0) − L(0, y) + L(0, 0) of
the eigenvectors of the two largest eigenvalues that were searched, as far as their lines go; 0 if they act
independently.
""",
    tables=("independence", "interaction"),
    draw=draw,
)
