"""Density of the eigenvalues from Hessian products alone, beside the exact eigenvalues."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Spectral density of the Hessian"

DECADES = 7
"""How far below its peak a density is shown."""

BIN = 0.3
"""Width of the histogram's bins on the horizontal axis."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws the density with its interval over a histogram of the exact eigenvalues, one panel per checkpoint.

    Args:
        tables: `density`, one per checkpoint, and `spectrum` of those that have one.

    Returns:
        The figure.
    """
    densities = [table for table in tables["density"] if len(table)]
    if not densities:
        return style.message(TITLE, "There is no checkpoint.")
    spectra = {_key(table): table for table in tables["spectrum"] if len(table)}
    figure, axes = style.panels(len(densities), width=3.3, heights=(2.9,))
    columns = style.even_columns(len(densities), 4)
    for table, axis in zip(densities, axes[0], strict=True):
        high = 3 * float(table["density_high"].max())
        if _key(table) in spectra:
            _exact(axis, spectra[_key(table)], table)
        axis.fill_between(
            table["eigenvalue"], table["density_low"], table["density_high"], color=style.BLUE, alpha=0.35, linewidth=0
        )
        axis.plot(table["eigenvalue"], table["density"], color=style.BLUE)
        axis.set_xscale("asinh", linear_width=float(table.attributes["linear"]))
        axis.set_xlim(table["eigenvalue"][0], table["eigenvalue"][-1])
        axis.set(yscale="log", ylim=(high / 10**DECADES, high))
        axis.set_xticks(_ticks(table))
        axis.minorticks_off()
        axis.set_title(style.checkpoint_title(table))
        style.note(axis, _summary(table, spectra.get(_key(table))), "upper right")
    style.outer_labels(axes[0], columns, "λ  (loss / parameter²)", "share of eigenvalues per unit of λ")
    keys = [
        style.line_key("Lanczos quadrature", color=style.BLUE),
        style.patch_key("95 % interval over start vectors", color=style.BLUE, alpha=0.35),
    ]
    if spectra:
        keys.append(style.line_key("exact eigenvalues, as broadened", color=style.BLACK, linestyle="--"))
        keys.append(style.patch_key("exact eigenvalues, histogram", color=style.PALE))
    style.legend(figure, keys)
    figure.suptitle(TITLE)
    return figure


def _key(table: "Table") -> tuple[str, int]:
    return table.attributes["run"], table.attributes["iteration"]


def _exact(axis: "Axes", spectrum: "Table", density: "Table") -> None:
    linear, width = (float(density.attributes[name]) for name in ("linear", "width"))
    counts = _represented(spectrum) / float(spectrum.attributes["P"])
    place, values = (np.arcsinh(table["eigenvalue"] / linear) for table in (density, spectrum))
    edges = np.arange(place[0], place[-1] + BIN, BIN)
    heights, _ = np.histogram(values, edges, weights=counts)
    edges = linear * np.sinh(edges)
    axis.stairs(heights / np.diff(edges), edges, baseline=np.finfo(float).tiny, fill=True, color=style.PALE)
    bumps = np.exp(-(((place[:, None] - values) / width) ** 2) / 2) / np.sqrt(2 * np.pi) / width
    axis.plot(density["eigenvalue"], bumps @ counts / (linear * np.cosh(place)), color=style.BLACK, linestyle="--")


def _represented(spectrum: "Table") -> np.ndarray:
    """How many eigenvalues each row stands for: long spectra are thinned to some ranks of each sign."""
    found = np.zeros(len(spectrum))
    negative = spectrum.attributes["cuts"][0]["negative"]
    for sign, count in ((1, spectrum.attributes["P"] - negative), (-1, negative)):
        rows = np.flatnonzero(spectrum["sign"] == sign)
        rows = rows[np.argsort(spectrum["rank"][rows])]
        ranks = spectrum["rank"][rows]
        found[rows] = np.diff(np.concatenate([[0.5], (ranks[1:] + ranks[:-1]) / 2, [count + 0.5]])[: len(rows) + 1])
    return found


def _ticks(table: "Table") -> list[float]:
    """Zero, and the powers of ten of both signs that lie in view and clear of zero."""
    low, high = table["eigenvalue"][[0, -1]]
    exponents = np.arange(np.ceil(np.log10(2 * table.attributes["linear"])), np.log10(max(-low, high)))
    powers = 10.0**exponents
    return [*(-powers[powers < -low])[::-1], 0.0, *powers[powers < high]]


def _summary(table: "Table", spectrum: "Table | None") -> str:
    head = table.attributes
    trace, low, high = (style.power(head[name], 3) for name in ("trace", "trace_low", "trace_high"))
    exact = f"\nexact: {style.power(spectrum.attributes['trace'], 3)}" if spectrum is not None else ""
    return f"tr H = {trace}\n[{low}, {high}]{exact}\n{head['vectors']} × {head['steps']} products"


SPEC = FigureSpec(
    name="spectral_density",
    title=TITLE,
    category="2. Curvature",
    labels={"measure": "density without eigenbasis", "shown": "per checkpoint"},
    caption="""\
The density of the Hessian's eigenvalues by stochastic Lanczos quadrature (blue, with its 95 % interval over the
random start vectors), from as many Hessian products as the corner says and without the eigenbasis. Where there is an
eigenbasis: the exact eigenvalues broadened in the same way (black, dashed), which the interval should cover nearly
everywhere, and their histogram (grey). All are shares of all eigenvalues per unit of λ.

The horizontal axis is linear around zero, up to the range of the spectrum over the number of Lanczos steps, and
logarithmic beyond; every eigenvalue is broadened by a Gaussian of the same width everywhere on this axis. What is
finer than that, as is the peak at zero, cannot be seen in the curves; a single large eigenvalue is a bump with a wide
interval. The trace in the corner has an interval of the same kind. With few start vectors, and where few eigenvalues
make up the sum, such an interval holds somewhat less often than 95 % of the time.
""",
    tables=("density", "spectrum"),
    draw=draw,
)
