"""Cosines of single-example gradients with eigenvectors, and how many examples share them."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables

TITLE = "Single-example gradients against eigenvalue"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws |cos| (above) and the participation ratio (below) against |λ| for every checkpoint.

    Args:
        tables: `gradient_bands`, one per checkpoint.

    Returns:
        The figure.
    """
    bands = [table for table in tables["gradient_bands"] if len(table)]
    if not bands:
        return style.message(TITLE, "There is no checkpoint.")
    figure, axes = style.panels(len(bands), stacked=2, heights=(2.7, 1.9), width=3.2, sharex=True, sharey="row")
    columns = style.even_columns(len(bands), 4)
    for table, (above, below) in zip(bands, axes.T, strict=True):
        head = table.attributes
        above.axhspan(head["chance_q05"], head["chance_q95"], color=style.PALE, alpha=0.8, linewidth=0)
        above.axhline(head["chance_median"], color=style.GREY, linestyle=":", linewidth=1.4)
        below.axhline(head["gaussian_participation"], color=style.GREY, linestyle=":", linewidth=1.4)
        below.axhline(1 / head["N"], color=style.GREY, linestyle="-.", linewidth=1.0)
        for sign, (_, colour, marker, dash) in style.SIGNS.items():
            rows = table.where((table["sign"] == sign) & (np.abs(table["eigenvalue"]) > head["zero_threshold"]))
            rows = rows.where(np.argsort(np.abs(rows["eigenvalue"])))
            size = np.abs(rows["eigenvalue"])
            if sign > 0:
                above.fill_between(
                    size, _shown(rows["q05"]), _shown(rows["q95"]), color=colour, alpha=0.22, linewidth=0
                )
                below.fill_between(
                    size,
                    rows["participation_lower"],
                    rows["participation_upper"],
                    color=colour,
                    alpha=0.22,
                    linewidth=0,
                )
            else:
                # Bounds without filling: two fillings on top of each other cannot be told apart.
                for axis, names in ((above, ("q05", "q95")), (below, ("participation_lower", "participation_upper"))):
                    for name in names:
                        axis.plot(size, _shown(rows[name]), color=colour, linestyle="--", linewidth=0.8)
            look = {"color": colour, "marker": marker, "linestyle": dash, "markersize": 3.2}
            above.plot(size, _shown(rows["median"]), **look)
            below.plot(size, rows["participation"], **look)
        above.set(xscale="log", yscale="log", title=style.checkpoint_title(table))
        below.set(xscale="log", yscale="log")
        above.tick_params(labelbottom=False)
    _limit(axes, bands)
    style.outer_labels(axes[0], columns, "", "|cos(gₙ, q)|")
    style.outer_labels(axes[1], columns, "|λ|  (loss / parameter²)", "participation ratio")
    keys = [
        style.line_key(f"{label}: median", color=colour, marker=marker, linestyle=dash, markersize=4)
        for label, colour, marker, dash in style.SIGNS.values()
    ]
    keys += [
        style.patch_key("positive λ: 5–95 % (below: quartiles)", color=style.BLUE, alpha=0.22),
        style.line_key("negative λ: the same", color=style.VERMILLION, linestyle="--", linewidth=0.8),
        style.patch_key("|cos| by chance: median, 5–95 %", color=style.PALE),
        style.line_key("Gaussian coefficients: 1/3", color=style.GREY, linestyle=":"),
        style.line_key("one example does it all: 1/N", color=style.GREY, linestyle="-.", linewidth=1.0),
    ]
    style.legend(figure, keys, columns=3)
    figure.suptitle(TITLE)
    return figure


def _shown(values: np.ndarray) -> np.ndarray:
    """Zeros have no place on a logarithmic axis."""
    return np.where(values > 0, values, np.nan)


def _limit(axes: np.ndarray, bands: list) -> None:
    """Limits that show medians, upper quantiles and chance; a fifth percentile of nothing may leave below."""
    least = min(float(table.attributes["chance_q05"]) for table in bands)
    medians = np.concatenate([table["median"] for table in bands])
    medians = medians[medians > 0]
    least = min([least, *(medians / 5)[np.isfinite(medians)]]) if len(medians) else least
    most = max(min(float(table.attributes["N"]) for table in bands), 2)
    for axis in axes[0]:
        axis.set_ylim(max(least, 1e-9) / 2, 1.3)
    for axis in axes[1]:
        axis.set_ylim(0.5 / most, 1.5)


SPEC = FigureSpec(
    name="gradient_cosine",
    title=TITLE,
    category="4. Noise",
    labels={"measure": "cosine and participation", "shown": "per checkpoint"},
    caption="""\
Above: \\|cos\\| of the angle between the gradient gₙ of a single training example and an eigenvector q, over all
examples and all eigenvectors of a band of rank, against the band's median \\|λ\\|. Lines: medians; blue area
(positive λ) and thin dashed lines (negative λ): 5–95 %. In the grey area it would lie by chance, for a gradient
without preferred direction among the P axes. Above it, examples push along these directions; below it, they avoid
them.

Below: the participation ratio (Σa²)²/(NΣa⁴) of a = gₙᵀq, the effective fraction of examples that the band's
directions belong to (median and quartiles over directions): 1/3 if a is Gaussian, 1/N if one example does it all.
Bands within the numerical zero are left out.
""",
    tables=("gradient_bands",),
    draw=draw,
)
