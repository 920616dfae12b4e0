"""Eigenvalues against their rank, both signs, for every checkpoint."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Spectrum of the Hessian"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws one rank plot per checkpoint, on common axes.

    Args:
        tables: `spectrum`, one per checkpoint.

    Returns:
        The figure.
    """
    spectra = [table for table in tables["spectrum"] if len(table)]
    if not spectra:
        return style.message(TITLE, "There is no checkpoint.")
    figure, axes = style.panels(len(spectra), width=3.1, heights=(2.9,), sharex=True, sharey=True)
    columns = style.even_columns(len(spectra), 4)
    low, high = _limits(spectra)
    for table, axis in zip(spectra, axes[0], strict=True):
        zero = float(table.attributes["zero_threshold"])
        if zero > low:
            axis.axhspan(low, zero, color=style.PALE, alpha=0.7, linewidth=0)
            axis.axhline(zero, color=style.GREY, linestyle=":", linewidth=1.2)
        for sign, (_, colour, marker, dash) in style.SIGNS.items():
            rows = table.where((table["sign"] == sign) & (table["eigenvalue"] != 0))
            rows = rows.where(np.argsort(rows["rank"]))
            axis.plot(rows["rank"], np.abs(rows["eigenvalue"]), color=colour, linestyle=dash)
            some = rows.where(_few(rows["rank"]))
            axis.plot(
                some["rank"], np.abs(some["eigenvalue"]), color=colour, linestyle="", marker=marker, markersize=3.5
            )
        axis.set(xscale="log", yscale="log", ylim=(low, high))
        axis.set_xlim(0.8, 1.3 * max(float(t.attributes["P"]) for t in spectra))
        # Above the panel: within, it would lie over the curves or over the line of the numerical zero.
        axis.set_title(style.checkpoint_title(table), pad=38)
        axis.text(0.5, 1.015, _summary(table), transform=axis.transAxes, ha="center", va="bottom", fontsize=8.5)
    style.outer_labels(axes[0], columns, "rank within the sign", "|λ|  (loss / parameter²)")
    keys = [
        style.line_key(label, color=colour, marker=marker, linestyle=dash, markersize=4)
        for label, colour, marker, dash in style.SIGNS.values()
    ]
    if any(float(table.attributes["zero_threshold"]) > low for table in spectra):
        keys.append(style.patch_key("numerical zero, |λ| ≤ $ε_λ$", color=style.PALE))
    style.legend(figure, keys)
    figure.suptitle(TITLE)
    return figure


def _summary(table: "Table") -> str:
    at_threshold = table.attributes["cuts"][1]
    counts = ", ".join(
        f"{style.thousands(at_threshold[key])} {sign}" for key, sign in (("positive", "> 0"), ("negative", "< 0"))
    )
    without = table.attributes["invariances"]["negative_without_generators"]
    return (
        f"tr H = {style.power(table.attributes['trace'], 3)},  $λ_1$ = {style.power(table.attributes['largest'], 3)}\n"
        f"{counts}, {style.thousands(at_threshold['zero'])} ≈ 0\n"
        f"{style.thousands(without)} < 0 without invariances"
    )


def _few(ranks: np.ndarray) -> np.ndarray:
    """A few log-spaced rows for markers."""
    if len(ranks) < 12:
        return np.arange(len(ranks))
    return np.unique(np.searchsorted(ranks, np.geomspace(ranks[0], ranks[-1], 12)))


def _limits(spectra: list) -> tuple[float, float]:
    """Common limits: up from well below the numerical zero, where there is one, but no further than makes sense."""
    sizes = np.concatenate([np.abs(table["eigenvalue"]) for table in spectra])
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return 1e-1, 1e1
    high = float(sizes.max())
    zeros = [float(table.attributes["zero_threshold"]) for table in spectra]
    floor = min((zero for zero in zeros if zero > 0), default=0.0)
    low = max(float(sizes.min()), floor / 30, high * 1e-16)
    return low / 3, high * 3


SPEC = FigureSpec(
    name="spectrum",
    title=TITLE,
    category="2. Curvature",
    labels={"measure": "all eigenvalues", "shown": "per checkpoint"},
    caption="""\
Every eigenvalue of the Hessian of the training loss (without weight decay) against its rank, in logarithms, one
panel per checkpoint.

Positive eigenvalues are ranked from the largest down (blue circles, solid), negative ones from the most negative up
and drawn as \\|λ\\| (vermillion squares, dashed). A straight line is a power law of the rank. In the grey area the
eigenvalues are zero to within the measured error of Hessian and solver, ε\\ :sub:`λ`; their sign means nothing, and
the counts above leave them out. The last line counts the negative eigenvalues that remain when the
directions are taken out along which the network does not change (scales before a normalisation or around a ReLU,
shifts before a normalisation or the softmax): scales force negative eigenvalues that say nothing of the data.
Compare the height of the first eigenvalues between checkpoints, the steepness, and how far the negative part
reaches up.
""",
    tables=("spectrum",),
    draw=draw,
)
