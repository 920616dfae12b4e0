"""The shared look of all figures.

Colours are Okabe and Ito's, which colour-blind readers tell apart; every series also has its own marker or dash, so
that a print in grey can be read.
"""

import io
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.tables import Table

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
BLACK, GREY, PALE = "#222222", "#777777", "#DDDDDD"

SIGNS = {1: ("positive λ", BLUE, "o", "-"), -1: ("negative λ (as |λ|)", VERMILLION, "s", "--")}
"""Label, colour, marker and dash of each sign of an eigenvalue."""

SPLITS = {
    "train": ("training", BLUE, "o", "-"),
    "validation": ("validation", ORANGE, "^", "--"),
}
"""Label, colour, marker and dash of each data split."""

MAP = "cividis"
"""Perceptually uniform colour map that reads the same to colour-blind readers."""

DPI = 150

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9.5,
    "figure.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": True,
    "svg.hashsalt": "quadscape",
    # Outlines, so that an SVG looks the same where DejaVu is not installed.
    "svg.fonttype": "path",
    "figure.dpi": DPI,
}


@contextmanager
def context() -> Generator[None]:
    """The settings of matplotlib under which everything is drawn and saved."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {**mpl.rcParamsDefault, "backend": "agg", **_RC}
    with mpl.rc_context(settings):
        yield


def styled(draw: "Callable[..., Figure]") -> "Callable[..., Figure]":
    """Makes a drawing function run under the shared settings."""

    @wraps(draw)
    def wrapped(*arguments: Any, **options: Any) -> "Figure":
        with context():
            return draw(*arguments, **options)

    return wrapped


def save(figure: "Figure", path: str | Path) -> None:
    """Writes a figure; equal figures give equal bytes.

    Args:
        figure: The figure.
        path: A file whose suffix is `.svg` or `.png`.
    """
    path = Path(path)
    kind = path.suffix.removeprefix(".")
    # Neither dates nor the version of matplotlib belong to the content.
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    buffer = io.BytesIO()
    with context():
        _settle(figure)
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _settle(figure: "Figure") -> None:
    """Lays a figure out for good, at rounded places.

    The solver behind the layout orders its unknowns by their addresses in memory, so that places differ in the last bit
    from run to run; an SVG names its clipping rectangles by a hash of all bits.
    """
    if figure.get_layout_engine() is None:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(float(edge), 6) for edge in axes.get_position(original=True).bounds)
        axes.set_position((left, bottom, width, height))


def panels(
    count: int,
    *,
    stacked: int = 1,
    heights: Sequence[float] = (2.7,),
    width: float = 3.0,
    most: int = 4,
    **options: Any,
) -> "tuple[Figure, np.ndarray]":
    """A figure of small multiples.

    Args:
        count: Number of subjects, at least 1.
        stacked: Panels of one subject, one above the other.
        heights: Heights of these, in inches.
        width: Width of a panel in inches.
        most: Largest number of subjects side by side.
        **options: Passed on to `Figure.subplots`.

    Returns:
        The figure, and axes of shape (stacked, count).
    """
    import numpy as np
    from matplotlib.figure import Figure

    columns = even_columns(count, most)
    blocks = math.ceil(count / columns)
    size = (max(width * columns + 0.6, 6.4), sum(heights) * blocks + 1.1)
    figure = Figure(figsize=size, layout=layout())
    axes = figure.subplots(
        blocks * stacked, columns, squeeze=False, height_ratios=list(heights) * blocks, **options
    ).reshape(blocks, stacked, columns)
    axes = np.swapaxes(axes, 1, 2).reshape(blocks * columns, stacked)
    for unused in axes[count:].ravel():
        unused.set_axis_off()
    return figure, axes[:count].T


def layout() -> Any:
    """The layout engine of all figures: finds room for every label, with some air between panels."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, hspace=0.02, wspace=0.02)


def even_columns(count: int, most: int) -> int:
    """Columns of a grid of `count` panels, at most `most`, that leave few places empty."""
    if count <= most:
        return max(1, count)
    return min(range(most, max(min(2, most - 1), most - 2), -1), key=lambda columns: (-count % columns, -columns))


def message(title: str, text: str) -> "Figure":
    """A figure that says why there is nothing to see."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.2), layout="constrained")
    figure.suptitle(title)
    figure.text(0.5, 0.45, text, ha="center", va="center", color=GREY, fontsize=11, wrap=True)
    return figure


def legend(figure: "Figure", handles: Sequence[Any], columns: int = 4) -> None:
    """One legend for all panels, below them, where it covers nothing."""
    handles = list(handles)
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    fitting = max(1, int(figure.get_figwidth() / (0.068 * longest + 0.5)))
    # Rows of about equal length.
    rows = math.ceil(len(handles) / max(1, min(fitting, columns)))
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, math.ceil(len(handles) / rows)))


def line_key(label: str, **options: Any) -> Any:
    """A legend entry for a line or marker."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **options)


def patch_key(label: str, **options: Any) -> Any:
    """A legend entry for a filled area."""
    from matplotlib.patches import Patch

    return Patch(label=label, **options)


def thousands(value: float) -> str:
    """12345 as 12,345."""
    return f"{int(value):,}"


def power(value: float, digits: int = 2) -> str:
    """A number for a title: 0.037, or 3.7×10⁻⁵ in mathtext."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(abs(value)))
    if -3 <= exponent < 4:
        return f"{value:.{digits}g}".replace("-", "−") if exponent < digits else f"{value:,.0f}".replace("-", "−")
    return rf"${value / 10**exponent:.{digits - 1}f}\times10^{{{exponent}}}$"


def plain(value: float) -> str:
    """A number for a tick, as short as it goes, with a true minus."""
    return f"{0.0 if abs(value) < 1e-300 else value:.4g}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")


def plain_log(axis: "Axes", *, horizontal: bool = False) -> None:
    """Within two decades, plain numbers at 1, 2 and 5 on a logarithmic axis are easier to read than powers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    scale, (low, high) = (axis.get_xscale(), axis.get_xlim()) if horizontal else (axis.get_yscale(), axis.get_ylim())
    if scale == "log" and high / low < 300:
        ticks = axis.xaxis if horizontal else axis.yaxis
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ticks.set_major_formatter(lambda value, _: f"{value:g}")
        ticks.set_minor_formatter(NullFormatter())


def few_ticks(axis: "Axes", most: int = 5) -> None:
    """At most so many intervals between the ticks of a linear horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    if axis.get_xscale() == "linear":
        axis.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))


def checkpoint_title(table: "Table") -> str:
    """Which checkpoint a table is of."""
    return f"{table.attributes['run']}, iteration {thousands(table.attributes['iteration'])}"


def middle_rank(bands: "Table", suffix: str = "") -> "np.ndarray":
    """Where bands of rank are drawn on a logarithmic axis: the middle of their ends.

    Args:
        bands: A table with the columns of `quadscape.measures.columns.band_columns`.
        suffix: Of their names.

    Returns:
        One rank for each band.
    """
    return (bands[f"first_rank{suffix}"] * bands[f"last_rank{suffix}"]) ** 0.5


def outer_labels(axes: "np.ndarray", columns: int, x: str, y: str) -> None:
    """Labels the lowest panel of each column and the first of each row.

    Args:
        axes: Axes of one stacked row, shape (count,).
        columns: Panels side by side.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
    """
    for place, axis in enumerate(axes):
        if place + columns >= len(axes):
            axis.set_xlabel(x)
        if place % columns == 0:
            axis.set_ylabel(y)


def note(axis: "Axes", text: str, place: str = "lower left") -> None:
    """A few words in a corner of a panel, legible over whatever lies there."""
    x, ha = (0.02, "left") if "left" in place else (0.98, "right")
    y, va = (0.03, "bottom") if "lower" in place else (0.97, "top")
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axis.text(x, y, text, transform=axis.transAxes, ha=ha, va=va, fontsize=8.5, color=BLACK, bbox=box)
