"""Spectra of the Hessian's two parts, and which of them makes each eigenvalue, for every checkpoint."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "The two parts of the Hessian, H = G + R"

_PARTS = {
    "H": ("H", style.BLACK, "D"),
    "G": ("G, Gauss–Newton", style.BLUE, "o"),
    "R": ("R, remainder", style.VERMILLION, "s"),
}
_LINEAR = 2.0
"""Shares are drawn linearly up to this magnitude, and logarithmically beyond."""


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws, per checkpoint, the spectra of H, G and R, and below the shares of G and R in each eigenvalue of H.

    Args:
        tables: `parts_spectrum` and `parts_ritz`, one per checkpoint.

    Returns:
        The figure.
    """
    pairs = [pair for pair in zip(tables["parts_spectrum"], tables["parts_ritz"], strict=True) if len(pair[0])]
    if not pairs:
        return style.message(TITLE, "There is no checkpoint.")
    figure, axes = style.panels(len(pairs), stacked=3, heights=(2.9, 1.9, 1.9), width=3.2)
    columns = style.even_columns(len(pairs), 4)
    low, high = _limits([spectrum for spectrum, _ in pairs])
    right = 1.3 * max(float(spectrum.attributes["P"]) for spectrum, _ in pairs)
    for (spectrum, ritz), (above, positive, negative) in zip(pairs, axes.T, strict=True):
        _spectra(above, spectrum)
        above.set(xscale="log", yscale="log", ylim=(low, high))
        above.set_title(style.checkpoint_title(spectrum))
        style.note(above, _summary(spectrum))
        for axis, sign in ((positive, 1), (negative, -1)):
            _shares(axis, ritz, sign)
        for axis in (above, positive, negative):
            axis.set_xlim(0.8, right)
    _share_limits(axes[1:])
    for place in range(len(pairs)):
        for axis in axes[:2, place]:
            axis.tick_params(labelbottom=False)
        if place % columns:
            for axis in axes[:, place]:
                axis.tick_params(labelleft=False)
    style.outer_labels(axes[0], columns, "", "|eigenvalue|  (loss / parameter²)")
    style.outer_labels(axes[1], columns, "", "share of |λ|, λ > 0")
    style.outer_labels(axes[2], columns, "rank within the sign", "share of |λ|, λ < 0")
    keys = [
        style.line_key(label, color=colour, marker=marker, markersize=4, linewidth=2.4 if part == "H" else 1.3)
        for part, (label, colour, marker) in _PARTS.items()
    ]
    keys.append(style.line_key("negative (as magnitude)", color=style.GREY, linestyle="--", marker="o", mfc="white"))
    keys.append(style.line_key("sum of the shares", color=style.BLACK, linestyle=":"))
    style.legend(figure, keys, columns=5)
    figure.suptitle(TITLE)
    return figure


def _spectra(axis: "Axes", table: "Table") -> None:
    """Eigenvalues beyond each part's numerical zero."""
    for part, (_, colour, marker) in _PARTS.items():
        for sign, dash, face in ((1, "-", colour), (-1, "--", "white")):
            rows = table.where((table["part"] == part) & (table["sign"] == sign) & ~table["is_zero"])
            rows = rows.where(np.argsort(rows["rank"]))
            size = np.abs(rows["eigenvalue"])
            # H lies below the others and is wider, so that it is seen where a part equals it.
            axis.plot(rows["rank"], size, color=colour, linestyle=dash, linewidth=2.4 if part == "H" else 1.3)
            some = _few(rows["rank"])
            axis.plot(
                rows["rank"][some],
                size[some],
                color=colour,
                linestyle="",
                marker=marker,
                markersize=3.5,
                markerfacecolor=face,
            )


def _few(ranks: np.ndarray) -> np.ndarray:
    """A few log-spaced rows for markers."""
    if len(ranks) < 12:
        return np.arange(len(ranks))
    return np.unique(np.searchsorted(ranks, np.geomspace(ranks[0], ranks[-1], 12)))


def _shares(axis: "Axes", table: "Table", sign: int) -> None:
    """qᵀGq and qᵀRq over |λ|, of the eigenvectors with λ of one sign beyond the numerical zero."""
    axis.axhline(0, color=style.GREY, linewidth=0.8)
    axis.axhline(sign, color=style.BLACK, linestyle=":", linewidth=1.2)
    rows = table.where((table["sign"] == sign) & ~table["is_zero"])
    scale = np.abs(rows["eigenvalue"])
    for part, name in (("G", "gauss_newton"), ("R", "remainder")):
        _, colour, marker = _PARTS[part]
        axis.plot(
            rows["rank"], rows[name] / scale, color=colour, linestyle="", marker=marker, markersize=2.5, alpha=0.6
        )
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=_LINEAR, linscale=4)


def _summary(table: "Table") -> str:
    parts = table.attributes["parts"]
    traces = ",  ".join(f"tr {part} = {style.power(parts[part]['trace'], 3)}" for part in ("G", "R"))
    counts = ",  ".join(f"{part}: {style.thousands(parts[part]['negative'])}" for part in _PARTS)
    return f"{traces}\nnegative: {counts}"


def _limits(spectra: list["Table"]) -> tuple[float, float]:
    """Common limits of all eigenvalues that are not zero, with room below for the summary."""
    sizes = np.concatenate([np.abs(table["eigenvalue"][~table["is_zero"]]) for table in spectra])
    if not len(sizes):
        return 1e-1, 1e1
    low, high = float(sizes.min()), float(sizes.max())
    return low / (high / low) ** 0.15 / 2, high * 3


def _share_limits(axes: np.ndarray) -> None:
    """The same limits and ticks for all panels of shares: at least from −2 to 2."""
    reach = max(max(map(abs, axis.get_ylim())) for axis in axes.ravel())
    power = max(0, int(np.ceil(np.log10(reach)))) if reach > _LINEAR else 0
    outer = [10.0**k for k in sorted({power // 2, power} if power > 2 else {power} - {0})]
    ticks = [*(-tick for tick in reversed(outer)), -1.0, 0.0, 1.0, *outer]
    for axis in axes.ravel():
        axis.set_ylim(-max(_LINEAR, 10.0**power), max(_LINEAR, 10.0**power))
        axis.set_yticks(ticks, [style.plain(tick) for tick in ticks])
        axis.set_yticks([], minor=True)


SPEC = FigureSpec(
    name="curvature_parts",
    title=TITLE,
    category="2. Curvature",
    labels={"measure": "Gauss–Newton part and remainder", "shown": "per checkpoint"},
    caption="""\
The Hessian is H = G + R. The Gauss–Newton part G carries the curvature of the loss in the network's outputs and has
no negative eigenvalue; the remainder R carries the curvature of the network itself, weighted with the errors of its
outputs.

Above: the eigenvalues of H (black diamonds, wide line), G (blue circles) and R (vermillion squares) against their
rank within the sign, in logarithms; negative ones dashed with open markers, as magnitudes. Each spectrum ends at its
own numerical zero. Where the black line lies under the blue one, G makes the largest eigenvalues (the outliers). The
corner gives the traces and the numbers of negative eigenvalues.

Below: along each eigenvector q of H, q\\ :sup:`T`\\ Gq and q\\ :sup:`T`\\ Rq in units of \\|λ\\|, for positive λ
(middle) and negative λ (bottom). The two add up to the dotted line, 1 or −1. Linear up to 2, logarithmic beyond: at
large shares the parts cancel.
""",
    tables=("parts_spectrum", "parts_ritz"),
    draw=draw,
)
