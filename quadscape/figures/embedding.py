"""The path of a run embedded by three methods, and how far each can be trusted, beside paths with nothing to see."""

from typing import TYPE_CHECKING

import numpy as np

from quadscape.figures import style
from quadscape.figures.specification import FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from quadscape.figures.specification import Tables
    from quadscape.tables import Table

TITLE = "Embeddings of the path, and whether they can be trusted"
MOST = 4
_LEVELS = 9
_DECADE = 10.0
_SURFACE = "Greys"
_METHODS = {"pca": "PCA", "umap": "UMAP", "autoencoder": "autoencoder"}
_PATHS = {
    "run": ("the run", style.BLUE, "o"),
    "walk": ("random walk", style.BLACK, "s"),
    "ou": ("Ornstein–Uhlenbeck path", style.ORANGE, "^"),
}
_SCORES = (("trustworthiness", "-"), ("continuity", "--"))
_RANDOM = 0.5


@style.styled
def draw(tables: "Tables") -> "Figure":
    """Draws three rows of panels per run, one column per method: points, scores, and scores without close times.

    Args:
        tables: `embedding_points`, `embedding_scores` and `embedding_plane`, one of each per run.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    names = ("embedding_points", "embedding_scores", "embedding_plane")
    runs = [run for run in zip(*(tables[name] for name in names), strict=True) if len(run[0]) and len(run[1])][:MOST]
    if not runs:
        return style.message(TITLE, "No run has a path that can be embedded.")
    figure = Figure(figsize=(11.4, 8.2 * len(runs) + 1.0), layout=style.layout())
    axes = figure.subplots(3 * len(runs), 3, squeeze=False, height_ratios=(1.25, 1, 1) * len(runs))
    for run, rows in zip(runs, axes.reshape(len(runs), 3, 3), strict=True):
        _run(figure, run, rows)
    keys = [
        style.line_key(label, color=colour, marker=marker, markersize=4.5) for label, colour, marker in _PATHS.values()
    ]
    keys += [style.line_key(name, color=style.GREY, linestyle=dash) for name, dash in _SCORES]
    keys.append(style.patch_key("range over seeds", color=style.GREY, alpha=0.25))
    keys.append(style.line_key("a random embedding (½)", color=style.GREY, linestyle=":"))
    style.legend(figure, keys)
    figure.suptitle(TITLE)
    return figure


def _run(figure: "Figure", run: "tuple[Table, Table, Table]", rows: np.ndarray) -> None:
    from matplotlib.colors import Normalize

    points, scores, plane = run
    times = Normalize(int(points["iteration"].min()), max(int(points["iteration"].max()), 1))
    for column, (method, name) in enumerate(_METHODS.items()):
        axis = rows[0, column]
        if method == "autoencoder":
            _surface(figure, axis, plane)
        shown = points.where((points["method"] == method) & (points["seed"] == 0))
        dots = _points(axis, shown, times)
        title = name if column else f"run {points.attributes['run']}: {name}"
        axis.set_title(f"{title}\n{_errors(scores, method)}", fontsize=9.5)
        for row, ending in ((1, ""), (2, "_apart")):
            _curves(rows[row, column], scores.where(scores["method"] == method), ending)
    bar = figure.colorbar(dots, ax=rows[0, 0], label="iteration (steps taken)", location="left")
    bar.ax.yaxis.set_major_formatter(lambda value, _: style.thousands(value))
    rows[1, 0].set_ylabel("score, all neighbours")
    gap = 2 * float(scores.attributes.get("correlation_time", np.nan))
    apart = "" if np.isnan(gap) else f"\n{style.thousands(round(gap))} steps apart"
    rows[2, 0].set_ylabel(f"score, neighbours{apart}")
    for axis in rows[2]:
        axis.set_xlabel("neighbours k")
    for row in rows[1:]:
        # One scale for what is compared side by side.
        low = min(min(axis.get_ylim()[0] for axis in row), 0.95)
        for axis in row:
            axis.set_ylim(low, 1 + 0.05 * (1 - low))
            if low < _RANDOM:
                axis.axhline(_RANDOM, color=style.GREY, linestyle=":", linewidth=1)


def _points(axis: "Axes", shown: "Table", times: "Normalize"):  # type: ignore[no-untyped-def]
    axis.plot(shown["x"], shown["y"], color=style.GREY, linewidth=0.6, zorder=3)
    dots = axis.scatter(
        shown["x"],
        shown["y"],
        c=shown["iteration"],
        norm=times,
        cmap=style.MAP,
        s=16,
        edgecolors="white",
        linewidths=0.3,
        zorder=4,
    )
    axis.plot(
        shown["x"][:1], shown["y"][:1], "o", color=style.VERMILLION, markerfacecolor="none", markersize=9, zorder=5
    )
    axis.plot(
        shown["x"][-1:], shown["y"][-1:], "*", color=style.VERMILLION, markeredgecolor="white", markersize=13, zorder=5
    )
    axis.grid(visible=False)
    axis.set(xticks=[], yticks=[], xlabel="first coordinate", ylabel="second coordinate")
    return dots


def _surface(figure: "Figure", axis: "Axes", plane: "Table") -> None:
    from matplotlib.colors import LogNorm, Normalize

    loss = plane["loss"]
    if not np.isfinite(loss).any():
        style.note(axis, "no finite loss", "upper left")
        return
    first, second = np.unique(plane["x"]), np.unique(plane["y"])
    grid = np.ma.masked_invalid(loss.reshape(len(first), len(second)).T)
    low, high = float(grid.min()), float(grid.max())
    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    logarithmic = low > 0 and high / low > _DECADE
    levels = np.geomspace(low, high, _LEVELS) if logarithmic else np.linspace(low, high, _LEVELS)
    levels[0], levels[-1] = low, high  # but for rounding they are
    norm = LogNorm(low, high) if logarithmic else Normalize(low, high)
    filled = axis.contourf(first, second, grid, levels=levels, norm=norm, cmap=_SURFACE, alpha=0.75)
    bar = figure.colorbar(filled, ax=axis, label="training loss, decoded")
    bar.ax.minorticks_off()
    shown = levels[::2].tolist()
    bar.set_ticks(shown, labels=[style.plain(float(f"{level:.2g}")) for level in shown])


def _errors(scores: "Table", method: str) -> str:
    found = []
    for path, word in (("run", "error"), ("walk", "walk"), ("ou", "OU")):
        errors = scores["error"][(scores["method"] == method) & (scores["path"] == path)]
        if len(errors) and np.isfinite(errors[0]):
            found.append(f"{word} {100 * float(errors[0]):.2g} %")
    return ", ".join(found) or "no error, as it decodes nothing"


def _curves(axis: "Axes", scores: "Table", ending: str) -> None:
    some = False
    for path, (_, colour, marker) in _PATHS.items():
        rows = scores.where(scores["path"] == path)
        k = rows["neighbours"]
        for name, dash in _SCORES:
            values, low, high = (rows[f"{name}{ending}{side}"] for side in ("", "_low", "_high"))
            some = some or bool(np.isfinite(values).any())
            axis.fill_between(k, low, high, color=colour, alpha=0.15, linewidth=0)
            face = colour if dash == "-" else "white"
            axis.plot(
                k,
                values,
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=4,
                markerfacecolor=face,
                linewidth=1.2,
            )
    axis.set_xscale("log")
    axis.set_xlim(1.7, 1.15 * max(4, int(scores["neighbours"].max(initial=4))))
    axis.minorticks_off()
    axis.set_xticks(np.unique(scores["neighbours"]), labels=[str(k) for k in np.unique(scores["neighbours"])])
    if not some:
        style.note(axis, "too few neighbours this far apart in time", "upper left")


SPEC = FigureSpec(
    name="embedding",
    title=TITLE,
    category="9. Views",
    labels={"measure": "embeddings of the path", "shown": "per run"},
    caption="""\
Above: the iterates of a run in the planes of PCA, UMAP and an autoencoder, coloured by iteration (circle: start, star:
end; seed 0). Only PCA's plane is flat and has a scale; the axes of the other two have no meaning, and distances in
UMAP's none beyond near neighbours. Grey under the autoencoder's points is the training loss at what a point of its
plane is decoded to, a curved surface in the space of parameters. The error is the mean squared distance between the
iterates and what they are decoded to, over their variance; after it those of a random walk and of an
Ornstein–Uhlenbeck path (OU).

Middle: trustworthiness (whether neighbours in the plane are neighbours in the space; solid) and continuity (the
reverse; dashed) against the number of neighbours, for the run (blue) and for the same method on a random walk (black)
and on an Ornstein–Uhlenbeck path (orange) with steps as long as the run's and the run's correlation time. 1 is
perfect, ½ what a random embedding has. Below: the same where only iterates at least two correlation times apart count
as neighbours. Any autocorrelated path scores high in the middle, since neighbours in time are neighbours in space;
an embedding says something of the run itself only where blue differs from black and orange. Bands are ranges over
seeds.
""",
    tables=("embedding_points", "embedding_scores", "embedding_plane"),
    draw=draw,
)
