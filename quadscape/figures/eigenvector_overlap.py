"""Eigenvectors of one checkpoint against those of another."""

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
        tables: `overlap_bands`, `overlap_rows`, `overlap_maxima` and `overlap_subspace`, one of each per pair.

    Returns:
        The figure.
    """
    names = ("overlap_bands", "overlap_rows", "overlap_maxima", "overlap_subspace")
    pairs = [found for found in zip(*(tables[name] for name in names), strict=True) if len(found[0])]
    if not pairs:
        return style.message(TITLE, "A pair of checkpoints of one run is needed, and there is none.")
    most = 4 if len(pairs) <= 12 else 6
    figure, axes = style.panels(len(pairs), stacked=3, heights=(3.0, 2.3, 2.1), width=3.3, most=most)
    columns = style.even_columns(len(pairs), most)
    scale = _scale(pairs)
    for (bands, rows, maxima, subspace), (above, middle, below) in zip(pairs, axes.T, strict=True):
        image = _heat(above, bands, scale)
        _maxima(middle, rows, maxima)
        _subspace(below, subspace)
        head = bands.attributes
        above.set_title(f"run {head['run']}")
        above.set_ylabel(f"rank at iteration {style.thousands(head['iteration_a'])}")
        above.set_xlabel(f"rank at iteration {style.thousands(head['iteration_b'])}")
    # Beside the first row of heat maps only: one bar along a tall figure would be as tall.
    bar = figure.colorbar(
        image, ax=list(axes[0][:columns]), label="mean cos² ÷ chance (1/P)", extend="min", aspect=25, pad=0.01
    )
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


def _heat(axis: "Axes", bands: "Table", scale: Any) -> Any:
    rows, columns = int(bands["band_a"].max()) + 1, int(bands["band_b"].max()) + 1
    ratio = np.full((rows, columns), np.nan)
    ratio[bands["band_a"], bands["band_b"]] = bands["ratio"]
    image = axis.pcolormesh(ratio, cmap=style.MAP, norm=scale, rasterized=True)
    axis.set_aspect("auto")
    axis.invert_yaxis()
    axis.grid(visible=False)
    for which, side, draw_line in ((axis.yaxis, "a", axis.axhline), (axis.xaxis, "b", axis.axvline)):
        # Labels side by side need more room than labels above each other.
        places, labels, border = _rank_ticks(bands, side, 0.07 if side == "a" else 0.13)
        which.set_ticks(places, labels)
        if border:
            draw_line(border, color="white", linewidth=1.0)
    return image


def _rank_ticks(bands: "Table", side: str, apart: float) -> tuple[list[float], list[str], int]:
    """Places of the ranks 1, 10, 100, … of both signs on an axis of bands, and of the border between the signs."""
    _, first = np.unique(bands[f"band_{side}"], return_index=True)
    signs, low, high = (bands[f"{name}_{side}"][first] for name in ("sign", "first_rank", "last_rank"))
    places: list[float] = []
    labels: list[str] = []
    for rank in (10**k for k in range(10)):
        for sign, text in ((1, ""), (-1, "−")):
            if rank > high[signs == sign].max(initial=0):
                continue
            band = int(np.flatnonzero((signs == sign) & (low <= rank) & (rank <= high))[0])
            inside = (rank - low[band] + 0.5) / (high[band] - low[band] + 1)
            place = band + (inside if sign > 0 else 1 - inside)
            if all(abs(place - other) > apart * len(signs) for other in places):
                places.append(float(place))
                labels.append(f"{text}{style.thousands(rank)}")
    border = int(np.count_nonzero(signs > 0))
    return places, labels, border if border < len(signs) else 0


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
        middle = np.sqrt(bands["first_rank_a"] * bands["last_rank_a"])
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

Above: mean cos² between the eigenvectors of two bands of logarithmic rank, in units of the 1/P of random bases
(marked on the colour bar). Ranks count from the largest eigenvalue; ranks with a minus count the negative
eigenvalues from the most negative one. A bright diagonal means that eigenvectors turn only among neighbours in
eigenvalue.

Middle: for each eigenvector of the earlier checkpoint its largest \\|cos\\| with any of the later one; lines are
medians of bands, areas their quartiles. Random bases give √(2 ln P / P) for large P; the grey area holds 90 % of
such maxima at this P.

Below: overlap of the span of the k highest (and k lowest) eigenvectors of both, mean cos² of the principal angles;
k/P by chance.
""",
    tables=("overlap_bands", "overlap_rows", "overlap_maxima", "overlap_subspace"),
    draw=draw,
)
