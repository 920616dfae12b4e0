"""Eigenvectors of one checkpoint against those of another."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Eigenvectors of one checkpoint against another"


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws heat map, row maxima and subspace overlap for every pair of checkpoints.

    Args:
        tables: `overlap_power`, `overlap_rows`, `overlap_maxima` and `overlap_subspace`, one of each per pair.

    Returns:
        The figure.
    """
    pairs = [found for found in zip(*(tables[name] for name in SPEC.tables), strict=True) if len(found[0])]
    if not pairs:
        return style.message(TITLE, "A pair of checkpoints of one run is needed, and there is none.")
    most = 4 if len(pairs) <= 12 else 6
    figure, axes = style.panels(len(pairs), stacked=3, heights=(3.0, 2.3, 2.1), width=3.3, most=most)
    columns = style.even_columns(len(pairs), most)
    scale = _scale(pairs)
    for (power, rows, maxima, subspace), (above, middle, below) in zip(pairs, axes.T, strict=True):
        image = _heat(above, power, scale)
        _maxima(middle, rows, maxima)
        _subspace(below, subspace)
        head = power.attributes
        above.set_title(f"run {head['run']}")
        above.set_ylabel(f"λ at iteration {style.thousands(head['iteration_a'])}")
        above.set_xlabel(f"λ at iteration {style.thousands(head['iteration_b'])}")
    # Beside the first row of heat maps only: one bar along a tall figure would be as tall.
    bar = figure.colorbar(image, ax=list(axes[0][:columns]), label="power ÷ chance", extend="min", aspect=25, pad=0.01)
    bar.ax.axhline(1, color="white", linewidth=1.5)
    bar.ax.text(
        -0.25, 1, "chance", transform=bar.ax.get_yaxis_transform(), ha="right", va="center", fontsize=8.5, rotation=90
    )
    style.outer_labels(axes[1], columns, "", "largest |cos|")
    style.outer_labels(axes[2], columns, "", "overlap, mean cos²")
    for axis in axes[1]:
        axis.set_xlabel("rank of the eigenvector")
    for axis in axes[2]:
        axis.set_xlabel("dimension k of the subspaces")
    keys = [
        style.line_key(
            f"{word}: single eigenvector", color=colour, marker=marker, markersize=3, alpha=0.5, linestyle=""
        )
        for word, (_, colour, marker, _) in zip(("positive λ", "negative λ"), style.SIGNS.values(), strict=True)
    ]
    keys += [
        style.line_key("median of a band, area: quartiles", color=style.BLACK),
        style.line_key("chance: √(2 ln P / P), k/P", color=style.GREY, linestyle=":"),
        style.patch_key("chance, 5–95 %", color=style.PALE),
        style.line_key("k highest", color=style.BLUE),
        style.line_key("k lowest", color=style.VERMILLION, linestyle="--"),
    ]
    style.legend(figure, keys, columns=4)
    figure.suptitle(TITLE)
    return figure


def _scale(pairs: list) -> Any:
    from matplotlib.colors import LogNorm

    largest = max(float(found[0]["ratio"].max()) for found in pairs)
    return LogNorm(0.1, max(largest, 10.0), clip=True)


def _heat(axis: "Axes", power: "Table", scale: Any) -> Any:
    ruler = _Ruler(power)
    # Cells between all edges of an axis; where neither band of a pair has an eigenvalue, nothing is drawn.
    (low_a, high_a), (low_b, high_b) = (ruler.ends(power, side) for side in "ab")
    edges_a, edges_b = (np.unique(np.concatenate(ends)) for ends in ((low_a, high_a), (low_b, high_b)))
    ratio = np.full((len(edges_a) - 1, len(edges_b) - 1), np.nan)
    ratio[np.searchsorted(edges_a, low_a), np.searchsorted(edges_b, low_b)] = power["ratio"]
    image = axis.pcolormesh(edges_b, edges_a, ratio, cmap=style.MAP, norm=scale, rasterized=True)
    axis.set_aspect("auto")
    axis.grid(visible=False)
    # Labels side by side need more room than labels above each other.
    for which, edges, apart in ((axis.yaxis, edges_a, 0.075), (axis.xaxis, edges_b, 0.18)):
        which.set_ticks(*ruler.ticks(edges[0], edges[-1], apart))
    for draw_line in (axis.axhline, axis.axvline):
        for side in (-1, 1):
            draw_line(side * ruler.half, color="white", linewidth=0.8)
    shortest, longest = max(edges_a[0], edges_b[0]), min(edges_a[-1], edges_b[-1])
    axis.plot([shortest, longest], [shortest, longest], color="white", linestyle=":", linewidth=1.0)
    return image


class _Ruler:
    """Where eigenvalues of both signs lie on an axis: log |λ| outwards from a band of zero in the middle."""

    half = 0.5
    """Half of the width of the band of zero, in decades."""

    def __init__(self, power: "Table") -> None:
        least = np.concatenate([power[f"least_{side}"][power[f"sign_{side}"] != 0] for side in "ab"])
        self._least = float(least.min()) if len(least) else 1.0

    def place(self, size: Any) -> Any:
        """Where a positive eigenvalue lies; a negative one is opposite."""
        return self.half + np.log10(np.maximum(size, self._least) / self._least)

    def ends(self, power: "Table", side: str) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the bands of an axis; rounded, so that equal edges are equal."""
        sign, near, far = power[f"sign_{side}"], *(self.place(power[f"{name}_{side}"]) for name in ("least", "most"))
        low = np.select([sign > 0, sign < 0], [near, -far], -self.half)
        high = np.select([sign > 0, sign < 0], [far, -near], self.half)
        return low.round(6), high.round(6)

    def ticks(self, low: float, high: float, apart: float) -> tuple[list[float], list[str]]:
        """Zero, and powers of ten of both signs, the largest first, as far as there is room."""
        places, labels = ([0.0], ["0"]) if low <= 0 <= high else ([], [])
        most = math.floor(math.log10(self._least) + max(abs(low), abs(high)) - self.half + 1e-6)
        for exponent in range(most, math.floor(math.log10(self._least)) - 1, -1):
            place = float(self.half + exponent - math.log10(self._least))
            for sign, text in ((1, ""), (-1, "-")):
                room = all(abs(sign * place - other) > apart * (high - low) for other in places)
                if place >= self.half - 1e-6 and low - 1e-6 <= sign * place <= high + 1e-6 and room:
                    places.append(sign * place)
                    labels.append(f"${text}10^{{{exponent}}}$")
        return places, labels


def _maxima(axis: "Axes", rows: "Table", maxima: "Table") -> None:
    head = rows.attributes
    axis.axhspan(head["chance_maximum_q05"], head["chance_maximum_q95"], color=style.PALE, linewidth=0)
    axis.axhline(head["chance_maximum"], color=style.GREY, linestyle=":", linewidth=1.4)
    for sign, (_, colour, marker, dash) in style.SIGNS.items():
        own = rows.where(rows["sign"] == sign)
        axis.plot(
            own["rank"],
            own["maximum"],
            linestyle="",
            marker=marker,
            markersize=1.8,
            color=colour,
            alpha=0.35,
            rasterized=True,
        )
        bands = maxima.where(maxima["sign_a"] == sign)
        bands = bands.where(np.argsort(bands["first_rank_a"]))
        middle = style.middle_rank(bands, "_a")
        axis.fill_between(
            middle, bands["lower_quartile"], bands["upper_quartile"], color=colour, alpha=0.25, linewidth=0
        )
        axis.plot(middle, bands["median"], color=colour, linestyle=dash)
    axis.set(xscale="log", yscale="log", ylim=(min(0.5 * head["chance_maximum_q05"], 0.5), 1.15))


def _subspace(axis: "Axes", subspace: "Table") -> None:
    for end, colour, dash in (("top", style.BLUE, "-"), ("bottom", style.VERMILLION, "--")):
        rows = subspace.where(subspace["end"] == end)
        axis.plot(rows["k"], np.maximum(rows["overlap"], 1e-300), color=colour, linestyle=dash)
    axis.plot(rows["k"], rows["chance"], color=style.GREY, linestyle=":", linewidth=1.4)
    axis.set(xscale="log", yscale="log", ylim=(float(rows["chance"].min()) / 3, 1.5))


SPEC = FigureSpec(
    name="eigenvector_overlap",
    title=TITLE,
    category="2. Curvature",
    labels={"measure": "|QᵀQ′|", "shown": "per pair of checkpoints"},
    caption="""\
How much the eigenvectors of an earlier checkpoint are those of a later one, one column per pair of checkpoints of a
run.

Above: how much of the eigenvectors of one band of eigenvalues lies in the span of a band of the other checkpoint, in
units of what lies there of a random vector (marked on the colour bar). Both axes are logarithmic in \\|λ\\| outwards
from the band in the middle, which holds what cannot be told from zero. A bright diagonal (dotted: equal eigenvalues)
means that eigenvectors turn only among neighbours; a bright band beside it, that their eigenvalues moved. White: no
eigenvalue lies there.

Middle: for each eigenvector of the earlier checkpoint its largest \\|cos\\| with any of the later one; lines are
medians of bands, areas their quartiles. Random bases give √(2 ln P / P) for large P; the grey area holds 90 % of
such maxima at this P.

Below: overlap of the span of the k highest (and k lowest) eigenvectors of both, mean cos² of the principal angles;
k/P by chance.
""",
    tables=("overlap_power", "overlap_rows", "overlap_maxima", "overlap_subspace"),
    draw=draw,
)
